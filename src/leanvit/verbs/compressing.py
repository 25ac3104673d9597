"""`compress`: methods applied to a model in order, recovered, measured step by step, and saved as a run folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from leanvit.anatomy import OpenModel
from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.measure import Comparison, Predictions, compare
from leanvit.recipe import Data, Recovery, check_needs, check_order, knobs_of, save
from leanvit.recipe import compress as compress_model
from leanvit.report.keeping import keep
from leanvit.report.token_maps import TOKENS, trace_tokens
from leanvit.verbs.folders import TRAINING_LOG, Stopwatch, clear_run, new_folder, require_whole
from leanvit.verbs.models import Say, as_runner, load_model, open_split, require_fit, row_name, say_bad, silent

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Asked:
    """What one method was asked for, and what the saved object turned out to have."""

    method: str
    asked: dict[str, Any]  # the knobs
    achieved: dict[str, Any]


@dataclass(frozen=True)
class Compressed:
    """What a compression gave."""

    folder: Path
    label: str
    asked: tuple[Asked, ...]
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "label": self.label,
            "asked": [vars(row) for row in self.asked],
            "comparison": None if self.comparison is None else json.loads(self.comparison.to_json()),
        }

    def asked_table(self) -> Table:
        """A rich table: method, asked, achieved."""
        from rich.table import Table
        from rich.text import Text

        table = Table("method", "asked", "achieved")
        for row in self.asked:
            table.add_row(*(Text(text) for text in (row.method, _pairs(row.asked), _pairs(row.achieved))))
        return table


def compress(
    model: str | Path,
    methods: Sequence[Any],
    data: str | None = None,
    *,
    recovery: Recovery | None = None,
    adapt: bool = False,
    convert: bool = False,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    latency_batch: int = 8,
    measured: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
    say: Say = silent,
    command: str = "",
) -> Compressed:
    """Apply methods to a model and save the lean one with its history.

    Args:
        model: timm name or run folder; `adapt`, `model_args`, `pretrained`, `weights`: see `load_model`;
            `convert`: see `train`.
        methods: methods like `EViT(keep_rate=0.7)`, in the order they are applied.
        data: data spec. Methods that calibrate and the recovery learn from its `train` split, which is opened only
            where something learns; `val` is measured.
        recovery: train after compression.
        limit: images taken of each split.
        measured: compare dense, each step and all on the `val` split; needs data.
        out: run folder; default: `runs/MODEL-METHODS`.

    Raises:
        BadInput, Refused: before any work starts, for what does not fit.
    """
    watch = Stopwatch("compress", command)
    require_whole("--batch", latency_batch, least=1)
    learning = adapt or recovery is not None or any(m.needs_data for m in methods)
    train = open_split(data, "train", seed=seed, limit=limit, say=say) if data is not None and learning else None
    if adapt and train is None:
        raise BadInput("--adapt needs --data, which it adapts to")
    start = load_model(
        model,
        model_args=model_args,
        pretrained=pretrained,
        weights=weights,
        adapt_to=train if adapt else None,
        seed=seed,
        say=say,
    )
    check_order(start.model.traits(), methods)
    check_needs(methods, train, recovery)
    validation = None if data is None else open_split(data, "val", seed=seed, limit=limit, say=say)
    known = validation if train is None else train
    if known is not None:
        require_fit(start, known, adapted=adapt, convert=convert)
    validation = validation.cached() if validation is not None else None
    folder = new_folder(out, "-".join([start.base, *(m.slug for m in methods)]), overwrite=overwrite)

    steps = _Steps(first=row_name(start.model), say=say, keep=measured and validation is not None)
    with TemporaryDirectory(prefix="leanvit-") as scratch:
        log = Path(scratch) / TRAINING_LOG
        lean = compress_model(
            start.model,
            methods,
            None if train is None else Data(train.cached(), start.preprocess, seed=seed),
            recovery=replace(recovery, log=log) if recovery and recovery.log is None else recovery,
            on_step=steps.take,
        )
        curve = log.read_bytes() if log.is_file() else b""
    asked = tuple(Asked(m.slug, knobs_of(m), _achieved(m, lean)) for m in methods)
    classes = tuple(known.classes) if known is not None else start.classes
    info = {k: v for k, v in start.info.items() if k != "made_with"}
    info |= {"asked": [*info.get("asked", []), *(vars(a) for a in asked)], **({"data": data} if data else {})}
    clear_run(folder, overwrite=overwrite)
    save(lean, folder, preprocess=start.preprocess, classes=classes, info=info, overwrite=overwrite)
    if curve:
        write_atomic(folder / TRAINING_LOG, curve)
    comparison = None
    if validation is not None and measured:
        runners = {name: as_runner(step, start.preprocess) for name, step in steps.models.items()}
        answers: dict[str, Predictions] = {}
        comparison = compare(
            runners, validation, latency_batch=latency_batch, progress=say, on_predictions=answers.update
        )
        keep(comparison, answers, validation, folder / "measure.json")
    if validation is not None:
        maps = trace_tokens(lean, validation, start.preprocess, name=row_name(lean))
        write_atomic(folder / TOKENS, maps.to_json().encode())
    watch.record(folder, wrote="measure.json" if comparison else "", before=start.commands)
    say_bad(say, train, validation)
    return Compressed(folder, row_name(lean), asked, comparison)


class _Steps:
    """Keeps a copy of the model after each step, under the name of its row."""

    def __init__(self, *, first: str, say: Say, keep: bool) -> None:
        self.models: dict[str, OpenModel] = {}
        self._first, self._say, self._keep = first, say, keep

    def take(self, label: str, model: OpenModel) -> None:
        name = self._first if not self.models else self._free(f"+ {label}")
        self._say(f"compress: {name}")
        self.models[name] = copy.deepcopy(model).eval() if self._keep else model

    def _free(self, name: str) -> str:
        taken = sum(known == name or known.startswith(f"{name} (") for known in self.models)
        return f"{name} ({taken + 1})" if taken else name


def _achieved(method: Any, lean: OpenModel) -> dict[str, Any]:
    return dict(method.achieved(lean)) if hasattr(method, "achieved") else {}


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items()) or "–"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
