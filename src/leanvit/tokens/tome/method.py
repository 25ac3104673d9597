"""ToMe: bipartite soft matching, merging, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import complement, moved_owner, new_places, take_tokens
from leanvit.anatomy.parts.windows import WindowAttention
from leanvit.errors import BadInput, Refused
from leanvit.knobs import RISING, Index, Rule, Words, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow

# --- the algorithm ---------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Which tokens merge into which. Tokens at even places send, tokens at odd places receive.

    The new sequence is: the protected tokens, the senders without a merge, the receivers.
    """

    order: Tensor  # (B, N - r) int64, the old place of each token of the new sequence
    source: Tensor  # (B, r) int64, old places of the tokens that are merged away
    target: Tensor  # (B, r) int64, place in the new sequence of the receiver of each
    receivers: int  # how many there are, at the end of the new sequence

    def places(self) -> Tensor:
        """(B, N) int64: where each old token is in the new sequence."""
        places = new_places(self.order, self.order.shape[1] + self.source.shape[1])
        return places.scatter(1, self.source, self.target)


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
    batch, tokens = metric.shape[:2]
    unit = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp(min=1e-12)
    similarity = unit[:, 2 * even :: 2] @ unit[:, 2 * odd + 1 :: 2].transpose(1, 2)  # (B, senders, receivers)
    best = similarity.amax(dim=-1)
    if keep_order:
        merged = best.topk(r, dim=1).indices  # (B, r)
        alone = complement(merged, best.shape[1])
    else:
        ranked = best.argsort(dim=1, descending=True)
        merged, alone = ranked[:, :r], ranked[:, r:]
    # the receiver of the r merged ones only: an argmax over all rows would cost more than the maximum itself
    target = take_tokens(similarity, merged).argmax(dim=-1)
    fixed = torch.arange(tokens, device=metric.device).expand(batch, -1)
    front = _interleaved(fixed, even, odd)
    order = torch.cat([*front, 2 * (alone + even), fixed[:, 2 * odd + 1 :: 2]], dim=1)
    receivers = similarity.shape[2]
    return Matching(order, 2 * (merged + even), target + (tokens - r - receivers), receivers)


def _interleaved(places: Tensor, even: int, odd: int) -> list[Tensor]:
    """The protected places in their order, as slices of (B, N)."""
    if abs(even - odd - 0.5) < 1:  # 0, 2, ... and 1, 3, ... with no gap: the prefix of a sequence
        return [places[:, : even + odd]]
    return [places[:, : 2 * even : 2], places[:, 1 : 2 * odd : 2]]


