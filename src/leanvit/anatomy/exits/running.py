"""Early exits of an opened model: heads at its seams, images that leave, and the parts between exits as graphs.

    exits.heads.0 ... at `exits.layers`: (tokens (B, N, C), state) -> (logits (B, classes), features)

What heads are and how they are trained is a method's (package `exits/`). An image that leaves is taken out of the
batch: nothing behind its exit is computed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from leanvit.anatomy.exits.rules import Memory, Rule
from leanvit.anatomy.state import State
from leanvit.errors import Refused

if TYPE_CHECKING:
    from leanvit.anatomy.model import OpenModel

T = TypeVar("T")
Part = Callable[[T], tuple[Tensor | None, T]]  # what enters -> (logits (B, classes), or None; what goes on)


def leave(
    x: T, parts: Sequence[Part[T]], rule: Rule | None, take: Callable[[T, Tensor], T]
) -> tuple[Tensor, Tensor, T]:
    """Run the parts of a network one after another until every image has left.

    Args:
        x: what enters the first part.
        parts: each gives the logits of its exit; the last one those of the network.
        rule: who leaves; None: nobody.
        take: (what goes on, index (K,) int64) -> the same of these images only.

    Returns:
        logits (B, classes), the part after which each image left (B,) int64, and what the last part that ran gave.
    """
    out: Tensor | None = None  # stays None as long as nobody has left: then nothing is copied
    inside, at, memory = torch.empty(0), torch.empty(0), cast("Memory | None", None)
    last = len(parts) - 1
    for number, part in enumerate(parts[:-1]):
        logits, x = part(x)
        if rule is None or logits is None or logits.is_meta:
            continue
        leaves, memory = rule(number, logits, memory)
        if not bool(leaves.any()):
            continue
        if out is None:
            if bool(leaves.all()):
                return logits, torch.full((len(logits),), number, dtype=torch.int64, device=logits.device), x
            out = logits.new_empty(logits.shape)
            at = torch.full((len(logits),), last, dtype=torch.int64, device=logits.device)
            inside = torch.arange(len(logits), device=logits.device)
        gone, stay = leaves.nonzero().flatten(), (~leaves).nonzero().flatten()
        out[inside[gone]] = logits[gone]
        at[inside[gone]] = number
        if not len(stay):
            return out, at, x
        inside, x = inside[stay], take(x, stay)
        memory = None if memory is None else memory.rows(stay)
    logits, x = parts[-1](x)
    assert logits is not None
    if out is None:
        return logits, torch.full((len(logits),), last, dtype=torch.int64, device=logits.device), x
    out[inside] = logits.to(out.dtype)
    return out, at, x


@dataclass
class Work:
    """Where images left, call by call: what a model of input-dependent cost really did."""

    layers: tuple[int, ...]  # blocks that an image has passed at each exit, and at the end
    macs: tuple[int, ...]  # of an image that leaves there, the heads that it met included; empty: not counted
    at: list[Tensor] = field(default_factory=list)  # (B,) int64: number of the exit, the last one is the network's end

    @property
    def images(self) -> int:
        return sum(len(part) for part in self.at)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the images that left at each exit, and at the end."""
        counts = torch.bincount(torch.cat(self.at), minlength=len(self.layers))
        return tuple((counts / max(self.images, 1)).tolist())

    @property
    def mean_macs(self) -> float:
        """MACs of an image, averaged over all of them."""
        return sum(share * macs for share, macs in zip(self.shares, self.macs, strict=True))

    @property
    def mean_layer(self) -> float:
        """Blocks that an image passed, averaged."""
        return sum(share * layer for share, layer in zip(self.shares, self.layers, strict=True))

    def __str__(self) -> str:
        where = ", ".join(f"{layer}: {share:.0%}" for layer, share in zip(self.layers, self.shares, strict=True))
        return (
            f"images leave after block {where}; {self.layers[-1]} / mean block = "
            f"{self.layers[-1] / self.mean_layer:.2f}"
        )


