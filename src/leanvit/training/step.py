"""One optimiser step: forward and backward of its batches, their gradients made one, the weights moved.

All its random draws follow from (seed, step), on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from leanvit.data import Batch, keyed
from leanvit.data.loading import no_image_left, share_rows
from leanvit.errors import LeanvitError
from leanvit.training.batch_norms import paired, twice
from leanvit.training.callbacks import Run, has_hook, notify
from leanvit.training.clipping import clip
from leanvit.training.draws import GlobalDraws, watched
from leanvit.training.parallel import average_replicated, gradient_norm, own_part, syncing
from leanvit.training.schedule import lr_at
from leanvit.training.validating import autocast
from leanvit.training.whole_batch import WholeBatch
from leanvit.training.zeros import mask_gradients


class NonFiniteLoss(LeanvitError):
    """The loss or its gradient is not finite. The weights are those before the step; `keys` are the images'."""

    def __init__(self, text: str, *, step: int, keys: list[str]) -> None:
        super().__init__(text)
        self.step = step
        self.keys = keys


def take_step(run: Run, batches: list[Batch], callbacks: Sequence[object]) -> bool:
    """Forward and backward of each batch, then one optimiser step; all its random draws follow from (seed, step).

    Returns whether the weights moved: fp16 leaves out a step whose scaled gradient overflows. `after_step` and the
    averaged weights are left to the loop.
    """
    config, optimizer, world = run.config, run.optimizer, run.world
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    weights = _weights(run, batches)
    with keyed.global_rng(config.seed, "step", run.step):
        for run.micro, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            batch = mixed(paired(_placed(batch, weight.images, run).to(run.device), run.model), run)
            batch = replace(batch, scales=weight.scales) if weight.scales else batch
            notify(callbacks, "before_forward", run)
            for name, figure in _differentiated(run, batch, weight, last=run.micro == len(batches) - 1).items():
                sums[name] = sums.get(name, 0) + figure
    average_replicated(run.forward, world)
    mask_gradients(run.sparse)
    run.scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = gradient_norm(trained, world)
    names = [*sums, "grad_norm"]
    values = torch.stack([*sums.values(), norm.to(sums["loss"])]).tolist()  # the step's only wait for the device
    values = [*world.sums(values[:-1]), values[-1]]
    run.losses = dict(zip(names, values, strict=True))
    if weights[0].terms is not None:
        run.losses["terms"] = float(weights[0].terms)
    taken = not _overflowed(run, trained)
    _refuse_non_finite(run, batches, but=() if taken else ("grad_norm",))
    if taken and has_hook(callbacks, "before_step"):
        with world.together():
            notify(callbacks, "before_step", run)
        mask_gradients(run.sparse)  # a callback may have put others there
        norm = gradient_norm(trained, world)
        run.losses["grad_norm"] = float(norm)
        _refuse_non_finite(run, batches, but=())

    run.lr = lr_at(run.step, config, steps_per_epoch=run.steps_per_epoch)
    for group in optimizer.param_groups:
        peak_scale = group.get("peak_scale", 1.0)
        rate = lr_at(run.step, config, steps_per_epoch=run.steps_per_epoch, peak_scale=peak_scale)
        group["lr"] = rate * group.get("lr_scale", 1.0)
    if taken:
        run.grad_factor = clip(run.model, trained, norm, config)
        run.scaler.step(optimizer)
    run.scaler.update()
    run.step += 1
    for name, value in run.losses.items():
        if math.isfinite(value):  # all but the gradient of a step that was left out
            run.epoch_sums[name] = run.epoch_sums.get(name, 0.0) + value
    run.skipped += not taken
    return taken


@dataclass(frozen=True)
class _Weight:
    """What the loss of one batch of a process counts in its step: `own / of`."""

    own: float  # its share among the processes
    of: int  # batches that count alike
    images: int  # of the batch, on all processes
    terms: int | None = None  # of the whole step, where the objective counts them
    scales: tuple[
        float, ...
    ] = ()  # of a sum of means over different things: what each of them counts beside `own / of`


def _weights(run: Run, batches: list[Batch]) -> list[_Weight]:
    """The weight of each batch. Raises BadInput for one of which no process has an image."""
    counts = [len(batch) for batch in batches]
    found = [run.objective.terms(batch) for batch in batches]
    if any(isinstance(one, tuple) for one in found):  # as on all processes: it is the same task
        return _weights_of_sums(run, batches, np.array(found, dtype=np.int64))
    plain = [one for one in found if not isinstance(one, tuple)]
    terms = [int(one) * bool(count) for one, count in zip(plain, counts, strict=True) if one is not None]
    sums = [int(total) for total in run.world.sums([*counts, *terms])]
    whole, all_terms = sums[: len(counts)], sums[len(counts) :]
    _require_images(batches, whole)
    if isinstance(run.objective, WholeBatch):
        return [_Weight(1 / run.world.size, 1, whole[0])]
    if not terms:
        return [_Weight(count / images, len(batches), images) for count, images in zip(counts, whole, strict=True)]
    total = sum(all_terms)
    return [_Weight(own / max(total, 1), 1, images, total) for own, images in zip(terms, whole, strict=True)]


