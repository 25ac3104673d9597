"""Pruned weights in a training: the exact zeros of sparse tensors (`leanvit.anatomy.sparse`) stay exact zeros.

Their gradients are set to zero before anything reads them, so that gradient norm and clipping are of what is learned.
Every optimiser of `OPTIMIZERS` then leaves a zero at zero: weight decay and trust ratios scale it, moments stay zero.
So does the average of the weights. Which weights these are is read off the weights themselves at each step: nothing
is kept, and a resumed run goes on bit-identically. A callback that prunes in the midst of a training has to clear the
optimiser's moments of what it sets to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from leanvit.anatomy.sparse import sparse_parameters
from leanvit.errors import LeanvitError
from leanvit.training.parallel import own_part


def sparse_of(*modules: nn.Module) -> tuple[nn.Parameter, ...]:
    """The sparse parameters of all modules, shared ones once; of sharded ones this process's share is masked."""
    found = {id(p): p for module in modules for p in sparse_parameters(module).values()}
    return tuple(found.values())


@torch.no_grad()
def mask_gradients(sparse: Sequence[nn.Parameter]) -> None:
    """Set the gradients of pruned weights to zero, in place. One that is not finite stays so."""
    for p in sparse:
        if p.grad is not None:
            own_part(p.grad).mul_(own_part(p) != 0)


@torch.no_grad()
def count_zeros(model: nn.Module) -> int:
    """Exact zeros in the sparse parameters of a model."""
    return sum(int((p == 0).sum()) for p in sparse_parameters(model).values())


def require_zeros(model: nn.Module, before: int) -> None:
    """Raise `LeanvitError` where a trained model has fewer pruned weights than there were before its training."""
    now = count_zeros(model)
    if now < before:
        raise LeanvitError(
            f"the training filled {before - now} of {before} pruned weights: a callback changed weights of "
            f"{', '.join(sparse_parameters(model)) or 'tensors that are sparse no more'} themselves, not through their "
            "gradients; leave it out, or let it keep exact zeros"
        )
