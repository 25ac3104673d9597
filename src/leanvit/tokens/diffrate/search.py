"""The search of DiffRate (arXiv 2305.17997, sections 3.3 and 3.4): token counts as expectations that are trained.

Each block has two rates, for pruning and for merging. A rate is a distribution over candidate counts; the count in use
is its mean, rounded up, and the gradient goes straight through the rounding. While searching, all tokens stay in the
tensor: masks say which are still there, the softmax is taken over those, and a mask carries the gradient of the loss to
the probability that a token of its rank survives. Weights of the model are frozen.

In training sizes are at least 1 before they are summed, and merging leaves what merged where it was; both are the
published behaviour, and the reason why logits differ a little from those of the model that is deployed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, Ops, Phases, State, Step
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import take_tokens, with_prefix
from leanvit.anatomy.surgery.steps import add_term, insert_step
from leanvit.data import Batch
from leanvit.data.fields import LABEL
from leanvit.recipe.learning import Data, whole_of
from leanvit.tasks import Task
from leanvit.tokens.diffrate.cost import Costs, Lists, require_reached
from leanvit.tokens.diffrate.merging import match
from leanvit.tokens.diffrate.merging import merge as means
from leanvit.training import Loss, Objective

KEY = "diffrate"  # in `State.extra`
EPSILON = 1e-6  # of the masked softmax
NOTHING = 1e-9  # size of a token that is not there: attention pooling takes logarithms of sizes

# --- the algorithm ---------------------------------------------------------------


class Rate(nn.Module):
    """How many of `patches` tokens stay: a distribution over candidates (paper, equations 5 to 8).

    Candidates are patches, patches - granularity, ..., above 0; they start alike. Counts include the class token.
    """

    candidates: Tensor  # (n,) float32, falling

    def __init__(self, patches: int, granularity: int) -> None:
        super().__init__()
        self.patches = patches
        self.register_buffer("candidates", torch.arange(patches, 0, -granularity, dtype=torch.float32))
        self.logits = nn.Parameter(torch.zeros(len(self.candidates)))

    def expected(self) -> Tensor:
        """Mean count, not rounded: a scalar."""
        return (self.candidates * self.logits.softmax(dim=0)).sum() + 1

    def kept(self) -> Tensor:
        """`count` as a float32 scalar; its gradient is that of the mean."""
        mean = self.expected()
        return mean + (self.count - mean).detach()

    @property
    def count(self) -> int:
        """The count in use: the mean rounded up, unless it is whole but for the rounding of its sum."""
        mean = float(self.candidates.double() @ self.logits.detach().double().softmax(dim=0)) + 1
        return round(mean) if abs(mean - round(mean)) < 1e-9 else math.ceil(mean)

    def survival(self) -> Tensor:
        """Probability that a token of each rank stays, (patches + 1,); rank 0 is the class token."""
        rank = torch.arange(self.patches + 1, device=self.logits.device)
        stays = (self.candidates.unsqueeze(0) + 1 > rank.unsqueeze(1)).to(self.logits)
        return stays @ self.logits.softmax(dim=0)

    def mask(self, present: int) -> Tensor:
        """(patches + 1,) 0 for the ranks from `count` up to `present`, else 1; its gradient is that of `survival`."""
        rank = torch.arange(self.patches + 1, device=self.logits.device)
        hard = 1 - ((rank >= self.count) & (rank < present)).to(self.logits)
        stays = self.survival()
        return hard + stays - stays.detach()

    @torch.no_grad()
    def start_at(self, count: int) -> None:
        """Logits whose mean is `count`: a bell around it, moved until it is."""
        wanted = min(max(count - 1, float(self.candidates[-1])), float(self.candidates[0]))
        width = max(float(self.candidates[0] - self.candidates[-1]) / 10, 1.0)
        low, high = -2.0 * self.patches, 3.0 * self.patches
        for _ in range(60):
            middle = (low + high) / 2
            self.logits.copy_(-((self.candidates - middle) ** 2) / (2 * width**2))
            low, high = (middle, high) if float(self.expected()) - 1 < wanted else (low, middle)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the tokens that are there, (B, H, R, N) with mask (B, N); the first R queries.

    A token that is not there attends to itself alone.
    """
    tokens = scores.shape[-1]
    own = torch.eye(tokens, device=scores.device)[: scores.shape[-2]]
    present = mask[:, None, None, :]
    raised = (scores - scores.amax(dim=-1, keepdim=True)).float().exp() * (present + (1 - present) * own)
    return ((raised + EPSILON / tokens) / (raised.sum(dim=-1, keepdim=True) + EPSILON)).to(scores.dtype)


# --- in a model ------------------------------------------------------------------


@dataclass(frozen=True)
class PresentTokens:
    """Which tokens are still present while searching."""

    mask: Tensor  # (B, N) float32, 1 or 0
    count: int  # patch tokens that are there, and one class token: the same for every image


