"""DiffRate: the step in a block, and the method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import moved_owner, new_indices, take_tokens, with_prefix
from leanvit.anatomy.surgery.steps import add_term, insert_step
from leanvit.data import AnyDataset
from leanvit.errors import BadInput, Refused
from leanvit.knobs import RISING, Choice, Count, NonNegative, Positive, Share, Words, check_fields, knob
from leanvit.measure import count
from leanvit.recipe.learning import Data
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow
from leanvit.recipe.training_steps import BATCH, Training, steps_for, steps_of_epoch
from leanvit.tokens.diffrate.cost import TOLERANCE, Costs, reducing, uniform
from leanvit.tokens.diffrate.merging import match, merge, merged_sizes

if TYPE_CHECKING:
    from leanvit.tokens.diffrate.search import Search

SEARCHES = ("learned", "prune", "merge")
AMPS = ("fp32", "bf16")


class Reduce(Step):
    """Ranks the patch tokens of one block, keeps the first ones, merges those behind."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn"})
    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "diffrate"

    def __init__(self, name: str, *, prune: int, merge: int) -> None:
        super().__init__()
        self.name, self.prune, self.merge = name, prune, merge

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        batch, tokens = state.ops.shape(x)[:2]
        scores, prefix = state.cls_attn, state.num_prefix
        if scores is None:
            raise BadInput(f"{self.name}: no class attention in the state; the step belongs into a block's `between`")
        left = min(self.prune - 1, tokens - prefix)  # patch tokens
        kept = prefix + min(self.merge - 1, left)
        order = scores.topk(left, dim=1, sorted=True).indices
        index = with_prefix(order, prefix)
        x = state.ops.rearrange(f"{self.name}.rank", x, lambda t: take_tokens(t, index))
        state = state.taken(order[:, : kept - prefix]).tapped(f"{self.name}.order", order)
        indices = new_indices(index, tokens) if state.trace else None
        size = None if state.size is None else state.size.gather(1, index)
        if kept < prefix + left:
            matching = match(x, kept, prefix=prefix)
            x = state.ops.mix(f"{self.name}.merge", x, lambda t: merge(t, matching))
            size = torch.ones(batch, prefix + left, device=scores.device) if size is None else size
            size = merged_sizes(size, matching)
            if indices is not None:
                indices = indices.scatter(1, index[:, kept:], matching.target)
        state = state.with_(size=size)
        if indices is not None:
            owner = moved_owner(state.owners(batch, scores.device), indices)
            state = state.with_(owner=owner).tapped(f"{self.name}.owner", owner)
        return x, state


@dataclass(frozen=True)
class _Row(BlockRow):
    prune: Count
    merge: Count

    def __post_init__(self) -> None:
        if self.merge < 2 <= self.prune:
            raise BadInput("merge is 1: tokens cannot merge where no patch token stays; accepted: 2 or more")


@dataclass(frozen=True)
class _Structure:
    blocks: Annotated[tuple[_Row, ...], RISING]
    dense_macs: Positive
    reached: float


_Counts = Annotated[
    tuple[Count, ...], Words("a list of whole numbers from 1 (the class token alone), one per block of the model")
]


