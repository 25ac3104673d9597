"""One optimiser step: forward and backward of its batches, their gradients made one, the weights moved.

All its random draws follow from (seed, step), on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from leanvit.data import Batch, keyed
from leanvit.data.loading import no_image_left, share_rows
from leanvit.errors import LeanvitError
from leanvit.training.batch_norms import paired, twice
from leanvit.training.callbacks import Run, notify
from leanvit.training.draws import GlobalDraws, watched
from leanvit.training.parallel import average_replicated, gradient_norm, own_part, scale_gradients, syncing
from leanvit.training.schedule import lr_at
from leanvit.training.validating import autocast


class NonFiniteLoss(LeanvitError):
    """The loss or its gradient is not finite. The weights are those before the step; `keys` are the images'."""

    def __init__(self, text: str, *, step: int, keys: list[str]) -> None:
        super().__init__(text)
        self.step = step
        self.keys = keys


def take_step(run: Run, batches: list[Batch], callbacks: Sequence[object]) -> bool:
    """Forward and backward of each batch, then one optimiser step; all its random draws follow from (seed, step).

    Returns whether the weights moved: fp16 leaves out a step whose scaled gradient overflows.
    """
    config, optimizer, world = run.config, run.optimizer, run.world
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    counts = world.sums([len(batch) for batch in batches])
    with keyed.global_rng(config.seed, "step", run.step):
        for run.micro, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            batch, weight = _share(batch, count)
            batch = mixed(paired(batch.to(run.device), run.model), run)
            notify(callbacks, "before_forward", run)
            with syncing(run.forward, run.micro == len(batches) - 1), _draws(run, batch) as draws:
                with watched(None if run.losses else draws), autocast(run.device, config.amp):
                    loss = run.forward(batch, run.step, run.context)
                # gradients are averaged over the processes, but are shares of a sum: hence times their number
                run.scaler.scale(loss["loss"] * (weight * world.size) / len(batches)).backward()
            for name, value in loss.items():
                sums[name] = sums.get(name, 0) + value.detach().float() * weight / len(batches)
    average_replicated(run.forward, world)
    run.scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = gradient_norm(trained, world)
    names = [*sums, "grad_norm"]
    values = torch.stack([*sums.values(), norm.to(sums["loss"])]).tolist()  # the step's only wait for the device
    values = [*world.sums(values[:-1]), values[-1]]
    run.losses = dict(zip(names, values, strict=True))
    taken = not _overflowed(run, trained)
    _refuse_non_finite(run, batches, but=() if taken else ("grad_norm",))

    run.lr = lr_at(run.step, config, steps_per_epoch=run.steps_per_epoch)
    for group in optimizer.param_groups:
        peak_scale = group.get("peak_scale", 1.0)
        rate = lr_at(run.step, config, steps_per_epoch=run.steps_per_epoch, peak_scale=peak_scale)
        group["lr"] = rate * group.get("lr_scale", 1.0)
    if taken:
        run.grad_factor = _clip(trained, norm, config.clip_grad)
        run.scaler.step(optimizer)
    run.scaler.update()
    run.step += 1
    if taken and run.averager is not None:
        run.averager.update(run.model, step=run.step)
    for name, value in run.losses.items():
        if math.isfinite(value):  # all but the gradient of a step that was left out
            run.epoch_sums[name] = run.epoch_sums.get(name, 0.0) + value
    run.skipped += not taken
    return taken


def _share(batch: Batch, count: float) -> tuple[Batch, float]:
    """(batch, its share of the `count` images that all processes hold now).

    A process whose images cannot be read (and are skipped) takes part with a black pair of weight 0.
    """
    if not count:
        raise no_image_left(batch.bad)
    weight = len(batch) / count
    if not len(batch):
        batch = batch.stand_in()
    return batch, weight


def _draws(run: Run, batch: Batch) -> AbstractContextManager[GlobalDraws | None]:
    """What makes the model's random draws those of the whole batch, where it is spread over processes."""
    rank, size = run.world.rank, run.world.size
    if size == 1:
        return nullcontext()
    if run.config.compile:  # compiled kernels draw for themselves: resumable, but not the draws of one process
        keyed.seed_global(run.config.seed, "step", run.step, run.micro, "rank", rank)
        return nullcontext()
    whole = run.config.batch_size
    return GlobalDraws(len(batch), whole, share_rows(whole, rank, size)[: len(batch)])


def _clip(trained: list[nn.Parameter], norm: Tensor, largest: float | None) -> float:
    """Scale the gradients down to the largest norm, as `clip_grad_norm_` does; returns the factor."""
    if largest is None:
        return 1.0
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
    scale_gradients(trained, factor)
    return float(factor)


def _overflowed(run: Run, trained: list[nn.Parameter]) -> bool:
    """Whether fp16 leaves this step out. A gradient that is infinite at every loss scale is no overflow."""
    if run.config.amp != "fp16" or math.isfinite(run.losses["grad_norm"]):
        return False
    infinite = any(not own_part(p.grad).isfinite().all() for p in trained if p.grad is not None)
    return run.world.any(infinite) and run.scaler.get_scale() >= 1.0


def mixed(batch: Batch, run: Run) -> Batch:
    """The batch after mixup or cutmix, its targets now (B, classes) probabilities; unchanged where both are off."""
    if run.mix is None or not run.config.mixes_in(run.epoch):
        return batch
    batch = twice(batch) if len(batch) == 1 else batch  # the others were skipped: it is mixed with itself
    even = len(batch) - len(batch) % 2  # images are mixed in pairs; a skipped image leaves one over
    images, targets = run.mix(batch.images[:even], batch.targets[:even])
    batch = batch if even == len(batch) else batch.take(range(even))
    return replace(batch, images=images, targets=targets)


def _refuse_non_finite(run: Run, batches: list[Batch], *, but: Sequence[str]) -> None:
    wrong = {name: value for name, value in run.losses.items() if not math.isfinite(value) and name not in but}
    if not wrong:
        return
    keys = [key for part in run.world.gathered([key for batch in batches for key in batch.keys]) for key in part]
    shown = ", ".join(keys[:32]) + (f", … ({len(keys)} in all)" if len(keys) > 32 else "")
    what = ", ".join(f"{name} is {value}" for name, value in wrong.items())
    raise NonFiniteLoss(
        f"{what} at step {run.step} of epoch {run.epoch}; the step was not taken. Its images: {shown}",
        step=run.step,
        keys=keys,
    )
