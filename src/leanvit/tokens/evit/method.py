"""EViT: attentive tokens, the schedule of the keep rate, and the method."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.parts.tokens import moved_owner, new_indices, take_tokens, with_prefix
from leanvit.anatomy.surgery.steps import insert_step
from leanvit.errors import BadInput, Refused
from leanvit.knobs import RISING, Blocks, Choice, Count, Index, Share, Words, check, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow

SELECTIONS = ("attention", "random", "lowest")


# --- the algorithm ---------------------------------------------------------------


def kept_count(patches: int, keep_rate: float) -> int:
    """How many of `patches` tokens stay: ceil(rate · n), n counting a token fused earlier too."""
    return math.ceil(keep_rate * patches)


def keep_most_attended(scores: Tensor, count: int) -> Tensor:
    """The `count` best of (B, n), best first: (B, count) int64."""
    return scores.topk(count, dim=-1, sorted=True).indices


def reorganize(x: Tensor, kept: Tensor, *, prefix: int, scores: Tensor | None = None) -> Tensor:
    """Keep tokens and, when `scores` are given, fuse the others.

    Args:
        x: (B, prefix + n, C) tokens after the attention's residual sum.
        kept: (B, k) int64 indices among the n patch tokens, in the order wanted.
        scores: (B, n) class attention. The fused token is the raw sum of attention x token over the tokens not kept:
            weights are not normalised (official code and paper, section 3.2).

    Returns:
        (B, prefix + k, C), or (B, prefix + k + 1, C) with the fused token last.
    """
    out = take_tokens(x, with_prefix(kept, prefix))
    if scores is None:
        return out
    weights = scores.scatter(1, kept, 0.0).to(x.dtype).unsqueeze(1)  # (B, 1, n), zero where kept: no second gather
    if torch.compiler.is_exporting():  # a runtime would copy x[:, prefix:]: the prefix gets weight zero instead
        return torch.cat([out, F.pad(weights, (prefix, 0)) @ x], dim=1)
    return torch.cat([out, weights @ x[:, prefix:]], dim=1)


def keep_rate_at(
    iteration: int,
    *,
    steps_per_epoch: int,
    base: float,
    start_epoch: int = 0,
    shrink_epochs: int = 0,
    maximum: float = 1.0,
) -> float:
    """The keep rate of a training iteration: 1 before `start_epoch`, then a cosine from `maximum` down to `base`."""
    epoch = iteration // steps_per_epoch
    if epoch < start_epoch:
        return 1.0
    if epoch >= start_epoch + shrink_epochs:
        return base
    progress = (iteration - start_epoch * steps_per_epoch) / (shrink_epochs * steps_per_epoch)
    return base + (maximum - base) * (math.cos(math.pi * progress) + 1) * 0.5


# --- in a model ------------------------------------------------------------------


class Reorganize(Step):
    """Keeps the most attended patch tokens of one block.

    `keep_rate` is the block's own. A run-time rate (`State.keep_rate`) takes its place only where it is below 1;
    `tokens`, an absolute count, overrides both.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn"})
    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "evit"

    def __init__(
        self, name: str, *, keep_rate: float, tokens: int | None, fuse: bool, select: str = "attention", seed: int = 0
    ) -> None:
        super().__init__()
        self.name = name
        self.keep_rate, self.tokens, self.fuses = keep_rate, tokens, fuse
        self.select, self.seed = select, seed

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        tokens = state.ops.shape(x)[1]
        patches = tokens - state.num_prefix
        count = self.count(patches, state.keep_rate)
        if count == patches:
            return x, state
        scores = state.cls_attn
        if scores is None:
            raise BadInput(f"{self.name}: no class attention in the state; the step belongs into a block's `between`")
        kept = self.chosen(scores, count)
        state = self._tracked(self._placed(state, kept, scores), kept, tokens)
        if not self.fuses:
            x = state.ops.rearrange(f"{self.name}.keep", x, lambda t: reorganize(t, kept, prefix=state.num_prefix))
            return x, state
        x = state.ops.mix(f"{self.name}.fuse", x, lambda t: reorganize(t, kept, prefix=state.num_prefix, scores=scores))
        return x, state

    def count(self, patches: int, run_rate: float | None = None) -> int:
        """Patch tokens that stay of `patches` (the fused token not counted)."""
        if self.tokens is not None:
            if self.tokens > patches:
                raise BadInput(f"{self.name}: tokens is {self.tokens}, but only {patches} patch tokens enter the block")
            return self.tokens
        if self.keep_rate == 1:
            return patches
        check("run-time keep_rate", run_rate, Share | None)
        return kept_count(patches, self.keep_rate if run_rate is None else run_rate)

    def chosen(self, scores: Tensor, count: int) -> Tensor:
        """(B, n) class attention -> (B, count) int64."""
        if self.select == "attention":
            return keep_most_attended(scores, count)
        if self.select == "lowest":
            return keep_most_attended(-scores, count)
        indices = random.Random(f"{self.seed}/{self.name}").sample(range(scores.shape[1]), count)
        return torch.tensor(indices, device=scores.device).expand(scores.shape[0], -1)

    def _placed(self, state: State, kept: Tensor, scores: Tensor) -> State:
        """Positions go with the tokens; the fused one is where the most attended of its tokens was."""
        if not self.fuses or not state.positional:
            return state.taken(kept)
        heaviest = scores.scatter(1, kept, float("-inf")).argmax(dim=1, keepdim=True)
        return state.taken(torch.cat([kept, heaviest], dim=1))

    def _tracked(self, state: State, kept: Tensor, tokens: int) -> State:
        """The state with sizes, owners and taps after the selection."""
        state = state.tapped(f"{self.name}.topk", kept)
        index = with_prefix(kept, state.num_prefix)
        if state.size is not None:  # some other method weighs tokens: sizes go on adding up to all patches
            state = state.with_(size=self._sizes(state.size, index))
        if not state.trace:
            return state
        last = index.shape[1]
        indices = new_indices(index, tokens, rest=last if self.fuses else -1)
        owner = moved_owner(state.owners(index.shape[0], index.device), indices)
        return state.with_(owner=owner).tapped(f"{self.name}.owner", owner).tapped(f"{self.name}.fused", owner == last)

    def _sizes(self, size: Tensor, index: Tensor) -> Tensor:
        """(B, N') patches of each token; the fused one stands for all that it was fused from."""
        kept = size.gather(1, index)
        rest = size.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)
        return torch.cat([kept, rest], dim=1) if self.fuses else kept


