"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from leanvit.training.config import FitConfig


def lr_at(step: int, config: FitConfig, *, steps_per_epoch: int, peak_scale: float = 1.0) -> float:
    """Learning rate of optimiser step `step` (counted from 0). `peak_scale`: factor on lr, and not on min_lr.

    Linear warm-up over the first W = warmup_epochs * steps_per_epoch steps, lr * (step + 1) / W, so that step W - 1
    runs at the peak, or with `warmup_lr` from there, warmup_lr + (lr - warmup_lr) * step / W, as timm does. Then a half
    cosine from lr at step W towards min_lr at the end of the run (SGDR without restarts, arXiv 1608.03983, equation 5),
    a line between the same two ("linear"), or lr for the rest. `cooldown_epochs` at min_lr come behind that, and belong
    to the run's epochs. Without `warmup_prefix` the schedule runs from step 0 on, and the warm-up takes its beginning's
    place (timm's and DeiT's default). With `lr_per_epoch` all of this counts epochs instead of steps.
    """
    if config.lr_per_epoch:
        step, steps_per_epoch = step // steps_per_epoch, 1
    lr, warmup = config.lr * peak_scale, round(config.warmup_epochs * steps_per_epoch)
    if step < warmup and config.warmup_lr is not None:
        return config.warmup_lr + (lr - config.warmup_lr) * step / warmup
    if step < warmup:
        return lr * (step + 1) / warmup
    start = warmup if config.warmup_prefix else 0
    end = round((config.epochs - config.cooldown_epochs) * steps_per_epoch)
    if config.cooldown_epochs and step >= end:
        return config.min_lr
    if config.schedule == "constant":
        return lr
    progress = (step - start) / max(1, end - start)
    if config.schedule == "linear":
        return lr + (config.min_lr - lr) * progress
    return config.min_lr + 0.5 * (lr - config.min_lr) * (1 + math.cos(math.pi * progress))
