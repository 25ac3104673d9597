"""What closing units does to tensors: masked (weights set to zero) or shrunk (cut out)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leanvit.prune.nvit.units import Layout, Part


@torch.no_grad()
def close_units(layout: Layout, tensors: Mapping[str, Tensor], gates: Tensor) -> None:
    """Set everything of closed units to zero, in place. gates: (total,) bool, on the tensors' device."""
    views = layout.split(gates)
    for part in layout.parts:
        view = part.of(tensors[part.tensor])
        for along, axis in enumerate(part.axes):
            if axis in views:
                view.mul_(views[axis].to(view.dtype).view([-1 if a == along else 1 for a in range(view.ndim)]))


def shrunk(layout: Layout, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that lose units, cut to the `kept` ones (int64 numbers within their list, ascending), by name.

    A tensor of several parts (q, k and v in one linear) is put together again in their order.
    """
    pieces: dict[str, list[Tensor]] = {}
    for part in layout.parts:
        pieces.setdefault(part.tensor, []).append(_cut(part, tensors[part.tensor], kept))
    return {name: torch.cat(cut) for name, cut in pieces.items()}


def _cut(part: Part, tensor: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    view = part.of(tensor)
    for along, axis in enumerate(part.axes):
        if axis in kept:
            view = view.index_select(along, kept[axis].to(view.device))
    return view.reshape(_merged(part.shape, view.shape, tensor[part.start : part.stop].shape))


def _merged(before: Sequence[int], after: Sequence[int], whole: Sequence[int]) -> list[int]:
    """The shape of the tensor with the axes of its view at their new sizes: `before` is a view of the shape `whole`."""
    out, axis = [], 0
    for size in whole:
        old, new = before[axis], after[axis]
        axis += 1
        while old < size:
            old, new = old * before[axis], new * after[axis]
            axis += 1
        out.append(new)
    return out
