"""`publish`: a run as a compact folder to hand on: rounded weights, what they cost in accuracy, and how it was made."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leanvit import tasks
from leanvit.data import AnyDataset, loader, matched_with
from leanvit.data.classes import Matched
from leanvit.errors import BadInput, CheckpointError, Refused, unknown
from leanvit.files import file_sha256, write_atomic
from leanvit.knobs import Positive, check
from leanvit.measure import Interval, count, environment, predict_all
from leanvit.measure.judged import Judged, judge_all
from leanvit.recipe import Record, load_run, save
from leanvit.recipe.catalogue import RECORD
from leanvit.recipe.store import JSON_NAME, STORED_AS
from leanvit.runs.clearing import clear_run
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder
from leanvit.runs.layout import RUN
from leanvit.runs.locking import locked
from leanvit.runs.logs import training_logs
from leanvit.tasks import Task, read_task
from leanvit.verbs.fitting import require_fit, with_task
from leanvit.verbs.models import Loaded, Log, is_built, load_model, log_bad, open_split, silent

PRECISIONS = ("float32", *STORED_AS)
LOGGED_STEPS = 400  # kept of a training log; epochs are all kept


@dataclass(frozen=True)
class Published:
    """A published run on disk."""

    folder: Path
    size_bytes: int
    record: Record

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "size_bytes": self.size_bytes, "record": self.record.to_json()}


def publish(
    run: str | Path,
    data: str,
    out: str | Path,
    *,
    store: str = "float16",
    title: str = "",
    presets: Sequence[str] = (),
    licence: str = "",
    data_source: str = "",
    trained_on: str = "",
    most_mb: float | None = None,
    class_names: str = "by-name",
    task: Task | str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Published:
    """Write a run folder that holds the model in little space, and `reference.toml`, which describes it.

    Model and copy are measured on the same images, the copy as `load` gives it. What goes along: commands, thinned
    training logs, preprocessing, class names. Of absolute paths only the last name stays.

    Args:
        run: run folder. data: data spec; its `val` split is measured.
        store: "float16", "bfloat16" (parameters are rounded to it) or "float32" (as they are).
        title, licence, data_source: texts of the record. presets: names of the recipes that it was trained by, a
            stage each; default: from the run's record.
        trained_on: the machine; default: from the run's record.
        class_names, task: see `measure`.
        most_mb: refuse to write more than so many million bytes.

    Raises:
        BadInput: before any work, for what is not accepted.
        Refused: the model cannot be stored like this, or takes more than `most_mb`; nothing is written.
    """
    watch = Stopwatch("publish", _placeless_command(command))
    if store not in PRECISIONS:
        raise unknown("--store", store, PRECISIONS)
    check("--most-mb", most_mb, Positive | None)
    given = read_task(task)
    if isinstance(presets, str):
        raise BadInput(f"presets is {presets!r}; accepted: a list of names")
    one = None if is_built(run) else load_model(run)
    if one is None or one.home is None:
        raise BadInput(
            f"{run} is not a run folder: publish hands on what was trained or compressed: "
            "give the folder that train or compress wrote"
        )
    if one.home.resolve() == Path(out).resolve():
        raise BadInput(f"--out {out} is the run itself: its weights are rounded in the copy, give another path")
    validation = open_split(data, "val", limit=limit, log=log)
    one = with_task(one, given, validation)
    require_fit(one, validation, class_names=class_names, judges="publish")
    judges = tasks.of(one.model, validation)
    matched = matched_with(one.model, validation, class_names=class_names) if judges.label_kind else None
    if matched is not None and matched.note and not matched.same:
        log(matched.note)
    folder = new_folder(out, one.base, overwrite=overwrite, log=log)

    with locked(folder, command=command, log=log), TemporaryDirectory(prefix="leanvit-") as scratch:
        made = Path(scratch)
        stored_as = "" if store == "float32" else store
        info = _placeless({k: v for k, v in one.info.items() if k != "made_with"})
        save(one.model, made, preprocess=one.preprocess, info=info, stored_as=stored_as)
        log(f"measuring the run and its copy in {store} on {len(validation)} images")
        record = replace(
            _measured(one, made, validation, judges, matched),
            title=title or f"{one.model.history.root.name} on {_placeless(data)}",
            data=_placeless(data),
            presets=tuple(presets) or _recipes(one.info),
            licence=licence,
            data_source=data_source,
            trained_on=trained_on or str(one.info.get("machine", "")) or "not recorded",
        )
        _write_beside(made, one, record)
        watch.record(made, before=tuple(replace(c, command=_placeless_command(c.command)) for c in one.commands))
        size = sum(path.stat().st_size for path in made.iterdir())
        if most_mb is not None and size > most_mb * 1e6:
            raise Refused(f"the copy takes {size / 1e6:.2f} MB; --most-mb accepts {most_mb:g}")
        clear_run(folder, overwrite=overwrite, keep=RUN)  # the old run stays until the copy takes its place
        _copy(made, folder)
        load_run(folder)
    log_bad(log, validation)
    return Published(folder, size, record)


def _measured(one: Loaded, made: Path, validation: AnyDataset, task: Task, matched: Matched | None) -> Record:
    """Both models on the same images, and the run's record of its training. matched: of labels of images."""
    copy = load_run(made)
    batches = loader(validation, one.preprocess, batch_size=64)
    both = {"run": one.model, "copy": copy.model}
    if matched is None:
        answers = judge_all(task, both, batches)
    else:
        predictions = predict_all(both, batches, outputs=dict.fromkeys(both, matched.positions))
        answers = {name: Judged.of(own) for name, own in predictions.items()}
    alike = answers["run"].agreement(answers["copy"])
    part = matched.note if matched is not None and len(matched.positions) < matched.outputs else ""
    note = "; ".join(filter(None, (validation.note, part)))
    cost = count(one.model, one.preprocess.input_size)
    trainings = [_training(log) for log in training_logs(one.folder or made)]
    return Record(
        title="",
        model=one.model.history.root.name,
        methods=tuple(plan.slug for plan in one.model.history.plans),
        input_size=one.preprocess.input_size,
        classes=one.model.num_classes,
        parameters=cost.params,
        macs=cost.macs,
        data="",
        split=f"{validation.split} ({note})" if note else validation.split,
        images=len(answers["run"]),
        metric=task.metric.title,
        unit=task.metric.unit,
        score=_figures(answers["run"].interval()),
        stored_as=copy.stored_as,
        stored_score=_figures(answers["copy"].interval()),
        agreement_percent=None if alike is None else _figures(alike)[0],
        measured_on=str(environment()["cpu"]),
        presets=(),
        commands=tuple(_placeless_command(c.command) for c in one.commands),
        epochs=sum(epochs for epochs, _ in trainings),
        training_seconds=round(sum(seconds for _, seconds in trainings), 1),
        trained_on="",
        seed=int(one.info.get("training", {}).get("seed", 0)),
        date=(one.commands[-1].at if one.commands else datetime.now(UTC).isoformat())[:10],
        versions=", ".join(f"{name} {version}" for name, version in one.info.get("made_with", {}).items()),
        licence="",
        data_source="",
        weights_sha256=file_sha256(next(made.glob("weights-*.safetensors"))),
    )


