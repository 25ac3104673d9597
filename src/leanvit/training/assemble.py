"""Everything that `fit` builds and refuses before its first step, and what identifies a run when it is resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import nn

from leanvit import tasks
from leanvit.arguments import require_dataset, require_model
from leanvit.data import AnyDataset, Augment, Preprocess, check_fits, epoch_length, require_labels
from leanvit.data.depth import range_text
from leanvit.data.fields import check_augment, check_mixing
from leanvit.data.identity import identity
from leanvit.data.loading import PAIRINGS
from leanvit.errors import BadInput, CheckpointError
from leanvit.knobs import Choice, Count, check
from leanvit.tasks import Task
from leanvit.tasks.objectives import Objective
from leanvit.training.batch_norms import require_values
from leanvit.training.callbacks import Run, deploy_model, prepare_model, saved_callbacks
from leanvit.training.checkpoint import BEST, DATA, STATE, VALIDATION, read_position
from leanvit.training.config import FitConfig
from leanvit.training.layer_groups import layer_scales
from leanvit.training.locked import check_locked, flags_of, lock, set_flags
from leanvit.training.optimizers import make_optimizer
from leanvit.training.parallel import TrainStep, replicated, sharded_copy
from leanvit.training.schedule import check_course
from leanvit.training.whole_batch import WholeBatch
from leanvit.training.world import World, join_world
from leanvit.training.zeros import sparse_of

FREE_ON_RESUME = ("workers", "save_every", "parallel")  # these never change a result, beyond rounding


def assemble(
    model: nn.Module,
    dataset: AnyDataset,
    preprocess: Preprocess,
    config: FitConfig,
    *,
    objective: Objective | None,
    validate: AnyDataset | None,
    convert: bool = False,
    callbacks: Sequence[object] = (),
    task: Task | str | None = None,
) -> Run:
    """Build optimiser, averaged model and mixing for a run. Raises BadInput for what does not fit together.

    Callbacks put their temporary modules into the model, and `locked` parts are taken out of the training: `release`
    undoes both, and has done so where this raises.
    """
    task = task_of_run(model, dataset, objective, task)
    if objective is None:
        task.check("training without an objective", model=model)
        task.check("training", dataset=dataset)
    else:
        _fit_to_data(objective, model, dataset)
    steps_per_epoch = check_run(
        model, dataset, preprocess=preprocess, config=config, validate=validate, convert=convert, task=task
    )
    if objective is not None and objective.learns not in ("", task.label_kind):
        raise BadInput(
            f"objective {type(objective).__name__} does not suit {dataset.spec!r} ({task.words}): give "
            f"{task.objective_words} one, or None"
        )
    if objective is not None and config.label_smoothing:
        raise BadInput(
            f"label_smoothing={config.label_smoothing} is of the default objective, but an objective is given: "
            f"give it there, as in CrossEntropy(label_smoothing={config.label_smoothing}), and 0 in the config"
        )
    objective = objective or task.objective(label_smoothing=config.label_smoothing)
    objective.check_classes(dataset.classes)
    _require_steps(objective, model, config, join_world())
    flags = flags_of(model) if config.locked else {}
    prepare_model(model, callbacks, seed=config.seed)
    try:
        lock(model, config.locked)
        saved = saved_callbacks(callbacks, objective)
        return _built(
            model,
            dataset,
            preprocess,
            config,
            objective,
            task,
            steps_per_epoch=steps_per_epoch,
            flags=flags,
            saved=saved,
        )
    except BaseException:
        release(model, callbacks, flags)
        raise


def _fit_to_data(objective: Objective, model: nn.Module, dataset: AnyDataset) -> None:
    """Give the task that an objective is made of what the data says of its fields. Raises BadInput for data, or a
    model, that does not suit it."""
    what = f"objective {type(objective).__name__}"
    if objective.needs_labels:
        require_labels(dataset, what)
    if (own := tasks.stated(objective)) is not None and not own.label_kind:
        own.check(what, model=model, dataset=dataset)
        objective.task = own.fitted(dataset)


def task_of_run(model: nn.Module, dataset: AnyDataset, objective: Objective | None, given: Task | str | None) -> Task:
    """What a run learns and is judged by: the task that is given, the objective's, the model's, or the data's."""
    return tasks.of(model, dataset, tasks.read_task(given) or tasks.stated(objective))


