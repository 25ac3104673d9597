"""`measure`: models side by side on the same images, in one or more runtimes, interleaved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanvit.data.preprocess import own_settings
from leanvit.errors import BadInput, MissingExtra, Refused
from leanvit.knobs import Count, Rounds, check
from leanvit.measure import Comparison, Predictions, compare
from leanvit.measure.comparing import common_task
from leanvit.measure.judged import Judged
from leanvit.runs.answer_maps import answer_maps
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_file
from leanvit.runs.layout import MEASURED, TOKENS
from leanvit.runs.measurements import keep
from leanvit.runs.token_maps import keep_tokens
from leanvit.tasks import Task, read_task
from leanvit.verbs.fitting import require_fit, with_classes_of, with_task
from leanvit.verbs.models import (
    Loaded,
    Log,
    is_built,
    is_fresh,
    load_model,
    log_bad,
    open_split,
    silent,
)
from leanvit.verbs.runtimes import RUNTIMES, Opener, first_line, reasons_against, require


@dataclass(frozen=True)
class Measured:
    """A comparison, and the file that holds it."""

    comparison: Comparison
    file: Path | None
    left_out: dict[str, str] = field(default_factory=dict)  # row or runtime -> why; with `all_runtimes` only

    def to_json(self) -> dict[str, Any]:
        return {
            "file": None if self.file is None else str(self.file),
            "comparison": json.loads(self.comparison.to_json()),
            "left_out": self.left_out,
        }


def measure(
    run: str | Path,
    data: str,
    *,
    against: Sequence[str | Path] = (),
    runtimes: Sequence[str] | None = None,
    all_runtimes: bool = False,
    latency_batch: int = 8,
    rounds: int = 15,
    convert: bool = False,
    class_names: str = "by-name",
    task: Task | str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Measured:
    """Compare a model with others: accuracy with intervals, latency in interleaved rounds, MACs, memory, size.

    Args:
        run: run folder, timm name or reference. `against`: others; the first of them is the baseline.
        data: data spec; its `val` split is measured.
        runtimes: of `leanvit.verbs.runtimes.RUNTIMES`, by default torch alone; each model gets a row in each. What a
            run has not exported is exported for the measurement, at `latency_batch`, and thrown away after it.
        all_runtimes: all of them in one comparison; what is not installed, or does not take a model, is left out and
            named with the reason (`Measured.left_out`).
        convert: see `train`. class_names: "by-name" or "by-position", see `data.match_classes`.
        task: what the outputs mean, as a task or its text (`NAME:field=value`); default: what the runs say, and the
            labels of the data.
        model_args, pretrained, weights, mean, std, crop_pct, interpolation: for the timm names among them; see `train`.
        out: file; default: `measure.json` of the run folder, or `measure-2.json` and so on when there is one.

    Raises:
        BadInput: before any work starts.
        MissingExtra: a runtime in `runtimes` is not installed; before any work, too.
    """
    watch = Stopwatch("measure", command)
    chosen, left_out = _chosen_runtimes(runtimes, all_runtimes)
    check("--batch", latency_batch, Count)
    check("--rounds", rounds, Rounds)
    given = read_task(task)
    settings = own_settings(mean, std, crop_pct, interpolation)
    for what, reason in left_out.items():
        log(f"{what} is left out: {reason}")
    validation = open_split(data, "val", limit=limit, log=log)
    if settings and not any(map(is_built, (*against, run))):
        raise BadInput(f"{', '.join(settings)} can only be given with a timm name: a run has its own preprocessing")
    built = {"model_args": model_args, "pretrained": pretrained, "weights": weights, "preprocess_settings": settings}
    loaded = [with_task(_load(spec, built, log), given, validation) for spec in (*against, run)]
    fitting: dict[str, Any] = {"convert": convert, "adaptable": False, "class_names": class_names}
    for one in loaded:
        require_fit(one, validation, **fitting, judges="measure")
    _require_one_size(loaded)
    bases, specs = [one.base for one in loaded], [*map(str, (*against, run))]
    names = bases if len(set(bases)) == len(bases) else specs
    judges = common_task({name: one.model for name, one in zip(names, loaded, strict=True)}, validation)
    own = loaded[-1]
    default = own.home / MEASURED if own.home else None
    file = None if default is None and out is None else new_file(out, default, overwrite=overwrite)

    inside = file is not None and own.home is not None and file.parent == own.home
    answers: dict[str, Predictions] = {}
    judged: dict[str, Judged] = {}
    with Opener(latency_batch, log) as opener:
        lines = _runners(loaded, chosen, opener, lenient=all_runtimes)
        left_out |= lines.left_out
        comparison = compare(
            lines.runners,
            validation.cached(),
            latency_batch=latency_batch,
            rounds=rounds,
            files=lines.files,
            model_names=lines.models,
            progress=log,
            on_predictions=answers.update,
            on_judged=judged.update,
            class_names=class_names,
            task=judges,
        )
        maps = answer_maps(comparison, lines.runners, judged, validation) if inside else None
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        keep(comparison, answers if inside else {}, validation, file, maps=maps)
    if own.home is not None and os.access(own.home, os.W_OK):  # with --out, the run may be read-only
        if not (own.home / TOKENS).exists():
            shown = with_classes_of(own, validation, class_names=class_names)
            keep_tokens(own.home, own.model, shown, own.preprocess, name=own.name)
        watch.record(own.home, wrote=file.name if inside and file else "")
    log_bad(log, validation)
    return Measured(comparison, file, left_out)


def _chosen_runtimes(runtimes: Sequence[str] | None, all_runtimes: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """(those to measure, those that cannot run here with the reason). Asked for by name, the latter are errors."""
    if all_runtimes:
        if runtimes:
            raise BadInput(f"give runtimes ({', '.join(runtimes)}) or all_runtimes, not both")
        against = reasons_against(RUNTIMES)
        return tuple(name for name in RUNTIMES if name not in against), against
    chosen = tuple(dict.fromkeys(runtimes or ("torch",)))
    for runtime in chosen:
        require(runtime)
    return chosen, {}


def _require_one_size(loaded: Sequence[Loaded]) -> None:
    sizes = [one.preprocess.input_size for one in loaded]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{one.base} {'x'.join(map(str, size))}" for one, size in zip(loaded, sizes, strict=True))
        raise BadInput(
            f"models are compared at one input size (channels x height x width), these take {listed}: "
            "measure them one by one, or build timm names at one size (--model-arg img_size=N)"
        )


def _load(spec: str | Path, built: Mapping[str, Any], log: Log) -> Loaded:
    """Arguments of timm names go to the timm names only."""
    if not is_built(spec):
        return load_model(spec)
    if is_fresh(spec, built):
        log(f"{spec} has fresh weights, so its accuracy is chance: --pretrained or --weights gives it trained ones")
    return load_model(spec, **built, log=log)


@dataclass
class _Lines:
    """Runners by the name of their row, the files and models behind them, and the rows that there could not be."""

    runners: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # by row: what runs there, in whatever runtime
    left_out: dict[str, str] = field(default_factory=dict)


def _runners(loaded: Sequence[Loaded], runtimes: Sequence[str], opener: Opener, *, lenient: bool) -> _Lines:
    """A runner for each model in each runtime: all models in the first runtime, then all in the next."""
    names = _row_names(loaded)
    lines = _Lines()
    for runtime in runtimes:
        for name, one in zip(names, loaded, strict=True):
            key = name if runtime == "torch" else f"{name} ({runtime})"
            try:
                lines.runners[key], file = opener.open(one, runtime)
            except (Refused, MissingExtra) as error:
                if not lenient:
                    raise
                lines.left_out[key] = first_line(error)
                opener.log(f"{key} is left out: {first_line(error)}")
                continue
            lines.files |= {key: file} if file else {}
            lines.models[key] = name
    return lines


def _row_names(loaded: Sequence[Loaded]) -> list[str]:
    """The models' names; folders tell two alike apart. Raises `BadInput` if a model is there twice."""
    names = [one.name for one in loaded]
    clear = [n if names.count(n) == 1 else f"{n} [{one.base}]" for n, one in zip(names, loaded, strict=True)]
    twice = next((n for n in clear if clear.count(n) > 1), None)
    if twice:
        raise BadInput(f"{twice} is given twice: a model is compared with others, not with itself")
    return clear