def shares(matching: Matching, size: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the merge, and the sizes after it.

    size (B, N) -> share (B, r), what part of its new token each merged one makes up; size (B, N - r).
    """
    given = size.gather(1, matching.source)
    after = size.gather(1, matching.order).scatter_add(1, matching.target, given)
    return given / after.gather(1, matching.target), after


def merge(x: Tensor, matching: Matching, share: Tensor) -> Tensor:
    """The weighted means, (B, N, C) -> (B, N - r, C): receiver + sum of share · (merged - receiver).

    Only the r rows that change are touched. An exported graph gets a product with the (receivers, r) matrix of shares
    instead of the indexed sum, which runtimes do slowly or not at all; results agree to rounding.
    """
    out, moved = take_tokens(x, matching.order), take_tokens(x, matching.source)
    share = share.to(x.dtype)
    if torch.compiler.is_exporting():
        return _merge_by_product(out, moved, matching, share)
    first = torch.arange(out.shape[0], device=x.device).unsqueeze(1) * out.shape[1]
    rows = (matching.target + first).flatten()
    flat, moved = out.flatten(0, 1), moved.flatten(0, 1)
    change = (moved - flat.index_select(0, rows)) * share.flatten().unsqueeze(-1)
    flat.index_add_(0, rows, change)  # in place: `out` is a fresh copy
    return out


def _merge_by_product(out: Tensor, moved: Tensor, matching: Matching, share: Tensor) -> Tensor:
    alone = out.shape[1] - matching.receivers
    number = torch.arange(alone, out.shape[1], device=out.device).unsqueeze(1)  # (R, 1)
    given = torch.where(matching.target.unsqueeze(1) == number, share.unsqueeze(1), 0.0)  # (B, R, r)
    kept = 1 - given.sum(dim=-1, keepdim=True)
    return torch.cat([out[:, :alone], out[:, alone:] * kept + given @ moved], dim=1)


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
        matching = match(summed_keys(keys), r, even=even, odd=odd, keep_order=state.num_prefix > 0)
        size = torch.ones(batch, tokens, device=keys.device) if state.size is None else state.size
        share, size = shares(matching, size)
        x = state.ops.mix(f"{self.name}.merge", x, lambda t: merge(t, matching, share))
        state = state.with_(size=size).tapped(f"{self.name}.merged", matching.source)
        state = state.taken(matching.order[:, state.num_prefix :] - state.num_prefix)
        if state.trace:
            owner = moved_owner(state.owners(batch, keys.device), matching.places())
            state = state.with_(owner=owner).tapped(f"{self.name}.owner", owner)
        return x, state


def summed_keys(keys: Tensor) -> Tensor:
    """Keys summed over the heads, (B, H, N, d) -> (B, N, d): the cosine of sums is that of means.

    Head by head: a reduction over the strided view of q, k, v takes twice as long.
    """
    if torch.compiler.is_exporting():
        return keys.transpose(1, 2).sum(dim=2)  # where the keys lie in the graph
    first, *others = keys.unbind(1)
    for head in others:
        first = first + head
    return first


@dataclass(frozen=True)
class _Row(BlockRow):
    r: Index


@dataclass(frozen=True)
class _Structure:
    blocks: Annotated[tuple[_Row, ...], RISING]


_Inflection = Annotated[float, Ge(-1), Le(1), Rule(lambda value: isinstance(value, float))]
_Merges = Annotated[
    Index | tuple[Index, _Inflection] | Annotated[tuple[Index, ...], MinLen(1)],
    Words("a whole number, 0 or more; (r, inflection) with a float in [-1, 1]; or a list of numbers, one per block"),
]


@method("tome")
@dataclass(frozen=True)
class ToMe:
    """Knobs of the method."""

    r: _Merges = knob(
        13,
        "merges per block (in windows: per window): one number, (r, inflection as a float), or a list: see `schedule`",
    )
    prop_attn: bool = knob(True, "attention in proportion to size; in windows sizes never reach an attention")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"
    dials: ClassVar[tuple[str, ...]] = ("r",)

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Merges where there are any: {"blocks": [{"block": int, "r": int}, ...]}."""
        depth = len(model.blocks)
        if isinstance(self.r, tuple) and not _inflected(self.r) and len(self.r) > depth:
            raise BadInput(f"r lists {len(self.r)} blocks; accepted: up to {depth}, the model's depth")
        return {"blocks": [{"block": i, "r": r} for i, r in enumerate(schedule(self.r, depth)) if r]}

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the steps in, and the score term into every attention that may meet merged tokens.

        Where the model attends in windows, tokens merge in each window for the MLP alone (`tokens/tome/windows.py`).
        """
        rows = [_checked_row(row, model) for row in structure["blocks"]]
        if any(isinstance(attn, WindowAttention) for block in model.blocks for attn in block.attentions()):
            from leanvit.tokens.tome.windows import merge_in_windows  # it builds on this file's algorithm

            return merge_in_windows(model, rows)
        for index, r in rows:
            block: Any = model.blocks[index]
            if any(step.source == "tome" for step in block.between):
                raise Refused(f"{block.name} already reduces tokens by tome: give it other blocks")
            if r:
                block.between.append(Merge(block.name, r=r).train(model.training))
        if self.prop_attn and any(r for _, r in rows):
            for block in model.blocks:
                for attn in block.attentions():
                    attn.terms = (*(term for term in attn.terms if term is not proportional), proportional)

    def achieved(self, model: OpenModel) -> dict[str, Any]:
        """{"patch_tokens": patch tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP more patch tokens are than the plan leaves there; at most half of them can merge.

        In windows, where sizes differ, nothing is checked.
        """
        if any(isinstance(attn, WindowAttention) for block in model.blocks for attn in block.attentions()):
            return []
        counts = model.patch_tokens()
        entering = [model.patches(), *counts]
        rows = [(row["block"], entering[row["block"]], row["r"]) for row in structure["blocks"]]
        planned = [(i, given, given - min(r, given // 2)) for i, given, r in rows]
        return [
            f"block {i}: asked {left} patch tokens of {given}, has {counts[i]}"
            for i, given, left in planned
            if counts[i] > left
        ]

    def places(self, model: OpenModel) -> list[int]:
        """The blocks that get a step."""
        return [row["block"] for row in self.learn(model)["blocks"]]

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> ToMe:
        """With as many merges in every block, up to one more in the first, as leave this share of the model's MACs."""
        depth, totals = len(model.blocks), range(model.patches() + 1)
        return nearest_setting(model, [cls(**knobs, r=_spread(total, depth)) for total in totals], share)


def _spread(total: int, depth: int) -> tuple[int, ...]:
    each, more = divmod(total, depth)
    return tuple(each + (i < more) for i in range(depth))


def _checked_row(row: Mapping[str, Any], model: OpenModel) -> tuple[int, int]:
    """(block, r) of a row of the (perhaps hand-edited) structure, or `BadInput` where the model lacks the block."""
    model.block(row["block"])
    return row["block"], row["r"]
