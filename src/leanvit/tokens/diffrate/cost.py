"""What a schedule of DiffRate costs: multiply-accumulates of a model as a function of its token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.errors import Refused
from leanvit.measure import count

Lists = tuple[list[int], list[int]]  # tokens that stay after pruning and after merging, one class token counted

TOLERANCE = 0.02  # of a target in MACs


@dataclass(frozen=True)
class Costs:
    """MACs of one image. Block i with n tokens in its attention and m in its MLP takes
    `attention[i]` n + `pairs[i]` n² + `mlp[i]` m."""

    tokens: int  # patches and one class token
    others: int  # prefix tokens besides the class token
    attention: tuple[float, ...]
    pairs: tuple[float, ...]
    mlp: tuple[float, ...]
    fixed: float  # of everything outside the blocks

    @classmethod
    def of(cls, model: OpenModel) -> Costs:
        """Counted on the model as it is: whatever widths its blocks have."""
        cost = count(model, model.input_size())
        tokens = model.patches() + model.num_prefix_tokens
        rows = [_block(cost.by_module, block, n) for block, n in zip(model.blocks, _lengths(model), strict=True)]
        inside = sum(cost.by_module.get(block.name, 0) for block in model.blocks)
        attention, pairs, mlp = zip(*rows, strict=True)
        return cls(
            tokens=tokens - (model.num_prefix_tokens - 1),
            others=model.num_prefix_tokens - 1,
            attention=attention,
            pairs=pairs,
            mlp=mlp,
            fixed=float(cost.macs - inside),
        )

    @property
    def depth(self) -> int:
        return len(self.mlp)

    @property
    def dense(self) -> float:
        return float(self.macs([self.tokens] * self.depth, [self.tokens] * self.depth))

    def macs(self, prune: Sequence[Any], merge: Sequence[Any]) -> Any:
        """MACs of a schedule: a number, or a tensor (float64) that is differentiable in counts that are tensors.

        The gradient of a minimum goes whole to both counts of the block, whichever is the smallest, and to none of
        the blocks before (published code).
        """
        total: Any = self.fixed
        n: Any = self.tokens
        for i, (p, m) in enumerate(zip(prune, merge, strict=True)):
            left = least(n, p, m)
            total = total + self.attention[i] * (n + self.others) + self.pairs[i] * (n + self.others) ** 2
            total = total + self.mlp[i] * (left + self.others)
            n = left
        return total

    def bounded(self, prune: Sequence[int], merge: Sequence[int]) -> Lists:
        """The same schedule with no count above what is left by then."""
        made: Lists = ([], [])
        n = self.tokens
        for p, m in zip(prune, merge, strict=True):
            made[0].append(min(n, p))
            made[1].append(min(n, p, m))
            n = made[1][-1]
        return made


def reducing(tokens: int, prune: Sequence[int], merge: Sequence[int]) -> list[tuple[int, int, int]]:
    """(block, prune, merge) where tokens go, given what is left of `tokens` by then."""
    rows, n = [], tokens
    for i, (p, m) in enumerate(zip(prune, merge, strict=True)):
        if min(p, m) < n:
            rows.append((i, p, m))
        n = min(n, p, m)
    return rows


def least(n: Any, p: Any, m: Any) -> Any:
    """min(n, p, m), with the gradient of p + m."""
    if not isinstance(p, Tensor):
        return min(n, p, m)
    value = torch.minimum(torch.minimum(p, m), torch.as_tensor(n, dtype=p.dtype, device=p.device)).detach()
    return value + (p + m) - (p + m).detach()


def uniform(costs: Costs, share: float, how: str) -> Lists:
    """The same rate in every block, pruned or merged, whose MACs come nearest to `share` of the dense model's."""
    wanted, low, high = share * costs.dense, 0.0, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        low, high = (rate, high) if costs.macs(*_at(costs, rate, how)) < wanted else (low, rate)
    found = _at(costs, high, how)
    require_reached(costs, found, share)
    return found


def require_reached(costs: Costs, lists: Lists, share: float) -> None:
    """Raise `Refused`, with what can be reached, where the lists miss the target by more than 2 %."""
    reached = costs.macs(*lists) / costs.dense
    if abs(reached / share - 1) > TOLERANCE:
        floor = [2] * costs.depth
        floor[0] = costs.tokens
        raise Refused(
            f"macs {share:g} cannot be reached: the nearest is {reached:.3f}, the least that token reduction leaves "
            f"{costs.macs(floor, floor) / costs.dense:.3f}"
        )


def _at(costs: Costs, rate: float, how: str) -> Lists:
    """A share `rate` stays in each block but the first."""
    counts, left = [costs.tokens], float(costs.tokens - 1)
    for _ in range(1, costs.depth):
        left *= rate
        counts.append(max(2, round(left) + 1))
    return (counts, counts) if how == "prune" else ([costs.tokens] * costs.depth, counts)


def _lengths(model: OpenModel) -> list[int]:
    """Tokens in the MLP of each block, prefix included."""
    return [n + model.num_prefix_tokens for n in model.patch_tokens()]


def _block(by_module: dict[str, int], block: Any, tokens: int) -> tuple[float, float, float]:
    """MACs a token of linears beside the attention, a pair of tokens, a token in the MLP. What computes both at once,
    before tokens leave, counts as beside the attention."""
    linears = {
        name: by_module.get(f"{block.name}.{name}", 0)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    mlp = sum(macs for name, macs in linears.items() if name.startswith(("mlp.", "ffns.")))
    every = sum(linears.values())
    pairs = by_module.get(block.name, 0) - every
    return (every - mlp) / tokens, pairs / tokens**2, mlp / tokens
