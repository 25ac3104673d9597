"""The training loop, to be read from top to bottom.

Nothing in it depends on how a run got where it is: order and augmentation of the data follow from (seed, epoch, key),
mixing and drop path from (seed, step), the learning rate from the step. So a run that is killed and resumed ends with
the weights of the run that was not.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

from torch import nn

from leanvit.anatomy import OpenModel
from leanvit.data import AnyDataset, Batch, Preprocess, for_model, loader
from leanvit.errors import BadInput, CheckpointError
from leanvit.knobs import Choice, check
from leanvit.tasks import Task
from leanvit.tasks.objectives import Objective
from leanvit.training.allocator import keep_freed_memory
from leanvit.training.assemble import (
    about_run,
    assemble,
    claim_folder,
    clear_leftovers,
    modules_of,
    progress_of,
    recipe_of,
    release,
    require_kinds,
    restore_progress,
    task_of_run,
)
from leanvit.training.callbacks import JsonlLog, Run, check_callbacks, deploy_model, notify, preparing
from leanvit.training.checkpoint import BEST, LOG, STATE, Position, load_state, read_weights, save_state, save_weights
from leanvit.training.config import FitConfig
from leanvit.training.locked import into_training
from leanvit.training.parallel import (
    is_sharded,
    whole_state,
)
from leanvit.training.schedule import lr_at
from leanvit.training.signals import Interrupted, StopRequested, StopSignals
from leanvit.training.step import take_step
from leanvit.training.validating import validated
from leanvit.training.zeros import count_zeros, require_zeros

M = TypeVar("M", bound=nn.Module)
KEEPS = ("last", "best")


@dataclass(frozen=True)
class FitResult(Generic[M]):
    """What a run gave. Scores are those of the task (`task.metric`: top-1, mean average precision, ...), of `ema` where
    there is one; those in percent are fractions. The history has them by the metric's name."""

    model: M  # the model that was given, trained in place, in eval mode
    ema: M | None  # the averaged model, if the recipe has one
    history: list[dict[str, Any]]  # a row per epoch: epoch, step, lr, loss and its parts, grad_norm, score, seconds
    task: Task  # what it learned, and was judged by
    best_score: float | None
    last_score: float | None
    steps: int  # optimiser steps, those before a resume included
    seconds: float  # likewise
    best_weights: Path | None  # weights of the best epoch, when `out` and `validate` were given
    best_epoch: int | None  # the epoch of `best_score`, from 1
    epoch: int  # the epoch, from 1, whose weights `final` has: the last, or with keep="best" the best

    @property
    def final(self) -> M:
        """The model to use: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema

    @property
    def score(self) -> float | None:
        """What validation gave for `final`."""
        return self.best_score if self.epoch == self.best_epoch else self.last_score


def fit(
    model: M,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    config: FitConfig,
    objective: Objective | None = None,
    callbacks: Sequence[object] = (),
    out: str | Path | None = None,
    resume: bool = False,
    validate: AnyDataset | None = None,
    convert: bool = False,
    keep: str = "last",
    about: Mapping[str, Any] | None = None,
    task: Task | str | None = None,
) -> FitResult[M]:
    """Train `model` in place on the device that it is on; under torchrun, on all processes together.

    Every process makes the same call; the first one writes. The result is that of one process, up to rounding.

    Weights that were pruned to zeros (`model.sparse`) stay exact zeros.

    Classes: where the outputs of an opened model have names (`model.classes`), the data's are matched with them by
    name; else there are as many classes as outputs, in order, and the outputs get the data's names.

    Args:
        objective: what to minimise; by default the task's: cross-entropy with the recipe's label smoothing.
        callbacks: see `leanvit.training.callbacks`. What they put into the model for the while is out again when this
            returns or raises.
        out: run folder, the same for all processes; it gets `training/` (resumable state, weights of the best epoch)
            and `train.jsonl`. None writes nothing.
        resume: continue the run in `out` at its exact step, mid-epoch included.
        validate: data whose score is taken after each epoch.
        convert: accept what preprocessing can bridge between data and model (`data.check_fits`).
        keep: which weights `final` ends with: "last", those of the last epoch, or "best", those of the epoch whose
            validation was the best. It changes no step: a resumed run may ask for the other one.
        about: JSON data that must be equal, too, when the run is resumed: what its objective and callbacks come from.
        task: what the outputs mean (`leanvit.tasks`); default: the objective's task, the model's (`model.task`), else
            what the labels of the data are for.

    Raises:
        BadInput: arguments, data or the folder do not fit (before the first step).
        CheckpointError: the state to resume is damaged.
        NonFiniteLoss: the loss or its gradient is not finite.
        LeanvitError: a callback filled weights that were pruned to zeros.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved (a KeyboardInterrupt).
    """
    out = None if out is None else Path(out)
    check_callbacks(callbacks)
    if resume and out is None:
        raise BadInput("resume=True needs out=, the folder of the run to continue")
    check("keep", keep, Annotated[str, Choice(KEEPS)])
    if keep == "best" and (validate is None or out is None):
        raise BadInput("keep='best' needs validate=, which decides the best epoch, and out=, the folder of its weights")
    require_kinds(model, dataset, preprocess, config, validate)
    task = task_of_run(model, dataset, objective, task)
    if task.label_kind:
        if validate is not None and sorted(validate.classes) == sorted(dataset.classes):
            validate = for_model(validate, model, exact=True, log=lambda line: None)
        dataset = for_model(dataset, model, exact=True)
    zeros = count_zeros(model)
    run = assemble(
        model,
        dataset,
        preprocess,
        config,
        objective=objective,
        validate=validate,
        convert=convert,
        callbacks=callbacks,
        task=task,
    )
    try:
        _run(run, dataset, callbacks, out=out, resume=resume, validate=validate, about=about or {})
        ema = _give_back(run, model)
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        if config.compile:
            model._compiled_call_impl = None  # type: ignore[assignment]
        release(model, callbacks, run.flags)
        model.eval()
    if ema is not None:
        release(ema, callbacks, run.flags)
    for trained in (model, *([] if ema is None else [ema])):
        require_zeros(trained, zeros)
    return _result(run, model, ema, dataset, out=out, validate=validate, keep=keep)


def _run(
    run: Run,
    dataset: AnyDataset,
    callbacks: Sequence[object],
    *,
    out: Path | None,
    resume: bool,
    validate: AnyDataset | None,
    about: Mapping[str, Any],
) -> None:
    """The epochs of `fit`, between what is built and what is given back."""
    config, world = run.config, run.world
    about = {**about_run(run, dataset, validate), **about}
    with world.together():
        if out and world.first:
            claim_folder(out, run, resume=resume)
    if out:
        callbacks = [*callbacks, JsonlLog(out / LOG)]
    with world.together():
        if out and resume:
            older = recipe_of(FitConfig(), every=True)  # a version that did not know a field did what is its default
            restore_progress(run, load_state(out / STATE, modules_of(run), run.optimizer, about, defaults=older))
    if out and world.first:
        clear_leftovers(out)
    begun = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - begun
        if out:
            save_state(out / STATE, modules_of(run), run.optimizer, Position(about, progress_of(run)), world)

    if not resume:
        save()  # a full disk shows now, and a run killed before its next save can be resumed
    try:
        with keep_freed_memory(), StopSignals() as signals:
            notify(callbacks, "start", run)
            for epoch in range(len(run.history), run.epochs):
                if run.stopped:
                    break
                run.epoch = epoch
                into_training(run.model, config)
                run.objective.train()
                for batches in _steps_of_epoch(run, dataset):
                    taken = take_step(run, batches, callbacks)
                    with world.together():
                        notify(callbacks if taken else (), "after_step", run)
                    if taken and run.averager is not None:
                        run.averager.update(run.model, step=run.step)
                    signals.check(world)
                    run.stopped = world.any(run.stopped)
                    if run.stopped:
                        break
                    if config.save_every and run.step % config.save_every == 0:
                        save()
                scores = {} if validate is None else validated(run, validate, stop=signals.was_heard)
                improved = _close_epoch(run, _figures(run, scores), seconds=time.perf_counter() - begun)
                with world.together():
                    notify(callbacks, "end_epoch", run)
                run.stopped = world.any(run.stopped)
                if out and improved:
                    save_weights(out / BEST, _deployed(run, callbacks), world)
                save()
                signals.check(world)  # one that came since the last step is not swallowed
            notify(callbacks, "finish", run)
    except StopRequested:
        save()
        _give_back(run, run.given)
        raise Interrupted(_interrupted_message(run, out), step=run.step) from None
    finally:
        notify(callbacks, "close", run)
    _share_bad_images(run, dataset, validate)


def _deployed(run: Run, callbacks: Sequence[object]) -> nn.Module:
    """The averaged model, else the model, or where callbacks have put temporary modules in a copy of it without."""
    kept = run.ema or run.model
    if not preparing(callbacks):
        return kept
    copied = copy.deepcopy(run.given if is_sharded(kept) else kept)
    if is_sharded(kept):
        copied.load_state_dict(whole_state(kept))
    deploy_model(copied, callbacks)
    return copied


def _result(
    run: Run,
    model: M,
    ema: M | None,
    dataset: AnyDataset,
    *,
    out: Path | None,
    validate: AnyDataset | None,
    keep: str,
) -> FitResult[M]:
    """What `fit` gives: the models as they were trained, or with the weights of the best epoch."""
    for trained in (model, ema):
        if isinstance(trained, OpenModel):
            run.task.stamp(trained, dataset)  # it gave outputs their meaning
    best = None if run.best_epoch is None else run.best_epoch + 1
    last = len(run.history)
    if keep == "best" and out and best not in (None, last):
        _take_best(model if ema is None else ema, out / BEST)
    return FitResult(
        model=model,
        ema=ema,
        history=run.history,
        task=run.task,
        best_score=run.best_score,
        last_score=run.history[-1].get(run.metric),
        steps=run.step,
        seconds=run.seconds,
        best_weights=out / BEST if out and run.best_score is not None else None,
        best_epoch=best,
        epoch=best or last if keep == "best" else last,
    )


def _give_back(run: Run, model: M) -> M | None:
    """Put the trained weights into `model` where a sharded copy was trained; returns the averaged model, if any."""
    if not is_sharded(run.model):
        return cast("M | None", run.ema)
    model.load_state_dict(whole_state(run.model))
    model.to(run.device)
    if run.ema is None:
        return None
    average = copy.deepcopy(model).eval()
    average.load_state_dict(whole_state(run.ema))
    return average


def _take_best(model: nn.Module, path: Path) -> None:
    """Put the weights of the best epoch into the model. Raises CheckpointError for damaged ones, or another model's."""
    if not path.is_file():
        raise CheckpointError(f"{path} is gone, which held the weights of the best epoch: resume with keep='last'")
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {str(error).splitlines()[0]}") from error