class ExitPolicy:
    """A rule in use, and a record of where images left while somebody asks for it (`recording`)."""

    def __init__(self, layers: Sequence[int], depth: int, rule: Rule | None, macs: Sequence[int] = ()) -> None:
        """`layers`: blocks passed at each exit; `macs`: of an image that leaves there, and of one that does not."""
        self.layers, self.depth, self.rule, self.macs = tuple(layers), depth, rule, tuple(macs)
        self.work: Work | None = None

    @contextmanager
    def recording(self) -> Iterator[Work]:
        """Inside, each call adds where its images left."""
        before, self.work = self.work, Work((*self.layers, self.depth), self.macs)
        try:
            yield self.work
        finally:
            self.work = before

    def note(self, at: Tensor) -> None:
        if self.work is not None:
            self.work.at.append(at.detach().cpu())


class Exits(nn.Module):
    """The exits of a model, its child `exits`. Holds the heads; the model is handed in."""

    def __init__(self, heads: Sequence[nn.Module], policy: ExitPolicy, *, source: str) -> None:
        """`source`: slug of the method that put them in."""
        super().__init__()
        self.heads, self.policy, self.source = nn.ModuleList(heads), policy, source

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks before each head."""
        return self.policy.layers

    def recording(self) -> Any:
        """See `ExitPolicy.recording`."""
        return self.policy.recording()

    def run(self, model: OpenModel, x: Any, state: State) -> tuple[Any, State]:
        """Embedded tokens to logits, each image as far as it has to go; `state.left` (B,): blocks passed."""

        def part(start: int, stop: int, head: nn.Module | None) -> Part[tuple[Any, State]]:
            def run(flow: tuple[Any, State]) -> tuple[Tensor | None, tuple[Any, State]]:
                flow = model.run(*flow, start, stop)
                logits, state = (head(*flow)[0], flow[1]) if head is not None else model.classify(*flow)
                return logits, (flow[0], state)

            return run

        ends = (*self.layers, len(model.blocks))
        parts = [part(*cut) for cut in zip((0, *self.layers), ends, (*self.heads, None), strict=True)]
        logits, at, (_, state) = leave((x, state), parts, self.policy.rule, _rows)
        self.policy.note(at)
        return logits, state.with_(left=torch.tensor(ends, device=at.device)[at] if not at.is_meta else None)


def _rows(flow: tuple[Any, State], index: Tensor) -> tuple[Any, State]:
    x, state = flow
    return state.ops.rearrange("exits.stay", x, lambda t: t[index]), state.rows(index)


class Segment(nn.Module):
    """One part of a model with exits, as a graph of its own: images or tokens -> (logits, tokens), at the end logits.

    Tables that `embed` makes of the grid are constants of it.
    """

    def __init__(self, model: OpenModel, start: int, stop: int, head: nn.Module | None, state: State | None) -> None:
        """`state`: that of the tokens that enter; None: images do."""
        super().__init__()
        self.model, self.head = model, head
        self.start, self.stop, self.state = start, stop, state

    def forward(self, x: Tensor) -> Any:
        state = self.state
        if state is None:
            x, state = self.model.embed(x, self.model.start(x))
        x, state = self.model.run(x, state, self.start, self.stop)
        return self.model.classify(x, state)[0] if self.head is None else (self.head(x, state)[0], x)


@torch.no_grad()
def segments(model: OpenModel) -> list[Segment]:
    """A model with exits cut behind each of them. Float heads come as they are deployed (`folded`), if they can.

    Raises `Refused` where more than the tokens goes from one part to the next (sizes, positions of a step).
    """
    exits: Exits = model.exits
    images = model._blank()
    entering: State | None = None
    x, state = model.embed(images, model.start(images))
    found, start = [], 0
    for stop, head in zip((*exits.layers, len(model.blocks)), (*exits.heads, None), strict=True):
        x, state = model.run(x, state, start, stop)
        if state.size is not None or state.positions is not None:
            raise Refused(
                f"a step before block {stop} leaves sizes or positions of tokens: segments hand on tokens alone"
            )
        deployed = head
        if head is not None and model.ops.float_weights and hasattr(head, "folded"):
            deployed = head.folded(state.grid)
        found.append(Segment(model, start, stop, deployed, entering))
        entering, start = state.with_(tokens=(), losses=(), taps={}), stop
    return found