def release(model: nn.Module, callbacks: Sequence[object], flags: Mapping[str, bool]) -> None:
    """Take temporary modules out of a model that was trained, and let its parameters require a gradient as before."""
    deploy_model(model, callbacks)
    set_flags(model, flags)


def _built(
    model: nn.Module,
    dataset: AnyDataset,
    preprocess: Preprocess,
    config: FitConfig,
    objective: Objective,
    task: Task,
    *,
    steps_per_epoch: int,
    flags: Mapping[str, bool],
    saved: Mapping[str, nn.Module],
) -> Run:
    world = join_world()
    for module in (objective, *saved.values()):
        module.to(next(model.parameters()).device)
    trained, averager, forward = _spread(model, objective, preprocess, config, world)
    mixup = Mixup(
        config.mixup,
        config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.mix_switch_prob,
        label_smoothing=0.0,
        num_classes=len(dataset.classes),
    )
    return Run(
        model=trained,
        given=model,
        objective=objective,
        optimizer=make_optimizer(trained, objective, config),
        config=config,
        preprocess=preprocess,
        steps_per_epoch=steps_per_epoch,
        averager=averager,
        saved=saved,
        flags=flags,
        sparse=sparse_of(trained, objective),
        mix=mixup if config.mixes else None,
        task=task,
        world=world,
        forward=forward,
        scaler=torch.amp.GradScaler(next(model.parameters()).device.type, enabled=config.amp == "fp16"),
    )


def _spread(
    model: nn.Module, objective: Objective, preprocess: Preprocess, config: FitConfig, world: World
) -> tuple[nn.Module, ModelEmaV3 | None, nn.Module]:
    """(model that is trained, averaged model, the step's forward) as they lie on the processes."""
    sharding = config.parallel == "fsdp2" and world.size > 1
    trained = sharded_copy(model) if sharding else model
    objective.bind(trained, preprocess)
    averager = None
    if config.ema_decay is not None:
        averager = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
        averager.module = sharded_copy(averager.module) if sharding else averager.module
    step = TrainStep(trained, objective)
    if config.compile:
        trained.compile()  # in place: names of parameters stay; `fit` takes it off again
    if sharding:
        model.cpu()  # its memory is for the shares now; the weights come back at the end
    return trained, averager, step if sharding else replicated(step, world)


def _require_steps(objective: Objective, model: nn.Module, config: FitConfig, world: World) -> None:
    """Raise BadInput for an objective whose steps cannot be taken as it says of itself."""
    name = type(objective).__name__
    check(f"pieces of {name}", objective.pieces, Count)
    check(f"pairing of {name}", objective.pairing, Annotated[str, Choice(PAIRINGS)])
    if objective.pieces > 1 and type(objective).piece is Objective.piece:
        raise BadInput(f"{name} has pieces={objective.pieces}, but does not define piece(number, ...), which gives one")
    if isinstance(objective, WholeBatch):
        objective.share_out(model, config, world)


def require_kinds(model: Any, dataset: Any, preprocess: Any, config: Any, validate: Any) -> None:
    """Raise BadInput, with what to write, for an argument of `fit` that is a text, a path or another object."""
    require_model(model)
    require_dataset(dataset, "dataset")
    if validate is not None:
        require_dataset(validate, "validate", "val")
    if not isinstance(preprocess, Preprocess):
        raise BadInput(f"preprocess is {preprocess!r}; accepted: a Preprocess, as Preprocess.of(model) gives")
    if not isinstance(config, FitConfig):
        raise BadInput(f"config is a {type(config).__name__}; accepted: a FitConfig, as FitConfig(epochs=10)")


