"""The training loop, to be read from top to bottom.

Nothing in it depends on how a run got where it is: order and augmentation of the data follow from (seed, epoch, key),
mixing and drop path from (seed, step), the learning rate from the step. So a run that is killed and resumed ends with
the weights of the run that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from leanvit.data import AnyDataset, Batch, Preprocess, keyed, loader
from leanvit.errors import BadInput, LeanvitError
from leanvit.measure.multilabel import mean_average_precision
from leanvit.training.assemble import (
    about_run,
    assemble,
    claim_folder,
    clear_leftovers,
    modules_of,
    progress_of,
    restore_progress,
)
from leanvit.training.callbacks import JsonlLog, Run, check_callbacks, notify
from leanvit.training.checkpoint import BEST, STATE, Position, load_state, save_state, save_weights
from leanvit.training.config import FitConfig
from leanvit.training.objectives import Objective, mean_head
from leanvit.training.schedule import lr_at
from leanvit.training.signals import Interrupted, StopRequested, StopSignals

M = TypeVar("M", bound=nn.Module)


class NonFiniteLoss(LeanvitError):
    """The loss or its gradient is not finite. The weights are those before the step; `keys` are the images'."""

    def __init__(self, text: str, *, step: int, keys: list[str]) -> None:
        super().__init__(text)
        self.step = step
        self.keys = keys


@dataclass(frozen=True)
class FitResult(Generic[M]):
    """What a run gave. Top-1 figures are fractions, of `ema` where there is one; of multi-label data they are the mean
    average precision, which the history calls `map`."""

    model: M  # the model that was given, trained in place, in eval mode
    ema: M | None  # the averaged model, if the recipe asked for one
    history: list[dict[str, Any]]  # a row per epoch: epoch, step, lr, loss and its parts, grad_norm, top1, seconds
    best_top1: float | None
    last_top1: float | None
    steps: int  # optimiser steps, those before a resume included
    seconds: float  # likewise
    best_weights: Path | None  # weights of the best epoch, when `out` and `validate` were given

    @property
    def final(self) -> M:
        """The model to use: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema


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
) -> FitResult[M]:
    """Train `model` in place on the device that it is on.

    Args:
        objective: what to minimise; cross-entropy with the recipe's label smoothing by default.
        callbacks: see `leanvit.training.callbacks`.
        out: run folder, which gets `training/` (resumable state, weights of the best epoch) and `train.jsonl`; None
            writes nothing.
        resume: continue the run in `out` at its exact step, mid-epoch included.
        validate: data whose top-1 is taken after each epoch.
        convert: accept what preprocessing can bridge between data and model (`data.check_fits`).

    Raises:
        BadInput: arguments, data or the folder do not fit (before the first step).
        CheckpointError: the state to resume is damaged.
        NonFiniteLoss: the loss or its gradient is not finite.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved (a KeyboardInterrupt).
    """
    out = None if out is None else Path(out)
    check_callbacks(callbacks)
    if resume and out is None:
        raise BadInput("resume=True needs out=, the folder of the run to continue")
    run = assemble(model, dataset, preprocess, config, objective=objective, validate=validate, convert=convert)
    about = about_run(run, dataset)
    if out:
        claim_folder(out, run, resume=resume)
        callbacks = [*callbacks, JsonlLog(out / "train.jsonl")]
    if out and resume:
        restore_progress(run, load_state(out / STATE, modules_of(run), run.optimizer, about))
    if out:
        clear_leftovers(out)
    begun = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - begun
        if out:
            save_state(out / STATE, modules_of(run), run.optimizer, Position(about, progress_of(run)))

    if not resume:
        save()  # a full disk shows now, and a run killed before its next save can be resumed
    try:
        with StopSignals() as signals:
            notify(callbacks, "start", run)
            for epoch in range(len(run.history), config.epochs):
                if run.stopped:
                    break
                run.epoch = epoch
                run.model.train(config.train_mode == "train")
                run.objective.train()
                for batches in _steps_of_epoch(run, dataset):
                    _take_step(run, batches, callbacks)
                    notify(callbacks, "after_step", run)
                    signals.check()
                    if run.stopped:
                        break
                    if config.save_every and run.step % config.save_every == 0:
                        save()
                top1 = None if validate is None else _validated(run, validate, each_batch=signals.check)
                improved = _close_epoch(run, top1, seconds=time.perf_counter() - begun)
                notify(callbacks, "end_epoch", run)
                if out and improved:
                    save_weights(out / BEST, run.ema or run.model)
                save()
                signals.check()  # one that came since the last step is not swallowed
            notify(callbacks, "finish", run)
    except StopRequested:
        save()
        raise Interrupted(_farewell(run, out), step=run.step) from None
    finally:
        notify(callbacks, "close", run)
        run.optimizer.zero_grad(set_to_none=True)
        model.eval()
    return FitResult(
        model=model,
        ema=cast("M | None", run.ema),
        history=run.history,
        best_top1=run.best_top1,
        last_top1=run.history[-1].get(run.metric),
        steps=run.step,
        seconds=run.seconds,
        best_weights=out / BEST if out and run.best_top1 is not None else None,
    )


def top1_accuracy(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int = 128,
    workers: int = 0,
    amp: str = "fp32",
    each_batch: Callable[[], object] = lambda: None,
) -> float:
    """Fraction of `dataset` that the model classifies rightly, with the eval transform; puts the model in eval mode."""
    return _top1(
        _answers(
            model,
            dataset,
            preprocess=preprocess,
            batch_size=batch_size,
            workers=workers,
            amp=amp,
            each_batch=each_batch,
        )
    )


@torch.no_grad()
def _answers(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    amp: str,
    each_batch: Callable[[], object],
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (B, classes), targets) of each batch on the CPU, in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    for batch in loader(dataset, preprocess, batch_size=batch_size, workers=workers):
        each_batch()
        with _autocast(device, amp):
            logits = mean_head(model(batch.images.to(device)))
        yield logits.cpu(), batch.targets


def _top1(answers: Iterable[tuple[Tensor, Tensor]]) -> float:
    right = seen = 0
    for logits, targets in answers:
        right += int((logits.argmax(dim=-1) == targets).sum())
        seen += len(targets)  # fewer than the data set where images that cannot be read are skipped
    return right / max(seen, 1)


def _mean_precision(answers: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean average precision, a fraction, of several labels an image."""
    logits, targets = zip(*answers, strict=True)
    return mean_average_precision(torch.cat(logits).float(), torch.cat(targets))


