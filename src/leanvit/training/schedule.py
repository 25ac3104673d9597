"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from leanvit.errors import BadInput
from leanvit.training.config import FitConfig


def total_steps(config: FitConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of a run. What does not fill a step is left out, of `samples` as of an epoch."""
    if config.samples is not None:
        return config.samples // (config.batch_size * config.accumulate)
    return (config.epochs or 0) * steps_per_epoch


def check_course(config: FitConfig, steps_per_epoch: int) -> None:
    """Raise BadInput where length, warm-up and cool-down do not fit, which only the data tells."""
    total = total_steps(config, steps_per_epoch)
    if not total:
        images = config.batch_size * config.accumulate
        raise BadInput(f"samples is {config.samples}; accepted: {images} or more, which are the images of one step")
    left = total - round(config.cooldown_epochs * steps_per_epoch)
    if left <= 0:
        raise BadInput(
            f"cooldown_epochs is {config.cooldown_epochs!r}; accepted: below {total / steps_per_epoch:g}, the epochs "
            f"that samples={config.samples} come to"
        )
    if _warmup(config, steps_per_epoch) < left or not (config.warmup_steps or config.samples):
        return
    if config.warmup_steps:
        raise BadInput(f"warmup_steps is {config.warmup_steps}; accepted: below {left}, the steps of the schedule")
    raise BadInput(
        f"warmup_epochs is {config.warmup_epochs!r}; accepted: below {left / steps_per_epoch:g}, the epochs of the "
        f"schedule with samples={config.samples}"
    )


def _warmup(config: FitConfig, steps_per_epoch: int) -> int:
    return round(config.warmup_epochs * steps_per_epoch) if config.warmup_steps is None else config.warmup_steps


def _end(config: FitConfig, steps_per_epoch: int) -> float:
    """The step at which the schedule ends, and the cool-down begins; with `lr_per_epoch` the epoch."""
    if config.samples is None:
        unit = 1 if config.lr_per_epoch else steps_per_epoch
        return round(((config.epochs or 0) - config.cooldown_epochs) * unit)
    total = total_steps(config, steps_per_epoch)
    if config.lr_per_epoch:
        return total / steps_per_epoch - config.cooldown_epochs
    return total - round(config.cooldown_epochs * steps_per_epoch)


def lr_at(step: int, config: FitConfig, *, steps_per_epoch: int, peak_scale: float = 1.0) -> float:
    """Learning rate of optimiser step `step` (counted from 0). `peak_scale`: factor on lr, and not on min_lr.

    Linear warm-up over the first W = warmup_epochs * steps_per_epoch steps, or W = warmup_steps, lr * (step + 1) / W,
    so that step W - 1 runs at the peak, or with `warmup_lr` from there, warmup_lr + (lr - warmup_lr) * step / W, as
    timm does. Then a half cosine from lr at step W towards min_lr at the end of the run (SGDR without restarts, arXiv
    1608.03983, equation 5), a line between the same two ("linear"), or lr for the rest. `cooldown_epochs` at min_lr
    come behind that, and belong to the run's length. Without `warmup_prefix` the schedule runs from step 0 on, and the
    warm-up takes its beginning's place (timm's and DeiT's default). With `lr_per_epoch` all of this counts epochs
    instead of steps.
    """
    end = _end(config, steps_per_epoch)
    if config.lr_per_epoch:
        step, steps_per_epoch = step // steps_per_epoch, 1
    lr, warmup = config.lr * peak_scale, _warmup(config, steps_per_epoch)
    if step < warmup and config.warmup_lr is not None:
        return config.warmup_lr + (lr - config.warmup_lr) * step / warmup
    if step < warmup:
        return lr * (step + 1) / warmup
    start = warmup if config.warmup_prefix else 0
    if config.cooldown_epochs and step >= end:
        return config.min_lr
    if config.schedule == "constant":
        return lr
    progress = (step - start) / max(1, end - start)
    if config.schedule == "linear":
        return lr + (config.min_lr - lr) * progress
    return config.min_lr + 0.5 * (lr - config.min_lr) * (1 + math.cos(math.pi * progress))