def check_run(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    config: FitConfig,
    validate: AnyDataset | None = None,
    convert: bool = False,
    task: Task | str | None = None,
) -> int:
    """Raise BadInput unless model, data and recipe fit, as `fit` will; returns the steps of an epoch."""
    require_kinds(model, dataset, preprocess, config, validate)
    require_float32(model, "training")
    own = tasks.of(model, dataset, tasks.read_task(task))
    check_fits(model, preprocess, dataset, convert=convert, trains=True, classes=bool(own.label_kind))
    if validate is not None:
        own.check_judging("validate=", model=model, dataset=validate)
    if validate is not None and list(validate.classes) != list(dataset.classes):
        raise BadInput(
            f"validate has other classes than the training data: {len(validate.classes)} "
            f"({_some(validate.classes)}) against {len(dataset.classes)} ({_some(dataset.classes)}): "
            "give both splits of one data set"
        )
    if validate is not None and validate.label_kind != dataset.label_kind:
        raise BadInput("the training data or validate is multi-label, the other is not: give two of one kind")
    ranges = [one.pixel_range for one in (dataset, validate) if one is not None and one.pixel_range is not None]
    if len(set(ranges)) > 1:
        raise BadInput(
            f"values of black and white are {range_text(ranges[0])} in the training data and {range_text(ranges[1])} "
            "in validate: give both the same ?range=LOW-HIGH"
        )
    if (augment := Augment.of(config.augment)) is not None:
        augment.check_channels(preprocess.input_size[0])
        check_augment(augment, dataset.fields)
    if config.mixes:
        require_labels(dataset, "mixup and cutmix")
        check_mixing(dataset.fields)
    if config.mixes and not own.mixes:
        raise BadInput(
            f"mixup={config.mixup} and cutmix={config.cutmix} mix images of one class each, but {dataset.spec!r} is "
            f"{own.words}: set both to 0"
        )
    world = join_world()
    _require_divisible(config, world)
    steps = _steps_per_epoch(dataset, config)
    check_course(config, steps)
    check_locked(model, config.locked)
    layer_scales(model, config)
    require_values(model, preprocess, config, world.size)
    return steps


def require_float32(model: nn.Module, what: str) -> None:
    """Raise BadInput for a model in half precision, with the way to what it is meant for."""
    half = next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        name = str(half).removeprefix("torch.")
        amp = {"float16": "fp16", "bfloat16": "bf16"}[name]
        raise BadInput(
            f"the model holds {name} parameters, {what} needs float32: call model.float() first. Training runs its "
            f"forwards in {name} with amp={amp!r}; save(..., stored_as={name!r}) makes a small file"
        )


