"""`train`: a model, from a timm name or a recipe (or on from a run), saved as a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanvit.data import AnyDataset
from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.measure import environment
from leanvit.recipe import save
from leanvit.report.token_maps import TOKENS, trace_tokens
from leanvit.training import FitConfig, Objective, TensorBoardLog, check_run, fit
from leanvit.training.callbacks import METRICS
from leanvit.training.checkpoint import STATE
from leanvit.training.world import join_world, training_device
from leanvit.verbs.asking import Asked, ask, objective, start_model
from leanvit.verbs.folders import TENSORBOARD, Stopwatch, clear_run, keep_logs, new_folder, require_writable
from leanvit.verbs.models import Loaded, Say, open_split, require_fit, row_name, say_bad, silent, with_range_of
from leanvit.verbs.progress import progress


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


@dataclass(frozen=True)
class Ready:
    """Everything that a training needs, checked; nothing has been written."""

    start: Loaded
    dataset: AnyDataset
    validation: AnyDataset
    config: FitConfig
    objective: Objective | None
    convert: bool


def train(
    name: str | Path | None,
    data: str,
    *,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    adapt: bool = False,
    convert: bool = False,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    distill: str | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    say: Say = silent,
    command: str = "",
) -> Trained:
    """Train a model on a data set and save it as a run folder.

    Under torchrun all processes train it together; the first one makes the folder, speaks and saves.

    Args:
        name: timm name, or a dense run (or reference) to train on from: its weights, with a fresh optimiser. The new
            run keeps the commands, settings and logs of the stages before it. None where the recipe names a model.
        data: data spec; trained on its `train` split, validated on `val`.
        recipe: name of a training recipe (`leanvit recipes`), or a file; what else is given wins over it.
        settings: fields of `FitConfig`.
        convert: accept images that preprocessing must enlarge more than twofold, or change the channels of.
        adapt: fit classes, channels and resolution of a timm name to the data; a run gets a fresh classifier where
            the data has other classes than it.
        teacher: run folder, or timm name: with its pretrained weights, or with `teacher_weights` (safetensors).
        distill: "soft", "hard", "token" or "method"; `alpha` and `temperature`: see `training.Distill`.
        mean, std, crop_pct, interpolation: preprocessing of a timm name in the place of timm's configuration, a mean
            and a standard deviation (of pixels in 0 to 1) for each channel; saved in what is made from it.
        seed: of everything random; None is the recipe's, or 0.
        out: run folder; default: `runs/NAME`. resume: go on with the interrupted run in it.
        tensorboard: write `tensorboard/` into the run folder too.

    Raises:
        BadInput: settings, model, recipe or folder that are not accepted, or a model that does not fit the data.
        Refused: a lean model that the recipe does not start from.
        Interrupted: stopped by Ctrl-C or SIGTERM, with its state saved.
    """
    watch = Stopwatch("train", command)
    world = join_world()
    say = say if world.first else silent
    asked = ask(
        name,
        recipe=recipe,
        settings=settings,
        seed=seed,
        model_args=model_args,
        pretrained=pretrained,
        weights=weights,
        teacher=teacher,
        teacher_weights=teacher_weights,
        distill=distill,
        alpha=alpha,
        temperature=temperature,
        mean=mean,
        std=std,
        crop_pct=crop_pct,
        interpolation=interpolation,
        say=say,
    )
    if resume and out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    if resume and not (Path(str(out)) / STATE).is_file():
        raise BadInput(f"--resume: {out} holds no training to go on with (there is no {STATE} in it)")
    ready = prepare(asked, data, adapt=adapt, convert=convert, limit=limit, say=say)
    start, dataset, validation = ready.start, ready.dataset, ready.validation
    base = start.base
    folder = world.from_first(
        lambda: require_writable(out) if resume and out else new_folder(out, base, overwrite=overwrite)
    )
    check_run(
        start.model,
        dataset,
        preprocess=start.preprocess,
        config=ready.config,
        validate=validation,
        convert=ready.convert,
    )
    if world.first:
        clear_run(folder, overwrite=overwrite and not resume)
    shown: list[Any] = [TensorBoardLog(folder / TENSORBOARD)] if tensorboard else []
    shown = shown if world.first else []
    say(f"learning rate {asked.config.lr_text}, {ready.config.batch_size * ready.config.accumulate} images a step")

    history = start.model.history
    if world.size > 1:
        start.model.to(training_device())
    result = fit(
        start.model,
        dataset.cached(),
        preprocess=start.preprocess,
        config=ready.config,
        objective=ready.objective,
        callbacks=[*shown, *_steering(start), *progress(say)],
        out=folder,
        resume=resume,
        validate=validation.cached(),
        convert=ready.convert,
    )
    final: Any = result.final
    final.history = history
    final.cpu().eval()
    info = {
        "data": data,
        "training": asked.config.to_json(),
        "top1": result.last_top1,
        "machine": environment()["cpu"],
        **asked.record(),
        **_earlier(start),
    }
    with world.together():
        if world.first:
            save(
                final,
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
    return Trained(folder, start.name, asked.config.epochs, watch.seconds, top1, metric)


def prepare(asked: Asked, data: str, *, adapt: bool, convert: bool, limit: int | None, say: Say) -> Ready:
    """Open data, build the model and its teacher, and check that they fit. Nothing is written."""
    seed = asked.config.seed
    start = None if adapt else start_model(asked, adapt_to=None, say=say)
    dataset = open_split(data, "train", seed=seed, limit=limit, say=say)
    validation = open_split(data, "val", seed=seed, limit=limit, say=say)
    start = start or start_model(asked, adapt_to=dataset, say=say)
    convert = require_fit(start, dataset, adapted=adapt, convert=convert or asked.convert, trains=True)
    start = with_range_of(dataset, start)
    goal, config = objective(asked, start, dataset, say=say)
    return Ready(start, dataset, validation, config, goal, convert)


def _steering(start: Loaded) -> list[Any]:
    """The callbacks of the methods that a lean model carries."""
    methods = [plan.method() for plan in start.model.history.plans]
    return [c for m in methods if hasattr(m, "callbacks") for c in m.callbacks(start.model)]


def _earlier(start: Loaded) -> dict[str, Any]:
    """What a run that is trained on says of its training: the stages before this one, oldest first."""
    if start.folder is None:
        return {}
    told = ("data", "training", "recipe", "distill", "top1", "machine")
    stage = {key: start.info[key] for key in told if key in start.info}
    return {"from": start.name if start.reference else start.base, "stages": [*start.info.get("stages", []), stage]}