# -- one step ---------------------------------------------------------------------------------------------------------


def _steps_of_epoch(run: Run, dataset: AnyDataset) -> Iterator[list[Batch]]:
    """The epoch's remaining steps, each a list of `accumulate` batches; what does not fill a step is left out."""
    config = run.config
    done = run.step - run.epoch * run.steps_per_epoch
    if done == run.steps_per_epoch:  # stopped between the last step and the end of the epoch
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
            workers=config.workers,
            drop_last=True,
            skip=done * config.accumulate,
        )
    )
    for _ in range(done, run.steps_per_epoch):
        yield list(islice(batches, config.accumulate))


def _take_step(run: Run, batches: list[Batch], callbacks: Sequence[object]) -> None:
    """Forward and backward of each batch, then one optimiser step; all its random draws follow from (seed, step)."""
    config, optimizer = run.config, run.optimizer
    device = next(run.model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    with keyed.global_rng(config.seed, "step", run.step):
        for run.micro, batch in enumerate(batches):
            batch = _mixed(batch.to(device), run)
            notify(callbacks, "before_forward", run)
            with _autocast(device, config.amp):
                loss = run.objective(run.model, batch, run.step, run.context)
            (loss.total / len(batches)).backward()
            for name, value in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    names = [*sums, "grad_norm"]
    values = torch.stack([*sums.values(), norm.to(sums["loss"])]).tolist()  # the step's only wait for the device
    run.losses = dict(zip(names, values, strict=True))
    _refuse_non_finite(run, batches)

    run.grad_factor = 1.0
    if config.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, config.clip_grad, norm)
        run.grad_factor = min(1.0, config.clip_grad / (run.losses["grad_norm"] + 1e-6))
    run.lr = lr_at(run.step, config, steps_per_epoch=run.steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = run.lr * group.get("lr_scale", 1.0)
    optimizer.step()
    run.step += 1
    if run.averager is not None:
        run.averager.update(run.model, step=run.step)
    for name, value in run.losses.items():
        run.epoch_sums[name] = run.epoch_sums.get(name, 0.0) + value


def _mixed(batch: Batch, run: Run) -> Batch:
    """The batch after mixup or cutmix, its targets now (B, classes) probabilities; unchanged where both are off."""
    if run.mix is None:
        return batch
    even = len(batch) - len(batch) % 2  # images are mixed in pairs; a skipped image leaves one over
    images, targets = run.mix(batch.images[:even], batch.targets[:even])
    batch = replace(batch, keys=batch.keys[:even])
    return replace(batch, images=images, targets=targets)


def _autocast(device: torch.device, amp: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")


def _refuse_non_finite(run: Run, batches: list[Batch]) -> None:
    wrong = {name: value for name, value in run.losses.items() if not math.isfinite(value)}
    if not wrong:
        return
    keys = [key for batch in batches for key in batch.keys]
    shown = ", ".join(keys[:32]) + (f", … ({len(keys)} in all)" if len(keys) > 32 else "")
    what = ", ".join(f"{name} is {value}" for name, value in wrong.items())
    raise NonFiniteLoss(
        f"{what} at step {run.step} of epoch {run.epoch}; the step was not taken. Its images: {shown}",
        step=run.step,
        keys=keys,
    )


# -- around an epoch --------------------------------------------------------------------------------------------------


def _validated(run: Run, validate: AnyDataset, *, each_batch: Callable[[], object]) -> float:
    answers = _answers(
        run.ema or run.model,
        validate,
        preprocess=run.preprocess,
        batch_size=run.config.batch_size,
        workers=run.config.workers,
        amp=run.config.amp,
        each_batch=each_batch,
    )
    return _mean_precision(answers) if validate.multi_label else _top1(answers)


def _close_epoch(run: Run, top1: float | None, *, seconds: float) -> bool:
    """Add the epoch's row to the history; returns whether its top-1 is the best so far."""
    taken = run.step - run.epoch * run.steps_per_epoch  # fewer than an epoch has where the run was stopped
    means = {name: total / taken for name, total in run.epoch_sums.items()}
    lr = lr_at(run.step - 1, run.config, steps_per_epoch=run.steps_per_epoch)
    row: dict[str, Any] = {"epoch": run.epoch, "step": run.step, "lr": lr, **means}
    if top1 is not None:
        row[run.metric] = top1
    run.history.append({**row, "seconds": seconds})
    run.epoch_sums = {}
    improved = top1 is not None and (run.best_top1 is None or top1 > run.best_top1)
    if improved:
        run.best_top1 = top1
    return improved


def _farewell(run: Run, out: Path | None) -> str:
    if out is None:
        return f"stopped after step {run.step} of {run.total_steps}; nothing was saved, as no out= was given"
    return (
        f"stopped after step {run.step} of {run.total_steps}; the state is saved in {out / STATE}. To go on: the same "
        f"call with fit(..., out={str(out)!r}, resume=True), or the same command with --resume"
    )