def claim_folder(out: Path, run: Run, *, resume: bool) -> None:
    """Make the run's folder. Raises BadInput where it cannot hold the run, or holds an unfinished one."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"out={str(out)!r} is a file: give a folder")
    folder = (out / STATE).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"out={str(out)!r} cannot be written: {error}; give another folder") from error
    free, needed = shutil.disk_usage(out).free, bytes_needed(run)
    if free < needed:
        raise BadInput(
            f"out={str(out)!r} has {free / 1e6:.0f} MB free, but the run needs {needed / 1e6:.0f} MB: "
            "make room, or give a folder on another disk"
        )
    if (out / STATE).exists() and not resume:
        progress = read_position(out / STATE).progress
        if progress.get("step") != progress.get("total_steps") and not progress.get("stopped"):
            raise BadInput(
                f"out={str(out)!r} holds a run that stopped at step {progress.get('step')} of "
                f"{progress.get('total_steps')}: give resume=True to continue it, or another folder"
            )
    if not resume:
        (out / BEST).unlink(missing_ok=True)  # of the run that was here: its weights are not to lie beside a new log


def clear_leftovers(out: Path) -> None:
    """Remove the temporary files of a save that was killed: write_atomic's, and safetensors' own."""
    folder = (out / STATE).parent
    for leftover in (*folder.glob(".*.part"), *folder.glob(".tmp*")):
        leftover.unlink(missing_ok=True)


def modules_of(run: Run) -> dict[str, nn.Module]:
    """The modules whose tensors make the state of a run, by their prefix in its file."""
    saved = {f"callback.{name}": module for name, module in run.saved.items()}
    modules = {"model": run.model, "objective": run.objective, **saved}
    return modules if run.ema is None else {**modules, "ema": run.ema}


def about_run(run: Run, dataset: AnyDataset, validate: AnyDataset | None) -> dict[str, Any]:
    """What must be equal for a run to be resumed (JSON)."""
    return {
        **recipe_of(run.config),
        "dataset": f"{dataset.name} {dataset.split}, {len(dataset)} images",
        "preprocess": run.preprocess.fingerprint(),
        "objective": repr(run.objective),
        **({"saved callbacks": list(run.saved)} if run.saved else {}),
        DATA: identity(dataset),
        **({} if validate is None else {VALIDATION: identity(validate)}),
    }


def recipe_of(config: FitConfig, *, every: bool = False) -> dict[str, Any]:
    """The fields of a recipe that change a result (JSON); with `every`, also those that are recorded only where set."""
    return {name: value for name, value in config.to_json(every=every).items() if name not in FREE_ON_RESUME}


def progress_of(run: Run) -> dict[str, Any]:
    """Where the run stands (JSON)."""
    return {
        "step": run.step,
        "total_steps": run.total_steps,
        "epoch_sums": run.epoch_sums,
        "history": run.history,
        "best_top1": run.best_score,  # by the name that it has in states of before
        "seconds": run.seconds,
        "skipped": run.skipped,
        "stopped": run.stopped,
        "scaler": run.scaler.state_dict(),
    }


def restore_progress(run: Run, progress: Mapping[str, Any]) -> None:
    """Take up `progress_of` again. Raises CheckpointError where it contradicts itself."""
    try:
        step, history = int(progress["step"]), list(progress["history"])
        run.epoch_sums = {str(name): float(total) for name, total in progress["epoch_sums"].items()}
        run.best_score, run.seconds = progress["best_top1"], float(progress["seconds"])
        run.skipped, run.stopped = int(progress.get("skipped", 0)), bool(progress.get("stopped", False))
        run.scaler.load_state_dict(progress.get("scaler") or run.scaler.state_dict())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the training state's progress is not understood: {error!r}") from error
    into_epoch = step - len(history) * run.steps_per_epoch
    early = run.stopped or (step == run.total_steps and len(history) == run.epochs)  # it may have closed its last epoch
    least = -run.steps_per_epoch if early else 0
    if not least <= into_epoch <= run.steps_per_epoch or step > run.total_steps or (run.stopped and not history):
        raise CheckpointError(f"the training state is at step {step}, but has {len(history)} finished epochs")
    if run.config.optimizer == "lamb":  # timm's counts its steps in the groups, which are not saved
        for group in run.optimizer.param_groups:
            group["step"] = torch.tensor(float(step))
    run.step, run.history = step, history
    run.epoch = len(history)


def _require_divisible(config: FitConfig, world: World) -> None:
    """Every process takes the same number of images of a batch, in pairs where they are mixed."""
    by = world.size * (2 if config.mixes else 1)
    if world.size > 1 and config.batch_size % by:
        pairs = ", in pairs as they are mixed" if config.mixes else ""
        raise BadInput(
            f"batch_size={config.batch_size} is not accepted with {world.size} processes, which share a batch{pairs}: "
            f"give a multiple of {by}"
        )


def _steps_per_epoch(dataset: AnyDataset, config: FitConfig) -> int:
    images = config.batch_size * config.accumulate
    steps = epoch_length(dataset, config.repeats) // config.batch_size // config.accumulate
    if not steps:
        raise BadInput(
            f"batch_size={config.batch_size} with accumulate={config.accumulate} needs {images} images a step, "
            f"but {dataset.name} has {len(dataset)}: give a smaller batch_size (--batch-size), "
            f"up to {len(dataset) // config.accumulate}"
        )
    return steps


def bytes_needed(run: Run) -> int:
    """Room on the disk that a run needs, at the moment when an old state and a new one are both there."""

    def size(module: nn.Module) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())

    moments = 2 * sum(p.numel() * 4 for group in run.optimizer.param_groups for p in group["params"])
    state = sum(size(module) for module in modules_of(run).values()) + moments
    return 2 * state + 2 * size(run.model)  # the old file stays until the new one is whole


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
