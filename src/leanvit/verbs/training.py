"""`train`: a dense model, from a timm name (or on from a run), saved as a run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput, Refused, nearest
from leanvit.files import write_atomic
from leanvit.measure import environment
from leanvit.recipe import save
from leanvit.report.token_maps import TOKENS, trace_tokens
from leanvit.training import FitConfig, ProgressBar, Run, check_run, fit
from leanvit.training.callbacks import METRICS
from leanvit.training.checkpoint import STATE
from leanvit.verbs.folders import Stopwatch, clear_run, keep_logs, new_folder, require_writable
from leanvit.verbs.models import Loaded, Say, load_model, open_split, require_fit, row_name, say_bad, silent


@dataclass(frozen=True)
class Trained:
    """What a training run gave."""

    folder: Path
    label: str
    epochs: int
    seconds: float
    top1_percent: float | None  # of the last epoch, on the validation split; of multi-label data the mAP
    metric: str = "top-1"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def train(
    name: str | Path,
    data: str,
    *,
    settings: Mapping[str, Any] | None = None,
    adapt: bool = False,
    convert: bool = False,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = silent,
    command: str = "",
) -> Trained:
    """Train a dense model on a data set and save it as a run folder.

    Args:
        name: timm name, or a dense run (or reference) to train on from: its weights, with a fresh optimiser. The new
            run keeps the commands, settings and logs of the stages before it.
        data: data spec; trained on its `train` split, validated on `val`.
        settings: fields of `FitConfig`.
        convert: accept images that preprocessing must enlarge more than twofold, or change the channels of.
        adapt: fit classes, channels and resolution of a timm name to the data.
        out: run folder; default: `runs/NAME`. resume: go on with the interrupted run in it.

    Raises:
        BadInput: settings, model or folder that are not accepted, or a model that does not fit the data.
        Interrupted: stopped by Ctrl-C or SIGTERM, with its state saved.
    """
    watch = Stopwatch("train", command)
    config = _config(settings or {}, seed)
    if resume and out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    if resume and not (Path(str(out)) / STATE).is_file():
        raise BadInput(f"--resume: {out} holds no training to go on with (there is no {STATE} in it)")
    start = None
    if not adapt:
        start = load_model(name, model_args=model_args, pretrained=pretrained, weights=weights, seed=seed)
    dataset = open_split(data, "train", seed=seed, limit=limit, say=say)
    validation = open_split(data, "val", seed=seed, limit=limit, say=say)
    if start is None:
        start = load_model(
            name,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            adapt_to=dataset,
            seed=seed,
            say=say,
        )
    _require_dense(start)
    convert = require_fit(start, dataset, adapted=adapt, convert=convert)
    folder = require_writable(out) if resume and out else new_folder(out, start.base, overwrite=overwrite)
    check_run(start.model, dataset, preprocess=start.preprocess, config=config, validate=validation, convert=convert)
    clear_run(folder, overwrite=overwrite and not resume)

    history = start.model.history
    result = fit(
        start.model,
        dataset.cached(),
        preprocess=start.preprocess,
        config=config,
        callbacks=[ProgressBar() if sys.stderr.isatty() else _EpochLines(say)],
        out=folder,
        resume=resume,
        validate=validation.cached(),
        convert=convert,
    )
    final: Any = result.final
    final.history = history
    info = {
        "data": data,
        "training": config.to_json(),
        "top1": result.last_top1,
        "machine": environment()["cpu"],
        **_earlier(start),
    }
    save(
        final.eval(),
        folder,
        preprocess=start.preprocess,
        classes=dataset.classes,
        info=info,
        overwrite=resume or overwrite,
    )
    keep_logs(start.folder, folder)
    maps = trace_tokens(final, validation, start.preprocess, name=row_name(final))
    write_atomic(folder / TOKENS, maps.to_json().encode())
    watch.record(folder, before=start.commands)
    say_bad(say, dataset, validation)
    top1 = None if result.last_top1 is None else 100 * result.last_top1
    metric = METRICS["map" if dataset.multi_label else "top1"]
    return Trained(folder, start.name, config.epochs, watch.seconds, top1, metric)


def _earlier(start: Loaded) -> dict[str, Any]:
    """What a run that is trained on says of its training: the stages before this one, oldest first."""
    if start.folder is None:
        return {}
    stage = {key: start.info[key] for key in ("data", "training", "top1", "machine") if key in start.info}
    return {"from": start.name if start.reference else start.base, "stages": [*start.info.get("stages", []), stage]}


class _EpochLines:
    """A line an epoch, where there is no terminal for a bar."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def end_epoch(self, run: Run) -> None:
        row = run.history[-1]
        top1 = f", {METRICS[run.metric]} {100 * row[run.metric]:.1f} %" if run.metric in row else ""
        self._say(
            f"epoch {row['epoch'] + 1} of {run.config.epochs}: loss {row['loss']:.3f}{top1}, {row['seconds']:.0f} s"
        )


def _config(settings: Mapping[str, Any], seed: int) -> FitConfig:
    known = {field.name for field in fields(FitConfig)}
    for key in settings:
        if key not in known:
            raise BadInput(f"training has no setting {key!r}: {nearest(key, known)}")
    return FitConfig(**{"seed": seed, **settings})


def _require_dense(start: Loaded) -> None:
    if start.model.history.plans:
        raise Refused(
            f"{start.folder} is not dense ({start.name}): train makes dense models; use compress --recover to train "
            "a lean one"
        )