def only_present(phases: Phases, state: State) -> Phases:
    """Score term: attention over the tokens that are there."""
    present = state.extra.get(KEY)
    return phases if present is None else phases.with_(normaliser=partial(masked_softmax, mask=present.mask))


class SoftReduce(Step):
    """Ranks the tokens of one block; masks, instead of removing, those that are pruned and merged."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn"})
    source: ClassVar[str] = "diffrate"

    def __init__(self, name: str, patches: int, granularity: int) -> None:
        super().__init__()
        self.name = name
        self.prune_rate, self.merge_rate = Rate(patches, granularity), Rate(patches, granularity)

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        batch, tokens = x.shape[:2]
        scores, prefix = state.cls_attn, state.num_prefix
        assert scores is not None
        present = state.extra.get(KEY) or PresentTokens(torch.ones(batch, tokens, device=x.device), tokens - prefix + 1)
        gone = present.mask.detach()[:, prefix:] < 0.5
        order = scores.masked_fill(gone, -1.0).argsort(dim=1, descending=True, stable=True)
        index = with_prefix(order, prefix)
        x, mask, count = take_tokens(x, index), present.mask.gather(1, index), present.count
        size = torch.ones_like(mask) if state.size is None else state.size.gather(1, index)
        left = self.prune_rate.count
        if left < count:
            mask, count = mask * _spread(self.prune_rate.mask(count), prefix), left
        kept = self.merge_rate.count
        if kept < count:
            x, size = _merged(x, size, prefix + kept - 1, prefix + count - 1, prefix)
            mask, count = mask * _spread(self.merge_rate.mask(count), prefix), kept
        state = state.taken(order)
        return x, state.with_(size=size, extra={**state.extra, KEY: PresentTokens(mask, count)})


def _spread(mask: Tensor, prefix: int) -> Tensor:
    """A mask by rank, for a sequence with `prefix` tokens in front of the patches."""
    return mask if prefix == 1 else torch.cat([mask.new_ones(prefix), mask[1:]])


def _merged(x: Tensor, size: Tensor, kept: int, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Means in place of the first `kept` tokens; those behind stay as they are."""
    matching = match(x[:, :count], kept, prefix=prefix)
    x = torch.cat([means(x[:, :count], matching), x[:, kept:]], dim=1)
    given = size[:, kept:count] * matching.similarity
    size = torch.cat([size[:, :kept], given, size[:, count:]], dim=1).clamp(min=1)
    return x, size.scatter_add(1, matching.target, size[:, kept:count])


class CountPresent(Step):
    """After the last block: what is not there does not weigh in a mean over tokens."""

    source: ClassVar[str] = "diffrate"

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        present = state.extra.get(KEY)
        if present is None:
            return x, state
        size = torch.ones_like(present.mask) if state.size is None else state.size
        return x, state.with_(size=size * present.mask + NOTHING)


class DetachedMean(Ops):
    """The mean over tokens whose divisor has no gradient (published code)."""

    def mean(self, site: str, x: Any, *, weights: Tensor | None = None) -> Any:
        if weights is None:
            return super().mean(site, x)
        mean = (x * weights.unsqueeze(-1)).sum(dim=1) / weights.detach().sum(dim=1, keepdim=True)
        return mean.to(x.dtype)


def searching(model: OpenModel, granularity: int | None, *, prop_attn: bool = True) -> OpenModel:
    """A copy with rates in every block and frozen weights."""
    copied = copy.deepcopy(model).requires_grad_(False)
    return with_rates(copied, granularity, prop_attn=prop_attn)


def with_rates(model: OpenModel, granularity: int | None, *, prop_attn: bool) -> OpenModel:
    """The model with rates in every block, put in in place.

    The first block keeps all tokens, and of mean-pooled models the last one too (published).
    """
    copied: Any = model
    copied.keep_all_patches()  # with some dropped at random, fewer could be there than a rate keeps: nothing to learn
    patches = copied.patches()
    step = granularity or (4 if patches >= 100 else 1)
    last = len(copied.blocks) - 1
    for i, block in enumerate(copied.blocks):
        fixed = i == 0 or (i == last and copied.global_pool == "avg")
        insert_step(copied, i, "between", SoftReduce(block.name, patches, patches + 1 if fixed else step))
    if prop_attn:
        add_term(copied, proportional)
    add_term(copied, only_present)
    insert_step(copied, last, "after", CountPresent())
    copied.set_ops(DetachedMean())
    found: OpenModel = copied
    return found


def rates(model: OpenModel) -> list[SoftReduce]:
    """The rates of a searching model, block by block."""
    return [step for block in model.blocks for step in block.steps() if isinstance(step, SoftReduce)]


def lists_of(steps: list[SoftReduce]) -> Lists:
    """The counts in use."""
    return [s.prune_rate.count for s in steps], [s.merge_rate.count for s in steps]


# --- the search ------------------------------------------------------------------