@method("diffrate")
@dataclass(frozen=True)
class DiffRate:
    """Knobs of the method: a target in MACs, or the lists themselves. With both, the search starts from the lists."""

    macs: Share | None = knob(None, "share of the dense model's MACs that is left", example=0.6)
    prune: _Counts | None = knob(
        None, "tokens that stay after pruning, the class token counted", example=(197, 150, 150, 100, 100, 60)
    )
    merge: _Counts | None = knob(None, "and after merging", example=(197, 150, 120, 100, 80, 60))
    search: Annotated[str, Choice(SEARCHES)] = knob(
        "learned", "how the lists come about; controls: prune or merge alike in every block"
    )
    granularity: Count | None = knob(None, "tokens between two candidates; null: 4, below 100 patches 1", example=4)
    max_steps: Count | None = knob(
        None, "optimiser steps of the search; null: 30 passes over the images, 300 to 1000 steps", example=500
    )
    batch_size: Count | None = knob(None, "images a step; null: 64, or as many as there are", example=64)
    lr: Positive = knob(0.01, "of the rates, down to min_lr by a cosine")
    min_lr: NonNegative = knob(0.001, "where the cosine ends")
    macs_weight: Positive = knob(500.0, "of ((MACs - target) / dense MACs)² beside the cross-entropy")
    warmup: Annotated[float, Ge(0), Le(0.9)] = knob(0.0, "share of the steps at the start without that term")
    prop_attn: bool = knob(True, "attention in proportion to size")
    amp: Annotated[str, Choice(AMPS)] = knob("fp32", "of the search's forwards")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    open_knobs: ClassVar[tuple[str, ...]] = ("max_steps", "batch_size")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.macs is None and self.prune is None and self.merge is None:
            raise BadInput("diffrate is given no target; accepted: macs, or the lists prune and merge")
        if self.search != "learned" and (self.macs is None or self.prune is not None or self.merge is not None):
            raise BadInput(f"search is {self.search!r}, which needs macs, and takes no lists")
        if self.min_lr > self.lr:
            raise BadInput(f"min_lr is {self.min_lr!r}; accepted: up to {self.lr!r}, which is lr")
        if not self.searches:  # nothing is learned from data then
            object.__setattr__(self, "needs_data", False)
            object.__setattr__(self, "trains", False)

    @property
    def searches(self) -> bool:
        """Whether the lists are learned."""
        return self.macs is not None and self.search == "learned"

    def chosen_for(self, dataset: AnyDataset) -> DiffRate:
        """With a batch, and steps of the search, that suit the data, unless they are given."""
        if not self.searches or self.macs == 1 or None not in (self.max_steps, self.batch_size):
            return self
        batch = self.batch_size or max(1, min(BATCH, len(dataset)))
        steps = self.max_steps or steps_for(len(dataset), batch, passes=30, least=300, most=1000)
        return replace(self, batch_size=batch, max_steps=steps)

    def trainings(self, dataset: AnyDataset) -> list[Training]:
        """What `learn` trains. Raises `BadInput` where the images do not fill a batch."""
        if not self.searches or self.macs == 1:
            return []
        epoch = steps_of_epoch("diffrate", self.images, len(dataset))
        return [Training("diffrate", -(-self.steps // epoch), self.steps, self.images)]

    @property
    def steps(self) -> int:
        """Optimiser steps of the search, once they are given or chosen."""
        assert self.max_steps is not None, "chosen_for(dataset) comes first"
        return self.max_steps

    @property
    def images(self) -> int:
        """Images a step of the search."""
        return BATCH if self.batch_size is None else self.batch_size

    # --- the life of a method --------------------------------------------------------

    def check_fits(self, model: OpenModel, data: Data | None) -> None:
        """Raise what `learn` would before its first step."""
        costs = Costs.of(model)
        self._lists(costs)
        if self.searches:
            self._search(data).check(model, costs, data)

    def learn(self, model: OpenModel, data: Data | None = None) -> Structure:
        """Search, or take the lists: {"blocks": [{"block", "prune", "merge"}, ...], "dense_macs", "reached"}.

        The state of the search is in `data.out`, where there is one: a killed one goes on from there.

        Raises:
            BadInput: lists that are not as long as the model is deep.
            Refused: a target that the model cannot reach.
        """
        costs = Costs.of(model)
        lists = self._lists(costs)
        if self.macs == 1:
            lists = ([costs.tokens] * costs.depth,) * 2
        elif self.searches:
            assert data is not None
            lists = self.chosen_for(data.dataset)._search(data).run(model, costs, data, start=lists)
        elif self.macs is not None:
            lists = uniform(costs, self.macs, self.search)
        assert lists is not None
        if any(later > earlier for counts in lists for earlier, later in pairwise(counts)):
            warnings.warn("diffrate: a list rises; that block has fewer tokens than planned", stacklevel=2)
        reached = float(costs.macs(*lists)) / costs.dense
        rows = [{"block": i, "prune": p, "merge": m} for i, p, m in reducing(costs.tokens, *lists)]
        return {"blocks": rows, "dense_macs": costs.dense, "reached": reached}

    def _search(self, data: Data | None) -> Search:
        """The search for `macs`. Its steps are known once data are: without, nothing can be run."""
        from leanvit.tokens.diffrate.search import Search

        assert self.macs is not None
        return Search(
            macs=self.macs,
            granularity=self.granularity,
            steps=self.max_steps,
            images=self.images,
            lr=self.lr,
            min_lr=self.min_lr,
            macs_weight=self.macs_weight,
            warmup=self.warmup,
            prop_attn=self.prop_attn,
            amp=self.amp,
        )

    def _lists(self, costs: Costs) -> tuple[list[int], list[int]] | None:
        if self.prune is None and self.merge is None:
            return None
        for name in ("prune", "merge"):
            counts = getattr(self, name)
            if counts is not None and len(counts) != costs.depth:
                raise BadInput(f"{name} lists {len(counts)} blocks; accepted: {costs.depth}, the model's depth")
        prune = self.prune or (costs.tokens,) * costs.depth
        return list(prune), list(self.merge or prune)

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the steps in, and the score term into every attention where tokens merge."""
        if model.cls_token is None:
            raise Refused("diffrate ranks patches by the attention of a class token, which this model does not have")
        rows = [_checked_row(row, model) for row in structure["blocks"]]
        for index, pruned, kept in rows:
            insert_step(model, index, "between", Reduce(model.blocks[index].name, prune=pruned, merge=kept))
        if self.prop_attn and any(kept < pruned for _, pruned, kept in rows):
            add_term(model, proportional)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The grid: its counts are of the tokens there."""
        return {"grid": "it prunes and merges to numbers of tokens of it"} if structure["blocks"] else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """Patch tokens in each block's MLP, and MACs over the dense model's, counted in a run of the model."""
        return {"patch_tokens": model.patch_tokens(), "macs": _share(model, structure)}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks with more tokens than the plan leaves there, and a target in MACs that was missed."""
        counts = model.patch_tokens()
        planned = [(row["block"], min(row["prune"], row["merge"]) - 1) for row in structure["blocks"]]
        misses = [f"block {i}: requested {n} patch tokens, has {counts[i]}" for i, n in planned if counts[i] > n]
        if self.macs is not None:
            share = _share(model, structure)
            after = model.history.plans[-1].slug != "diffrate"  # a later method may have taken more: its own doing
            if share / self.macs - 1 > TOLERANCE or (1 - share / self.macs > TOLERANCE and not after):
                misses.append(f"macs {self.macs:g} was requested, {share:.3f} reached")
        return misses

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> DiffRate:
        """With this target: the lists are found while it learns."""
        return cls(**knobs, macs=share)

    def fills(self, model: OpenModel) -> list[int]:
        """The blocks that get a step; of lists that are yet to be found, all that may."""
        depth = len(model.blocks)
        if self.macs is not None or (self.prune is None and self.merge is None):
            return list(range(1, depth)) if self.macs != 1 else []
        unlimited = (model.patches() + 1,) * depth
        lists = (self.prune or unlimited, self.merge or unlimited)
        return [i for i, _, _ in reducing(unlimited[0], *lists)]


def _share(model: OpenModel, structure: Mapping[str, Any]) -> float:
    return count(model, model.input_size()).macs / structure["dense_macs"]


def _checked_row(row: Mapping[str, Any], model: OpenModel) -> tuple[int, int, int]:
    """(block, prune, merge) of a row of the (perhaps hand-edited) structure, or `BadInput` where there is no block."""
    model.block(row["block"])
    return row["block"], row["prune"], row["merge"]