@dataclass(frozen=True)
class KeepRateSchedule:
    """Training callback: hands each iteration its keep rate (`keep_rate_at`). It follows from the step alone, so a
    resumed run continues it."""

    base: float
    start_epoch: int = 0
    shrink_epochs: int = 0

    def before_forward(self, run: Any) -> None:
        """`run` has `step`, `steps_per_epoch` and `context`, the keyword arguments of the next forward."""
        run.context["keep_rate"] = keep_rate_at(
            run.step,
            steps_per_epoch=run.steps_per_epoch,
            base=self.base,
            start_epoch=self.start_epoch,
            shrink_epochs=self.shrink_epochs,
        )


@dataclass(frozen=True)
class _Row(BlockRow):
    keep_rate: Share
    tokens: Count | None = None


@dataclass(frozen=True)
class _Structure:
    blocks: Annotated[tuple[_Row, ...], RISING]


_Counts = Annotated[tuple[Count | None, ...], MinLen(1), Words("a list of such or null, one per block of the model")]


@method("evit")
@dataclass(frozen=True)
class EViT:
    """Knobs of the method. The defaults are the paper's."""

    keep_rate: Share | Annotated[tuple[Share, ...], MinLen(1)] = knob(
        0.7, "share of the patch tokens that stay in each chosen block, or one for each block of the model"
    )
    blocks: Blocks | None = knob(None, "where; null: at 1/4, 1/2 and 3/4 of the depth", example=(3, 6, 9))
    fuse: bool = knob(True, "fuse what is not kept into one token, or drop it")
    tokens: Count | _Counts | None = knob(
        None, "patch tokens to keep, over the rate; likewise one, or a list", example=100
    )
    start_epoch: Index = knob(0, "of training: the rate is 1 before it")
    shrink_epochs: Index = knob(0, "of training: how long the rate takes from 1 down to keep_rate")
    select: Annotated[str, Choice(SELECTIONS)] = knob(
        "attention", "which tokens stay; controls: random (the same positions for every image) and lowest"
    )
    seed: Index = knob(0, "of the random control")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.start_epoch or self.shrink_epochs) and len({r for r in _several(self.keep_rate) if r < 1}) > 1:
            raise BadInput(
                f"keep_rate is {self.keep_rate!r}; accepted with start_epoch or shrink_epochs: one number, "
                "a schedule steers a single rate"
            )
        for name in ("keep_rate", "tokens") if self.blocks is not None else ():
            if isinstance(getattr(self, name), tuple):
                raise BadInput(
                    f"blocks is {self.blocks!r}, but {name} lists every block of the model: give one of the two"
                )

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Where and how much: {"blocks": [{"block": int, "keep_rate": float, "tokens": int | None}, ...]}.

        Raises:
            BadInput: a list that is not as long as the model is deep, or a block that it does not have.
        """
        depth = len(model.blocks)
        chosen = default_blocks(depth) if self.blocks is None else self.blocks
        for i in chosen:
            model.block(i)
        rates = _per_block("keep_rate", self.keep_rate, chosen, depth, other=1.0)
        counts = _per_block("tokens", self.tokens, chosen, depth, other=None)
        rows = [
            {"block": i, "keep_rate": rate, "tokens": count}
            for i, (rate, count) in enumerate(zip(rates, counts, strict=True))
            if rate != 1 or count is not None
        ]
        return {"blocks": rows}

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the steps in; a block whose rate is 1 and that has no count gets none."""
        if model.cls_token is None:
            raise Refused("evit scores patches by the attention of a class token, which this model does not have")
        rows = [_checked_row(row, model) for row in structure["blocks"]]
        for row in rows:
            if row["keep_rate"] == 1 and row["tokens"] is None:
                continue
            step = Reorganize(
                model.blocks[row["block"]].name,
                keep_rate=row["keep_rate"],
                tokens=row["tokens"],
                fuse=self.fuse,
                select=self.select,
                seed=self.seed,
            )
            insert_step(model, row["block"], "between", step)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The grid, where it keeps numbers of tokens; a share is one of any grid."""
        counts = [row["tokens"] for row in structure["blocks"] if row["tokens"] is not None]
        return {"grid": f"it keeps {', '.join(map(str, counts))} tokens of it"} if counts else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"patch_tokens": patch tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP more patch tokens are than the plan leaves there, counted in a run of the model."""
        counts = model.patch_tokens()
        entering = [model.patches(), *counts]
        misses = []
        for row in structure["blocks"]:
            i, given = row["block"], entering[row["block"]]
            kept = row["tokens"] or kept_count(given, row["keep_rate"])
            planned = min(kept + self.fuse, given)
            if counts[i] > planned:
                misses.append(f"block {i}: requested {planned} patch tokens of {given}, has {counts[i]}")
        return misses

    def fills(self, model: OpenModel) -> list[int]:
        """The blocks that get a step."""
        return [row["block"] for row in self.learn(model)["blocks"]]

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> EViT:
        """With the keep rate, one for all chosen blocks, that leaves this share of the model's MACs."""
        rates = (step / 200 for step in range(200, 0, -1))
        return nearest_setting(model, [cls(**knobs, keep_rate=rate) for rate in rates], share)

    def callbacks(self, model: OpenModel) -> list[KeepRateSchedule]:
        """The schedule of the keep rate for the training that follows; empty when the rate is fixed."""
        if not self.start_epoch and not self.shrink_epochs:
            return []
        base = min(_several(self.keep_rate))
        return [KeepRateSchedule(base, start_epoch=self.start_epoch, shrink_epochs=self.shrink_epochs)]


def default_blocks(depth: int) -> tuple[int, ...]:
    """1/4, 1/2 and 3/4 of the depth: 3, 6, 9 of 12 (the paper's 4th, 7th and 10th layer)."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _per_block(name: str, value: Any, chosen: Sequence[int], depth: int, *, other: Any) -> list[Any]:
    """A knob for each block of the model: one value goes to the chosen blocks, a list is taken as it is."""
    if isinstance(value, tuple):
        if len(value) != depth:
            raise BadInput(f"{name} lists {len(value)} blocks; accepted: one value, or {depth} (one per block)")
        return list(value)
    return [value if i in chosen else other for i in range(depth)]


def _checked_row(row: Mapping[str, Any], model: OpenModel) -> dict[str, Any]:
    """A row of the (perhaps hand-edited) structure, or `BadInput` where the model lacks the block."""
    model.block(row["block"])
    return {"tokens": None, **row}