class MacsPenalty(Objective):
    """Loss of the task + weight · ((MACs - target) / dense MACs)², after the warm-up."""

    def __init__(
        self,
        steps: list[SoftReduce],
        costs: Costs,
        *,
        share: float,
        weight: float,
        warmup: int,
        task: Task,
    ) -> None:
        super().__init__()
        self.task = task
        self.needs_labels = LABEL in task.reads
        self.steps, self.costs = tuple(steps), costs  # a tuple: the rates are the model's parameters, not these
        self.share, self.weight, self.warmup = share, weight, warmup
        self.base = task.objective()

    def extra_repr(self) -> str:
        """What a run to resume must have alike."""
        return f"macs={self.share}, weight={self.weight}, warmup={self.warmup}, {self.costs}"

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        return self.task.terms(batch)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        task = self.task.loss(self.task.run(model, batch.images, **context), batch)
        share = self.reached()
        parts = {"task": task.detach(), "macs": share.detach()}
        if step < self.warmup:
            return Loss(task, parts)
        return Loss(task + self.weight * (share - self.share) ** 2, parts)

    def reached(self) -> Tensor:
        """MACs of the counts in use over the dense model's, differentiable."""
        prune = [s.prune_rate.kept() for s in self.steps]
        merge = [s.merge_rate.kept() for s in self.steps]
        share: Tensor = self.costs.macs(prune, merge) / self.costs.dense
        return share


@dataclass(frozen=True)
class Search:
    """A search for lists that leave a share of the dense model's MACs; the knobs of `DiffRate` by their names."""

    macs: float
    granularity: int | None
    steps: int | None  # None where the data is not known: nothing can be run then
    images: int  # a step
    lr: float
    min_lr: float
    macs_weight: float
    warmup: float
    prop_attn: bool
    amp: str

    def check(self, model: OpenModel, costs: Costs, data: Data | None) -> None:
        """Raise `Refused` where no lists meet the target, `BadInput` where the training does not fit the data."""
        floor = [costs.tokens, *[2] * (costs.depth - 1)]
        if costs.macs(floor, floor) / costs.dense > self.macs:
            require_reached(costs, (floor, floor), self.macs)
        if data is not None:
            data.steps_per_epoch(model, **self._numbers())

    def run(self, model: OpenModel, costs: Costs, data: Data, start: Lists | None = None) -> Lists:
        """Learn the lists. Raises `Refused` where none meet the target, before any work."""
        assert self.steps is not None
        self.check(model, costs, data)
        copied, data = data.copied(model)
        (data.whole or copied).requires_grad_(False)
        steps = rates(with_rates(copied, self.granularity, prop_attn=self.prop_attn))
        if start is not None:
            for step, pruned, kept in zip(steps, *start, strict=True):
                step.prune_rate.start_at(pruned)
                step.merge_rate.start_at(kept)
        objective = MacsPenalty(
            steps,
            costs,
            share=self.macs,
            weight=self.macs_weight,
            warmup=int(self.warmup * self.steps),
            task=data.task_of(whole_of(copied, data)),
        )
        data.fit(copied, objective, steps=self.steps, **self._numbers())
        found = settled(steps, costs, self.macs)
        require_reached(costs, found, self.macs)
        return found

    def _numbers(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"lr": self.lr, "min_lr": self.min_lr, "weight_decay": 0.0, "warmup_epochs": 0}
        return numbers | {"batch_size": self.images, "save_every": 50, "amp": self.amp}


@torch.no_grad()
def settled(steps: list[SoftReduce], costs: Costs, share: float) -> Lists:
    """The learned counts, all moved by one common number of tokens until their MACs come nearest to the target.

    Where the last token is one too many for some blocks only, the last blocks go first.
    """
    pairs = [(s.prune_rate, s.merge_rate) for s in steps]
    least = [max(2, round(float(p.candidates[-1])) + 1) for p, _ in pairs]
    most = [round(float(p.candidates[0])) + 1 for p, _ in pairs]

    def moved(by: float) -> Lists:
        """Two lists, all counts `by` higher, within the candidates."""
        counts = [
            [min(max(math.ceil(float(rate.expected()) + by - 1e-4), low), high) for rate in pair]
            for pair, low, high in zip(pairs, least, most, strict=True)
        ]
        return [p for p, _ in counts], [m for _, m in counts]

    def off(lists: Lists) -> float:
        return float(costs.macs(*lists) / costs.dense - share)

    below, above = -float(costs.tokens), float(costs.tokens)
    for _ in range(30):
        by = (below + above) / 2
        below, above = (by, above) if off(moved(by)) < 0 else (below, by)
    (fewer, kept_fewer), (more, kept_more) = costs.bounded(*moved(below)), costs.bounded(*moved(above))
    between = [
        (more[:i] + fewer[i:], kept_more[:i] + kept_fewer[i:]) for i in range(costs.depth + 1)
    ]  # the first i blocks with the higher counts
    return min([costs.bounded(*lists_of(steps)), *between], key=lambda lists: abs(off(lists)))
