"""ToMe: token merging (Bolya et al., ICLR 2023, arXiv 2210.09461).

In every block, between attention and MLP, the r most similar pairs of tokens merge into their size-weighted mean; later
attention counts a token by its size. No parameters; works without training. Written from the paper.

Departures: prefix tokens beyond class and distillation (registers) are protected too; mean-pooled heads weigh tokens
by size for every such model; layer scale and q/k norm are respected because the anatomy runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenViT, Phases, State, Step
from leanvit.anatomy.tokens import complement, moved_owner, new_places, take_tokens
from leanvit.errors import BadInput, Refused
from leanvit.recipe.method import Structure, method

# --- the algorithm ---------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Which tokens merge into which. Tokens at even places send, tokens at odd places receive.

    The new sequence is [stay, receivers]: every prefix token and every sender without a merge, then the odd tokens from
    `first_odd` on.
    """

    stay: Tensor  # (B, S) int64 places of the tokens that stay as they are
    source: Tensor  # (B, r) int64 places of the tokens that are merged away
    target: Tensor  # (B, r) int64 receiver of each, counted from 0 among the receivers
    first_odd: int  # place of the first receiver
    receivers: int  # how many there are

    def places(self) -> Tensor:
        """(B, N) int64: where each old token is in the new sequence."""
        stay, device = self.stay.shape[1], self.stay.device
        odd = torch.arange(self.receivers, device=device) * 2 + self.first_odd
        order = torch.cat([self.stay, odd.expand(self.stay.shape[0], -1)], dim=1)
        places = new_places(order, order.shape[1] + self.source.shape[1])
        return places.scatter(1, self.source, self.target + stay)


def match(metric: Tensor, r: int, *, even: int = 0, odd: int = 0, keep_order: bool = True) -> Matching:
    """Bipartite soft matching (paper, section 3): each even token proposes to its most similar odd one.

    Args:
        metric: (B, N, d) what similarity (cosine) is measured on.
        r: merges, 0 to (N - even - odd) // 2.
        even, odd: protected tokens at the first even and at the first odd places.
        keep_order: senders without a merge keep their order; else they come by falling similarity.

    Returns:
        The r best edges. A receiver may get several.
    """
    unit = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp(min=1e-12)
    senders, receivers = unit[:, 2 * even :: 2], unit[:, 2 * odd + 1 :: 2]
    similarity = senders @ receivers.transpose(1, 2)  # (B, N/2, N/2)
    best = similarity.amax(dim=-1)
    if keep_order:
        merged = best.topk(r, dim=1).indices  # (B, r)
        alone = complement(merged, best.shape[1])
    else:
        ranked = best.argsort(dim=1, descending=True)
        merged, alone = ranked[:, :r], ranked[:, r:]
    # the receiver of the r merged ones only: an argmax over all rows would cost more than the maximum itself
    target = take_tokens(similarity, merged).argmax(dim=-1)
    prefix = sorted([2 * i for i in range(even)] + [2 * i + 1 for i in range(odd)])
    front = torch.tensor(prefix, dtype=torch.int64, device=metric.device).expand(metric.shape[0], -1)
    return Matching(
        stay=torch.cat([front, 2 * (alone + even)], dim=1),
        source=2 * (merged + even),
        target=target,
        first_odd=2 * odd + 1,
        receivers=receivers.shape[1],
    )


@dataclass(frozen=True)
class Shares:
    """The weighted mean of each receiver: `own` of itself, `given` of the tokens merged into it. They add up to 1."""

    own: Tensor  # (B, R)
    given: Tensor  # (B, R, r)


def shares(matching: Matching, size: Tensor) -> tuple[Shares, Tensor]:
    """Weights of the merge and the sizes after it: size (B, N) -> (Shares, (B, N - r))."""
    number = torch.arange(matching.receivers, device=size.device).unsqueeze(1)  # (R, 1)
    sent = size.gather(1, matching.source).unsqueeze(1)  # (B, 1, r)
    given = torch.where(matching.target.unsqueeze(1) == number, sent, 0.0)  # (B, R, r)
    own = size[:, matching.first_odd :: 2]
    total = own + given.sum(dim=-1)
    after = torch.cat([size.gather(1, matching.stay), total], dim=1)
    return Shares(own / total, given / total.unsqueeze(-1)), after


def merge(x: Tensor, matching: Matching, weights: Shares) -> Tensor:
    """(B, N, C) -> (B, N - r, C).

    The merge is a product with a (R, r) matrix of weights, not a scatter: r is small, and it exports to any runtime.
    """
    own, given = weights.own.to(x.dtype), weights.given.to(x.dtype)
    received = x[:, matching.first_odd :: 2] * own.unsqueeze(-1)
    received = torch.baddbmm(received, given, take_tokens(x, matching.source))
    return torch.cat([take_tokens(x, matching.stay), received], dim=1)


