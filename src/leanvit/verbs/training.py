"""`train`: a model, from a timm name or a recipe (or on from a run), saved as a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leanvit import tasks
from leanvit.anatomy import OpenModel
from leanvit.arguments import require_path
from leanvit.data import AnyDataset, require_labels
from leanvit.errors import BadInput, CheckpointError
from leanvit.measure import environment
from leanvit.recipe import knobs_of, save
from leanvit.recipe.protocol import Achieves
from leanvit.recipe.text import as_text
from leanvit.recipe.training_methods import callbacks_of, shapes
from leanvit.runs.clearing import clear_run
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder, require_writable
from leanvit.runs.layout import TENSORBOARD
from leanvit.runs.locking import locked, refuse_if_held
from leanvit.runs.logs import keep_logs
from leanvit.runs.saving import TargetRow
from leanvit.runs.token_maps import keep_tokens
from leanvit.tasks import Task, read_task
from leanvit.training import FitConfig, FitResult, Objective, TensorBoardLog, check_run, fit
from leanvit.training.checkpoint import STATE, read_position
from leanvit.training.engine import KEEPS
from leanvit.training.world import join_world, training_device
from leanvit.verbs.fitting import require_fit, with_classes_of, with_range_of, with_task
from leanvit.verbs.models import Loaded, Log, log_bad, open_split, row_name, silent
from leanvit.verbs.progress import progress
from leanvit.verbs.requesting import (
    TrainingRequest,
    objective,
    start_model,
    training_request,
    with_fitting_batch,
    with_methods,
)


@dataclass(frozen=True)
class Trained:
    """What a training run gave."""

    folder: Path
    label: str
    epochs: int
    seconds: float
    score: float | None  # of what was saved, on the validation split, in `unit`
    metric: str = "top-1"
    unit: str = "%"
    epoch: int = 0  # whose weights were saved, from 1
    best_epoch: int | None = None  # whose validation was the best; None where there was none

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Ready:
    """Everything that a training needs, checked; nothing has been written."""

    request: TrainingRequest  # with defaults fitted to the data
    start: Loaded
    dataset: AnyDataset
    validation: AnyDataset
    config: FitConfig
    objective: Objective | None
    convert: bool
    task: Task

    @property
    def judged(self) -> AnyDataset | None:
        """What the model is validated on: None where its task judges nothing, or the data lacks its fields."""
        return (
            self.validation if self.task.judges and set(self.task.reads) <= set(self.validation.field_names) else None
        )


def train(
    name: str | Path | None,
    data: str,
    *,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    adapt: bool = False,
    convert: bool = False,
    class_names: str = "by-name",
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
    methods: Sequence[Any] = (),
    task: Task | str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    keep: str = "last",
    log: Log = silent,
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
        class_names: of a run that is trained on: how the data's classes are found among its own, see `measure`.
        convert: accept images that preprocessing must enlarge more than twofold, or change the channels of.
        adapt: fit classes, channels and resolution of a timm name to the data; a run gets a fresh classifier where
            the data has other classes than it.
        teacher: run folder, or timm name: with its pretrained weights, or with `teacher_weights` (safetensors).
        distill: "soft", "hard", "token" or "method"; `alpha` and `temperature`: see `training.Distill`.
        mean, std, crop_pct, interpolation: preprocessing of a timm name in the place of timm's configuration, a mean
            and a standard deviation (of pixels in 0 to 1) for each channel; saved in what is made from it.
        methods: ways to train (methods of kind "train"), like `parse_with("gmm_mask")`: parts that are put into the
            model first, an objective (of one method) in the place of the loss, callbacks.
        task: what the outputs mean, a task of `leanvit.tasks` or as `--task` takes it: "segmentation:ignore=11";
            default: as the run says, else what the labels of the data are for.
        seed: of everything random; None is the recipe's, or 0.
        out: run folder; default: `runs/NAME`. resume: go on with the interrupted run in it.
        tensorboard: write `tensorboard/` into the run folder too.
        keep: the weights that are saved, of the "last" epoch or of the "best" one on the validation split. Both are
            kept while it trains, so a resumed run, a finished one too, may ask for the other.

    Raises:
        BadInput: settings, methods, model, recipe or folder that are not accepted, or a model that does not fit the
            data.
        Refused: a lean model that the recipe does not start from; methods that do not fit the model or one another.
        Interrupted: stopped by Ctrl-C or SIGTERM, with its state saved.
    """
    watch = Stopwatch("train", command)
    if name is not None:
        require_path(name, "name")
    world = join_world()
    log = log if world.first else silent
    request = training_request(
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
        methods=methods,
        log=log,
    )
    if resume and out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    with world.together():
        if out is not None and world.first:
            refuse_if_held(Path(out))
    if resume and not (Path(str(out)) / STATE).is_file():
        raise BadInput(
            f"--resume: {out} holds no training to go on with (there is no {STATE} in it): "
            "leave --resume out to begin one"
        )
    if keep not in KEEPS:
        raise BadInput(f"--keep is {keep!r}; accepted: {' or '.join(KEEPS)}")
    batch = _batch_so_far(Path(str(out))) if resume else None
    ready = prepare(
        request,
        data,
        adapt=adapt,
        convert=convert,
        class_names=class_names,
        limit=limit,
        batch=batch,
        task=task,
        log=log,
    )
    request = ready.request
    if keep == "best":
        ready.task.check_judging("--keep best", dataset=ready.validation)
    if overwrite and out is not None and ready.start.home is not None and _same(ready.start.home, out):
        raise BadInput(f"--out {out} is the run that is trained on, which --overwrite would remove: give another path")
    name = "-".join([ready.start.base, *(m.slug for m in methods)])
    claim = partial(new_folder, out, name, overwrite=overwrite, log=log)
    with ExitStack() as held:

        def claimed() -> Path:
            path = require_writable(out) if resume and out else claim()
            held.enter_context(locked(path, command=command, log=log))
            return path

        folder = world.from_first(claimed)
        return _trained(
            ready,
            folder,
            data,
            watch,
            keep=keep,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            log=log,
        )