def _weights_of_sums(run: Run, batches: list[Batch], terms: np.ndarray) -> list[_Weight]:
    """Of a loss that is a sum of means, each over things of its own: terms (batches, means) of this process.

    A batch weighs by its images, and each mean is scaled from there to its share of all its things of the step.
    """
    counts = np.array([len(batch) for batch in batches])
    terms = terms * (counts > 0)[:, None]
    sums = run.world.sums([*map(float, counts), *map(float, terms.ravel())])
    whole = [int(total) for total in sums[: len(counts)]]
    _require_images(batches, whole)
    total = np.reshape(sums[len(counts) :], terms.shape).sum(axis=0)
    own = counts / whole
    scales = terms / np.maximum(total, 1) * len(batches) / np.where(counts > 0, own, 1)[:, None]
    return [
        _Weight(float(share), len(batches), images, scales=tuple(map(float, row)))
        for share, images, row in zip(own, whole, scales, strict=True)
    ]


def _require_images(batches: list[Batch], images: list[int]) -> None:
    """Raise BadInput for a batch of which no process has an image; images: on all processes."""
    for batch, count in zip(batches, images, strict=True):
        if not count:
            raise no_image_left(batch.bad)


def _placed(batch: Batch, images: int, run: Run) -> Batch:
    """The batch, and where it stands among the images of all processes, `images` of them.

    A process whose images cannot be read (and are skipped) takes part with a black pair, which stands nowhere.
    """
    if run.world.size > 1:
        read = range(len(batch)) if batch.rows is None else batch.rows
        rows = _rows(run)[list(read)].tolist()
        if images < run.config.batch_size:  # those that are left move up, as in the batch of one process
            left = np.sort(np.concatenate(run.world.gathered(rows)))
            rows = np.searchsorted(left, rows).tolist()
        batch = replace(batch, rows=tuple(rows), of=images)
    else:
        batch = replace(batch, rows=tuple(range(len(batch))))
    return batch if len(batch) else batch.stand_in()


def _rows(run: Run) -> np.ndarray:
    """Which of a whole batch's images this process has."""
    return share_rows(run.config.batch_size, run.world.rank, run.world.size, run.objective.pairing)


def _differentiated(run: Run, batch: Batch, weight: _Weight, *, last: bool) -> dict[str, Tensor]:
    """Forward and backward of each piece of the loss; returns its figures, weighted. `last`: of the step."""
    config, pieces = run.config, run.objective.pieces
    figures: dict[str, Tensor] = {}
    with _draws(run, batch) as draws, nullcontext() if weight.own else _no_gradients(run):
        for piece in range(pieces):
            with syncing(run.forward, last and piece == pieces - 1):
                with watched(None if run.losses else draws), autocast(run.device, config.amp):
                    loss = run.forward(batch, run.step, run.context, piece)
                # gradients are averaged over the processes, but are shares of a sum: hence times their number
                run.scaler.scale(loss["loss"] * (weight.own * run.world.size) / weight.of).backward()
            for name, value in loss.items():
                value = value.detach().float() if weight.own else torch.zeros_like(value, dtype=torch.float32)
                figures[name] = figures.get(name, 0) + value * weight.own / weight.of
    return figures


@contextmanager
def _no_gradients(run: Run) -> Iterator[None]:
    """The gradients of a batch that does not count are zeros, also where its loss is not finite."""
    trained = [p for p in run.forward.parameters() if p.requires_grad]
    hooks = [p.register_hook(torch.zeros_like) for p in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _draws(run: Run, batch: Batch) -> AbstractContextManager[GlobalDraws | None]:
    """What makes the model's random draws those of the whole batch, where it is spread over processes."""
    rank, size = run.world.rank, run.world.size
    if size == 1 or (isinstance(run.objective, WholeBatch) and run.objective.chunk):  # which sees to its draws itself
        return nullcontext()
    if run.config.compile:  # compiled kernels draw for themselves: resumable, but not the draws of one process
        keyed.seed_global(run.config.seed, "step", run.step, run.micro, "rank", rank)
        return nullcontext()
    return GlobalDraws(len(batch), *batch.standing())


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
    batch = batch.first(even)
    clean = batch.take(range(even)) if run.objective.sees_clean else None  # a copy: timm mixes in place
    if run.objective.pairing == "neighbours":
        images, targets = _mixed_neighbours(run.mix, batch)
    else:
        images, targets = run.mix(batch.images, batch.targets)
    return replace(batch, images=images, targets=targets, clean=clean)


def _mixed_neighbours(mix: Mixup, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images and targets 2i mixed with 2i + 1: in an order whose reverse, with which timm mixes, pairs these."""
    order = torch.cat((torch.arange(0, len(batch), 2), torch.arange(len(batch) - 1, 0, -2)))
    images, targets = mix(batch.images[order], batch.targets[order])
    back = order.argsort()
    return images[back], targets[back]


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