def schedule(r: int | tuple[int | float, ...], depth: int) -> list[int]:
    """Merges per block.

    Args:
        r: the same in each block; or (r, inflection), inflection a float in [-1, 1]: linear from r (1 - inflection) in
            the first block to r (1 + inflection) in the last; or one number per block, short lists padded with 0.
    """
    if isinstance(r, int):
        return [r] * depth
    if not _inflected(r):
        return [int(n) for n in r] + [0] * (depth - len(r))
    first = int(r[0] * (1 - r[1]))
    rise = (2 * r[0] - 2 * first) / max(depth - 1, 1)
    return [int(first + rise * i) for i in range(depth)]


def _inflected(r: tuple[int | float, ...]) -> bool:
    return len(r) == 2 and isinstance(r[1], float)


# --- in a model ------------------------------------------------------------------


def proportional(phases: Phases, state: State) -> Phases:
    """Score term: a token counts as often as it stands for patches (paper, equation 1)."""
    if state.size is None:
        return phases
    return phases.plus_bias(state.size.log()[:, None, None, :])  # (B, 1, 1, N)


class Merge(Step):
    """Merges r pairs of one block; fewer where fewer tokens are left."""

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "tome"

    def __init__(self, name: str, *, r: int) -> None:
        super().__init__()
        self.name, self.r = name, r

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        batch, tokens = state.ops.shape(x)[:2]
        r = min(self.r, (tokens - state.num_prefix) // 2)
        if r < 1:
            return x, state
        keys = state.keys
        if keys is None:
            raise BadInput(f"{self.name}: no keys in the state; the step belongs into a block's `between`")
        even, odd = (state.num_prefix + 1) // 2, state.num_prefix // 2
        matching = match(_summed(keys), r, even=even, odd=odd, keep_order=state.num_prefix > 0)
        size = torch.ones(batch, tokens, device=keys.device) if state.size is None else state.size
        weights, size = shares(matching, size)
        x = state.ops.mix(f"{self.name}.merge", x, lambda t: merge(t, matching, weights))
        state = state.with_(size=size).tapped(f"{self.name}.merged", matching.source)
        if state.trace:
            owner = moved_owner(state.owners(batch, keys.device), matching.places())
            state = state.with_(owner=owner).tapped(f"{self.name}.owner", owner)
        return x, state


def _summed(keys: Tensor) -> Tensor:
    """Keys summed over the heads, (B, H, N, d) -> (B, N, d): the cosine of sums is that of means.

    Head by head: a reduction over the strided view of q, k, v takes twice as long.
    """
    first, *others = keys.unbind(1)
    for head in others:
        first = first + head
    return first


@method("tome")
@dataclass(frozen=True)
class ToMe:
    """Knobs of the method."""

    r: int | tuple[int | float, ...] = 13  # merges per block; (r, inflection as a float) or a list: see `schedule`
    prop_attn: bool = True  # attention in proportion to size

    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"

    def __post_init__(self) -> None:
        if isinstance(self.r, list):
            object.__setattr__(self, "r", tuple(self.r))
        _check_r(self.r)
        if not isinstance(self.prop_attn, bool):
            raise BadInput(f"prop_attn is {self.prop_attn!r}; accepted: true or false")

    def learn(self, model: OpenViT, data: object = None) -> Structure:
        """Merges where there are any: {"blocks": [{"block": int, "r": int}, ...]}."""
        depth = len(model.blocks)
        if isinstance(self.r, tuple) and not _inflected(self.r) and len(self.r) > depth:
            raise BadInput(f"r lists {len(self.r)} blocks; accepted: up to {depth}, the model's depth")
        return {"blocks": [{"block": i, "r": r} for i, r in enumerate(schedule(self.r, depth)) if r]}

    def shape(self, model: OpenViT, structure: Structure) -> None:
        """Put the steps in, and the score term into every attention that may meet merged tokens."""
        rows = [_checked_row(row, model) for row in structure["blocks"]]
        for index, r in rows:
            block: Any = model.blocks[index]
            if any(step.source == "tome" for step in block.between):
                raise Refused(f"{block.name} already reduces tokens by tome: give it other blocks")
            if r:
                block.between.append(Merge(block.name, r=r).train(model.training))
        if self.prop_attn and any(r for _, r in rows):
            for block in model.blocks:
                attn: Any = block.attn
                attn.terms = (*(term for term in attn.terms if term is not proportional), proportional)


def _check_r(r: Any) -> None:
    accepted = "accepted: a whole number, 0 or more; (r, inflection) with a float in [-1, 1]; or a list, one per block"
    numbers = r if isinstance(r, tuple) else (r,)
    if _inflected(numbers):
        if not -1 <= numbers[1] <= 1:
            raise BadInput(f"r is {r!r}: its inflection is {numbers[1]}; {accepted}")
        numbers = numbers[:1]
    if not numbers or not all(_whole(n) for n in numbers):
        raise BadInput(f"r is {r!r}; {accepted}")


def _checked_row(row: Mapping[str, Any], model: OpenViT) -> tuple[int, int]:
    """(block, r) of a row of the (perhaps hand-edited) structure, or `BadInput`."""
    index, r = row["block"], row["r"]
    if not _whole(index) or index >= len(model.blocks):
        raise BadInput(f"the plan merges in block {index!r}; accepted: 0 to {len(model.blocks) - 1}")
    if not _whole(r):
        raise BadInput(f"r of block {index} is {r!r}; accepted: a whole number, 0 or more")
    return index, r


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