def _same(one: Path, other: str | Path) -> bool:
    return one.resolve() == Path(other).resolve()


def _trained(
    ready: Ready,
    folder: Path,
    data: str,
    watch: Stopwatch,
    *,
    keep: str,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    log: Log,
) -> Trained:
    """Train into a folder that is this process's own, and save."""
    world, request = join_world(), ready.request
    start, dataset, validation = ready.start, ready.dataset, ready.validation
    check_run(
        start.model,
        dataset,
        preprocess=start.preprocess,
        config=ready.config,
        validate=ready.judged,
        task=ready.task,
        convert=ready.convert,
    )
    if world.first and not resume:
        clear_run(folder, overwrite=overwrite)
    shown: list[Any] = [TensorBoardLog(folder / TENSORBOARD)] if tensorboard else []
    shown = shown if world.first else []
    log(f"learning rate {request.config.lr_text}, {ready.config.batch_size * ready.config.accumulate} images a step")

    history = start.model.history
    if world.size > 1:
        start.model.to(training_device())
    result = fit(
        start.model,
        dataset.cached(),
        preprocess=start.preprocess,
        config=ready.config,
        objective=ready.objective,
        callbacks=[*shown, *steering(ready), *progress(log)],
        out=folder,
        resume=resume,
        validate=None if ready.judged is None else ready.judged.cached(),
        task=ready.task,
        convert=ready.convert,
        keep=keep,
        about=_about(request),
    )
    final: Any = result.final
    final.history = history
    final.cpu().eval()
    info = {
        "data": data,
        "training": request.config.to_json(),
        **_scored(result),
        "epoch": result.epoch,
        "machine": environment()["cpu"],
        **request.record(),
        **({"asked": rows} if (rows := _target_rows(request, final)) else {}),
        **_earlier(start),
    }
    with world.together():
        if world.first:
            save(
                final,
                folder,
                preprocess=start.preprocess,
                info=info,
                overwrite=resume or overwrite,
            )
            keep_logs(start.folder, folder)
            keep_tokens(folder, final, validation, start.preprocess, name=row_name(final))
            watch.record(folder, before=start.commands)
            log_bad(log, dataset, validation)
    metric = result.task.metric
    score = None if result.score is None else metric.shown(result.score)
    log(_kept(result, folder))
    label = " + ".join([start.name, *(m.slug for m in request.methods)])
    epochs = request.config.epochs or len(result.history)
    return Trained(
        folder, label, epochs, watch.seconds, score, metric.title, metric.unit, result.epoch, result.best_epoch
    )


def _batch_so_far(folder: Path) -> int | None:
    """The batch size of a training that is resumed; None where its state is damaged, which is reported later."""
    try:
        return read_position(folder / STATE).about.get("batch_size")
    except CheckpointError:
        return None