def _share_bad_images(run: Run, *datasets: AnyDataset | None) -> None:
    """Each process met the bad images of its own share: afterwards all know of all."""
    for dataset in {id(d): d for d in datasets if d is not None}.values():
        met = {bad.key: bad for part in run.world.gathered(list(dataset.bad)) for bad in part}
        dataset.bad.extend(bad for key, bad in met.items() if key not in {one.key for one in dataset.bad})


# -- an epoch ---------------------------------------------------------------------------------------------------------


def _steps_of_epoch(run: Run, dataset: AnyDataset) -> Iterator[list[Batch]]:
    """The epoch's remaining steps, each a list of `accumulate` batches; what does not fill a step is left out."""
    config = run.config
    done = run.into_epoch
    if done == run.epoch_steps:  # stopped between the last step and the end of the epoch
        return
    batches = iter(
        loader(
            dataset,
            run.preprocess,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=run.epoch,
            train=True,
            augment=config.augment,
            repeats=config.repeats,
            workers=config.workers,
            drop_last=True,
            skip=done * config.accumulate,
            share=(run.world.rank, run.world.size),
            pairing=run.objective.pairing,
        )
    )
    for _ in range(done, run.epoch_steps):
        with run.world.together():
            step = list(islice(batches, config.accumulate))
        yield step