def _recipes(info: dict[str, Any]) -> tuple[str, ...]:
    """The recipes that a run's info names, oldest stage first."""
    named = (stage.get("recipe", {}).get("name") for stage in [*info.get("stages", []), info])
    return tuple(str(name) for name in named if name)


def _figures(found: Interval) -> tuple[float, float, float]:
    """Value and interval: percent with two decimals, others with six digits in all."""
    shown = found.shown()
    figures = (shown.value, shown.low, shown.high)
    value, low, high = (round(one, 2) if shown.unit == "percent" else float(f"{one:.6g}") for one in figures)
    return value, low, high


# --- training logs ----------------------------------------------------------------------------------------------------


def _rows(log: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(isinstance(row, dict) and isinstance(row.get("event"), str) for row in rows):
            raise ValueError("a line is no event")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{log} is not a log of training: {error}") from error
    return rows


def _training(log: Path) -> tuple[int, float]:
    """(epochs, seconds) of one training; the seconds of a resumed one are those of all its parts."""
    ends = [row for row in _rows(log) if row["event"] == "epoch"]
    try:
        return (int(ends[-1]["epoch"]) + 1, float(ends[-1]["seconds"])) if ends else (0, 0.0)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{log} is not a log of training: {error!r}") from error


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows but those of steps, of which evenly many stay."""
    steps = [i for i, row in enumerate(rows) if row["event"] == "step"]
    kept = set(steps[:: math.ceil(len(steps) / LOGGED_STEPS) or 1])
    return [row for i, row in enumerate(rows) if row["event"] != "step" or i in kept]


# --- files ------------------------------------------------------------------------------------------------------------


def _write_beside(made: Path, one: Loaded, record: Record) -> None:
    write_atomic(made / RECORD, record.to_toml().encode())
    for log in training_logs(one.folder or made):
        lines = (json.dumps(_placeless(row)) for row in _thinned(_rows(log)))
        write_atomic(made / log.name, "".join(f"{line}\n" for line in lines).encode())


def _copy(made: Path, folder: Path) -> None:
    """Weights, then the JSON that makes a run of them, then what belongs to that run."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = sorted(made.glob("weights-*.safetensors"))
    others = sorted({*made.iterdir()} - {*weights, made / JSON_NAME})
    for path in (*weights, made / JSON_NAME, *others):
        write_atomic(folder / path.name, path.read_bytes())
    for old in folder.glob("weights-*.safetensors"):
        if not (made / old.name).exists():
            old.unlink(missing_ok=True)


# An absolute path in a token like `list:/home/me/train.csv`: all but its last name.
_PLACE = re.compile(r"(?<![\w.~/\-])/(?!/)(?:[^/=:,?]+/)*(?=[^/])")


def _placeless(value: Any) -> Any:
    """JSON with absolute paths cut to their last name: nobody's folders are published."""
    if isinstance(value, str):
        return _PLACE.sub("", value)
    if isinstance(value, dict):
        return {key: _placeless(inner) for key, inner in value.items()}
    return [_placeless(inner) for inner in value] if isinstance(value, list) else value


def _placeless_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is open
        words = command.split()
    return shlex.join(_placeless(word) for word in words)
