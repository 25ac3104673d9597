"""A model that is alike on all processes of a compression."""

from __future__ import annotations

from itertools import chain

import torch
from torch import distributed, nn

from leanvit.training.world import join_world


@torch.no_grad()
def share_from_first(model: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one, bit for bit; all have to call.

    The model has the same structure on all. One process: nothing happens.
    """
    if join_world().size == 1:
        return
    for tensor in chain(model.parameters(), model.buffers()):
        sent = tensor.detach().contiguous().clone()
        distributed.broadcast(sent.flatten().view(torch.uint8), 0)  # as bytes: every type of number travels
        tensor.copy_(sent)
