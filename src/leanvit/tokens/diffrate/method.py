"""DiffRate: the step in a block, and the method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import moved_owner, new_places, take_tokens, with_prefix
from leanvit.anatomy.surgery.steps import add_term, insert_step
from leanvit.data import AnyDataset
from leanvit.errors import BadInput, Refused, is_number, is_whole, unknown
from leanvit.measure import count
from leanvit.recipe.course import BATCH, Training, steps_for, steps_of_epoch
from leanvit.recipe.learning import Data
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow, Rising, StructureModel
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
        places = new_places(index, tokens) if state.trace else None
        size = None if state.size is None else state.size.gather(1, index)
        if kept < prefix + left:
            matching = match(x, kept, prefix=prefix)
            x = state.ops.mix(f"{self.name}.merge", x, lambda t: merge(t, matching))
            size = torch.ones(batch, prefix + left, device=scores.device) if size is None else size
            size = merged_sizes(size, matching)
            if places is not None:
                places = places.scatter(1, index[:, kept:], matching.target)
        state = state.with_(size=size)
        if places is not None:
            owner = moved_owner(state.owners(batch, scores.device), places)
            state = state.with_(owner=owner).tapped(f"{self.name}.owner", owner)
        return x, state


class _Row(BlockRow):
    prune: int
    merge: int


class _Structure(StructureModel):
    blocks: Annotated[list[_Row], Rising]
    dense_macs: Annotated[float, Field(gt=0)]
    reached: float


@method("diffrate")
@dataclass(frozen=True)
class DiffRate:
    """Knobs of the method: a target in MACs, or the lists themselves. With both, the search starts from the lists."""

    macs: float | None = None  # share of the dense model's, in (0, 1)
    prune: tuple[int, ...] | None = None  # tokens that stay after pruning, one per block, the class token counted
    merge: tuple[int, ...] | None = None  # and after merging
    search: str = "learned"  # how the lists come about; controls: "prune" or "merge" alike in every block
    granularity: int | None = None  # tokens between two candidates; None: 4, below 100 patches 1
    max_steps: int | None = None  # optimiser steps of the search; None: 30 passes over the images, 300 to 1000 steps
    batch_size: int | None = None  # None: 64, or as many as there are images
    lr: float = 0.01  # of the rates, down to min_lr by a cosine
    min_lr: float = 0.001
    macs_weight: float = 500.0  # of ((MACs - target) / dense MACs)² beside the cross-entropy
    warmup: float = 0.0  # share of the steps at the start without that term
    prop_attn: bool = True  # attention in proportion to size
    amp: str = "fp32"  # of the search's forwards: fp32 or bf16

    structure_model: ClassVar[type[StructureModel]] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    dials: ClassVar[tuple[str, ...]] = ("macs", "prune", "merge")
    open_knobs: ClassVar[tuple[str, ...]] = ("max_steps", "batch_size")

    def __post_init__(self) -> None:
        for name in ("prune", "merge"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.search not in SEARCHES:
            raise unknown("search", self.search, SEARCHES)
        if self.amp not in AMPS:
            raise unknown("amp", str(self.amp), AMPS)
        self._check_target()
        for name in ("max_steps", "batch_size", "granularity"):
            value = getattr(self, name)
            if not (is_whole(value, least=1) or value is None):
                raise BadInput(f"{name} is {value!r}; accepted: a whole number, 1 or more")
        if not is_number(self.lr, above=0) or not is_number(self.min_lr, least=0, most=self.lr):
            raise BadInput(f"lr is {self.lr!r}, min_lr {self.min_lr!r}; accepted: 0 <= min_lr <= lr, lr above 0")
        if not is_number(self.macs_weight, above=0):
            raise BadInput(f"macs_weight is {self.macs_weight!r}; accepted: a number above 0")
        if not is_number(self.warmup, least=0, most=0.9):
            raise BadInput(f"warmup is {self.warmup!r}; accepted: 0 to 0.9 (of the steps)")
        if not isinstance(self.prop_attn, bool):
            raise BadInput(f"prop_attn is {self.prop_attn!r}; accepted: true or false")
        if not self.searches:  # nothing is learned from data then
            object.__setattr__(self, "needs_data", False)
            object.__setattr__(self, "trains", False)

    def _check_target(self) -> None:
        if self.macs is None and self.prune is None and self.merge is None:
            raise BadInput("diffrate is given no target; accepted: macs, or the lists prune and merge")
        if self.macs is not None and not is_number(self.macs, above=0, most=1):
            raise BadInput(f"macs is {self.macs!r}; accepted: above 0, up to 1 (of the dense model's)")
        for name in ("prune", "merge"):
            counts = getattr(self, name)
            if counts is not None and not (isinstance(counts, tuple) and all(is_whole(n, least=1) for n in counts)):
                raise BadInput(f"{name} is {counts!r}; accepted: whole numbers from 1 (the class token), one per block")
        if self.search != "learned" and (self.macs is None or self.prune is not None or self.merge is not None):
            raise BadInput(f"search is {self.search!r}, which needs macs, and takes no lists")

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
            warnings.warn("diffrate: a list rises; there are fewer tokens than it says in that block", stacklevel=2)
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

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """Patch tokens in each block's MLP, and MACs over the dense model's, counted in a run of the model."""
        return {"patch_tokens": model.patch_tokens(), "macs": _share(model, structure)}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks with more tokens than the plan leaves there, and a target in MACs that was missed."""
        counts = model.patch_tokens()
        asked = [(row["block"], min(row["prune"], row["merge"]) - 1) for row in structure["blocks"]]
        misses = [f"block {i}: asked {n} patch tokens, has {counts[i]}" for i, n in asked if counts[i] > n]
        if self.macs is not None:
            share = _share(model, structure)
            after = model.history.plans[-1].slug != "diffrate"  # a later method may have taken more: its own doing
            if share / self.macs - 1 > TOLERANCE or (1 - share / self.macs > TOLERANCE and not after):
                misses.append(f"macs {self.macs:g} was asked for, {share:.3f} reached")
        return misses

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> DiffRate:
        """With this target: the lists are found while it learns."""
        return cls(**knobs, macs=share)

    def places(self, model: OpenModel) -> list[int]:
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
    """(block, prune, merge) of a row of the (perhaps hand-edited) structure, or `BadInput`."""
    index, pruned, kept = row["block"], row["prune"], row["merge"]
    if not is_whole(index, least=0, most=len(model.blocks) - 1):
        raise BadInput(f"the plan reduces in block {index!r}; accepted: 0 to {len(model.blocks) - 1}")
    for name, value in (("prune", pruned), ("merge", kept)):
        if not is_whole(value, least=1):
            raise BadInput(
                f"{name} of block {index} is {value!r}; accepted: a whole number, 1 (the class token) or more"
            )
    if kept < 2 <= pruned:
        raise BadInput(
            f"merge of block {index} is 1: tokens cannot merge where no patch token stays; accepted: 2 or more"
        )
    return index, pruned, kept