def _scored(result: FitResult[Any]) -> dict[str, Any]:
    """The score as a run's record has it: of labels by the name that it has always had there."""
    if result.task.label_kind:
        return {"top1": result.score}
    return {"score": {"metric": result.task.metric.name, "value": result.score}}


def _kept(result: FitResult[Any], folder: Path) -> str:
    """In one line, which epoch's weights were saved, and whether there were better ones."""
    last = len(result.history)
    kept = f"kept: epoch {result.epoch} of {last}"
    if result.best_score is None:
        return f"{kept}, the last"
    if result.epoch == result.best_epoch:
        return f"{kept}, {'the last and the best' if result.epoch == last else 'the best'}"
    if result.last_score == result.best_score:
        return f"{kept}, the last; none was better"
    return (
        f"{kept}, the last; the best was epoch {result.best_epoch} with {result.task.metric.text(result.best_score)}: "
        f"--keep best keeps it (now too: the same command with --out {shlex.quote(str(folder))} --resume)"
    )


def prepare(
    request: TrainingRequest,
    data: str,
    *,
    adapt: bool,
    convert: bool,
    limit: int | None,
    log: Log,
    class_names: str = "by-name",
    batch: int | None = None,
    task: Task | str | None = None,
) -> Ready:
    """Open data, build the model and its teacher, and check that they fit. Nothing is written.

    batch: the batch size of a training that is gone on with, where none is given.
    """
    told = read_task(task)
    seed = request.config.seed
    start = None if adapt else start_model(request, adapt_to=None, log=log)
    dataset = open_split(data, "train", seed=seed, limit=limit, log=log)
    validation = open_split(data, "val", seed=seed, limit=limit, log=log, beside=dataset)
    start = start or start_model(request, adapt_to=dataset, log=log)
    start = with_task(start, told, dataset, log=log)
    task = tasks.of(start.model, dataset)
    task.check("train", model=start.model)
    if not request.methods:  # else it depends on the objective that one may bring
        task.check("train", dataset=dataset, instead="or a way to train that needs none (--with)")
    convert = require_fit(
        start, dataset, adapted=adapt, convert=convert or request.convert, trains=True, class_names=class_names
    )
    start = with_range_of(dataset, start)
    dataset = with_classes_of(start, dataset, class_names=class_names, trains=True, log=log)
    validation = with_classes_of(start, validation, class_names=class_names, trains=True)
    request = with_fitting_batch(request, dataset, was=batch, log=log)
    start = with_methods(request, start, dataset, log=log)
    goal, config = objective(request, start, dataset, task, log=log)
    if goal is None:
        task.check("train", dataset=dataset)
    elif goal.needs_labels:
        require_labels(dataset, f"train by {type(goal).__name__}")
    return Ready(request, start, dataset, validation, config, goal, convert, task)


def steering(ready: Ready) -> list[Any]:
    """The callbacks of the methods in the model's history, and of those that the training alone is given."""
    model = ready.start.model
    carried = [plan.method() for plan in model.history.plans]
    return callbacks_of([*carried, *(m for m in ready.request.methods if not shapes(m))], model)


def _about(request: TrainingRequest) -> dict[str, Any] | None:
    """What the objective and the callbacks come from."""
    if not request.methods:
        return None
    taught = {} if request.distill is None else {"teacher": request.distill.teacher}
    return {"methods": [as_text(m) for m in request.methods], **taught}


def _target_rows(request: TrainingRequest, model: OpenModel) -> list[dict[str, Any]]:
    """A row for each way to train that counts what it achieved."""
    plans = {plan.slug: plan for plan in model.history.plans}
    counting: list[Any] = [m for m in request.methods if isinstance(m, Achieves)]
    rows = []
    for m in counting:
        structure = dict(plans[m.slug].structure) if shapes(m) else {}
        rows.append(TargetRow(m.slug, knobs_of(m), dict(m.achieved(model, structure))).to_json())
    return rows


def _earlier(start: Loaded) -> dict[str, Any]:
    """The earlier training stages of a run that is trained further, oldest first."""
    if start.folder is None:
        return {}
    keys = ("data", "training", "recipe", "distill", "methods", "recovered_with", "top1", "score", "machine")
    stage = {key: start.info[key] for key in keys if key in start.info}
    return {"from": start.name if start.reference else start.base, "stages": [*start.info.get("stages", []), stage]}
