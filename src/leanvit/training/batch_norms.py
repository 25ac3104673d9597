"""Batch norm and small batches: over one value a channel there is no mean and no variance, and PyTorch gives up."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanvit.data import Batch, Preprocess
from leanvit.errors import BadInput
from leanvit.training.config import FitConfig
from leanvit.training.locked import is_locked


def require_values(model: nn.Module, preprocess: Preprocess, config: FitConfig, processes: int) -> None:
    """Raise `BadInput` where a step would give a batch norm that learns one value a channel.

    Batches are full ones (what does not fill one is left out), so the smallest is a process's share of the batch.
    """
    share = config.batch_size // processes
    if share > 1 or config.train_mode == "eval" or not has_batch_norm(model):
        return
    starved = [name for name in _starved(model, preprocess) if not is_locked(name, config.locked)]
    if starved:
        of = f" of {processes} processes" if processes > 1 else ""
        raise BadInput(
            f"batch_size={config.batch_size}{of} gives the batch norm {starved[0]!r} ({len(starved)} such) one value a "
            f"channel, of which there is no variance: give --batch-size {2 * processes} or more (batch_size of the "
            "recipe), or train_mode='eval' to keep the averages that the model has"
        )


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has a batch norm that takes the statistics of its batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def paired(batch: Batch, model: nn.Module) -> Batch:
    """A batch of one image, as unreadable ones were skipped, holds it twice where a batch norm learns: same loss."""
    if len(batch) != 1 or not model.training or not has_batch_norm(model):
        return batch
    return twice(batch)


def twice(batch: Batch) -> Batch:
    """Every image two times; the second time it stands nowhere."""
    return replace(batch.take([*range(len(batch))] * 2), rows=batch.rows)


def _starved(model: nn.Module, preprocess: Preprocess) -> list[str]:
    """Names of the batch norms that see one value a channel in a batch of one image. The model is left as it was."""
    found: list[str] = []

    def note(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and given[0].numel() == given[0].shape[1]:
            found.append(name)

    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules]
    training = model.training
    try:
        with torch.no_grad():
            like = next(model.parameters())
            model.eval()(torch.zeros(1, *preprocess.input_size, device=like.device, dtype=like.dtype))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