def _figures(run: Run, scores: Mapping[str, float]) -> dict[str, float]:
    """Those of a validation that are figures; a warning names the others, as a correlation of outputs all alike."""
    wrong = {name: value for name, value in scores.items() if not math.isfinite(value)}
    if wrong and run.world.first:
        said = " and ".join(f"{name} is {value}" for name, value in wrong.items())
        warnings.warn(f"validation of epoch {run.epoch + 1}: {said}, which is no figure and is left out", stacklevel=2)
    return {name: value for name, value in scores.items() if name not in wrong}


def _close_epoch(run: Run, scores: dict[str, float], *, seconds: float) -> bool:
    """Add the epoch's row to the history; returns whether its score is the best so far."""
    counts = {"grad_norm": run.into_epoch - run.skipped}  # the others are summed over all steps
    means = {name: total / counts.get(name, run.into_epoch) for name, total in run.epoch_sums.items()}
    lr = lr_at(run.step - 1, run.config, steps_per_epoch=run.steps_per_epoch)
    row: dict[str, Any] = {"epoch": run.epoch, "step": run.step, "lr": lr, **means, **scores}
    if run.config.amp == "fp16":
        row["skipped"] = run.skipped
    run.history.append({**row, "seconds": seconds})
    run.epoch_sums, run.skipped = {}, 0
    score = scores.get(run.metric)
    improved = score is not None and run.task.metric.improves(score, run.best_score)
    if improved:
        run.best_score = score
    return improved


def _interrupted_message(run: Run, out: Path | None) -> str:
    if out is None:
        return f"stopped after step {run.step} of {run.total_steps}; nothing was saved, as no out= was given"
    return (
        f"stopped after step {run.step} of {run.total_steps}; the state is saved in {out / STATE}. To go on: the same "
        f"call with fit(..., out={str(out)!r}, resume=True), or the same command with --resume"
    )
