"""What an image costs that leaves at each exit, counted in one run of all parts."""

from __future__ import annotations

import torch
from torch import nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.running import Segment
from leanvit.measure import count


class _Parts(nn.Module):
    """The parts of a model one after another, no image leaving; `parts.<i>` is what an image pays up to exit i."""

    def __init__(self, model: OpenModel) -> None:
        super().__init__()
        ends, starts = (*model.exits.layers, len(model.blocks)), (0, *model.exits.layers)
        heads = (*model.exits.heads, None)
        self.parts = nn.ModuleList(_Part(model, *cut) for cut in zip(starts, ends, heads, strict=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, state = images, None
        for part in self.parts:
            logits, x, state = part(x, state)
        return logits


class _Part(Segment):
    """A segment that hands its state on."""

    def __init__(self, model: OpenModel, start: int, stop: int, head: nn.Module | None) -> None:
        super().__init__(model, start, stop, head, None)

    def forward(self, x, state):  # type: ignore[no-untyped-def, override]
        if state is None:
            x, state = self.model.embed(x, self.model.start(x))
        x, state = self.model.run(x, state, self.start, self.stop)
        logits = self.model.classify(x, state)[0] if self.head is None else self.head(x, state)[0]
        return logits, x, state


def exit_macs(model: OpenModel) -> tuple[int, ...]:
    """MACs of one image that leaves at each exit, and at the end; the heads that it met are included."""
    by_module = count(_Parts(model), model.input_size()).by_module
    parts = [by_module.get(f"parts.{i}", 0) for i in range(len(model.exits.heads) + 1)]
    return tuple(sum(parts[: i + 1]) for i in range(len(parts)))


def dense_macs(model: OpenModel) -> int:
    """MACs of the same network without exits."""
    with model.without_exits():
        return count(model, model.input_size()).macs
