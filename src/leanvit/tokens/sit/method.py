"""The method: knobs, where the modules go, and their first values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.slimming import TokenSlimming
from leanvit.anatomy.surgery.steps import insert_step
from leanvit.arguments import require_classifier
from leanvit.data import keyed
from leanvit.errors import BadInput, Refused
from leanvit.knobs import RISING, Count, Index, NonNegative, Positive, Share, Words, check, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.learning import Data
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow
from leanvit.tokens.sit.distillation import FeatureRecalibration, check_pair
from leanvit.training import FitConfig

STAGES = 4


def kept_tokens(patches: int, keep_rate: float, stages: int) -> list[int]:
    """Tokens in each stage, the first included: int(patches · keep_rate ** s), truncated once (official code)."""
    return [int(patches * keep_rate**stage) for stage in range(stages)]


def default_stages(depth: int) -> tuple[int, ...]:
    """Blocks of each stage where none are given: the depth in four parts as even as it goes; 3, 3, 3, 3 of 12."""
    ends = sorted({depth * part // STAGES for part in range(1, STAGES + 1)} - {0})
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class _Row(BlockRow):
    tokens: Count
    hidden: Count


@dataclass(frozen=True)
class _Structure:
    slimming: Annotated[tuple[_Row, ...], RISING]


_Counts = Annotated[tuple[Count, ...], MinLen(1), Words("a list of whole numbers, each 1 or more")]


@method("sit")
@dataclass(frozen=True)
class SiT:
    """Knobs of the method. The numbers of the training are the paper's."""

    keep_rate: Share = knob(0.5, "int(patches · keep_rate ** s) tokens are in stage s = 0, 1, ...; 1: slims nothing")
    stages: _Counts | None = knob(
        None, "blocks of each stage, their sum the depth; null: four of a quarter each", example=(3, 3, 3, 3)
    )
    tokens: _Counts | None = knob(
        None, "patch tokens of each stage after the first, over the rate", example=(98, 49, 24)
    )
    hidden: Share = knob(0.5, "width inside of a slimming module, as a share of the model's")
    token_weight: NonNegative = knob(2.0, "of the distance between student's and teacher's tokens, in the recovery")
    logit_weight: NonNegative = knob(2.0, "of the divergence of the logits, in the recovery")
    temperature: Positive = knob(1.0, "of both distributions of logits")
    rtsm: bool = knob(
        True, "reverse modules; without, only blocks before the first slimming are compared with the teacher's"
    )
    lr_scale: Positive = knob(5.0, "factor on the peak rate of the reverse modules")
    seed: Index = knob(0, "of the initial values")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "free_attention", "places", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid", "maps", "places"})
    slot: ClassVar[str] = "after"
    blends: ClassVar[bool] = True
    learns_from: ClassVar[tuple[str, ...]] = ("one", "several")

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """{"slimming": [{"block": after which, "tokens": patch tokens behind it, "hidden": width inside}, ...]}.

        Raises:
            BadInput: stages or tokens that do not fit the model, or a stage without a token.
            Refused: a model that is not of the plain family.
        """
        if not model.isotropic:
            raise Refused(f"sit slims the tokens of plain vision transformers, not of the family {model.family!r}")
        depth = len(model.blocks)
        stages = default_stages(depth) if self.stages is None else self.stages
        if sum(stages) != depth:
            raise BadInput(f"stages is {stages}, {sum(stages)} blocks in all; accepted: {depth}, the model's depth")
        counts = self._counts(model.patches(), len(stages))
        present = [model.patches(), *model.patch_tokens()]  # those that enter each block's MLP, at least
        hidden = max(1, int(model.width_of(0) * self.hidden))
        rows, before = [], present[0]
        for block, count in zip((end - 1 for end in accumulate(stages[:-1])), counts, strict=True):
            here = min(before, present[block + 1])
            if count > here:
                raise BadInput(
                    f"sit would make {count} tokens after block {block}, where there are {here} patch tokens"
                )
            if count < here:
                rows.append({"block": block, "tokens": count, "hidden": hidden})
            before = count
        return {"slimming": rows}

    def _counts(self, patches: int, stages: int) -> Sequence[int]:
        """Tokens of each stage after the first."""
        if self.tokens is None:
            counts = kept_tokens(patches, self.keep_rate, stages)[1:]
            if 0 in counts:
                raise BadInput(f"keep_rate is {self.keep_rate}, which leaves none of {patches} patches in a stage")
            return counts
        if len(self.tokens) != stages - 1:
            raise BadInput(f"tokens is {self.tokens}; accepted: {stages - 1} numbers, of each stage after the first")
        return self.tokens

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the modules in."""
        if any(step.source == "sit" for step in model.steps()):
            raise Refused("sit has slimmed this model already: its tokens stand for no patches any more")
        if structure["slimming"]:
            model.keep_all_patches()  # the distillation compares with all of the teacher's
        like = next(model.parameters())
        for row in structure["slimming"]:
            index, count, hidden = _checked_row(row, model)
            block = model.block(index)
            at = f"{block.name}.after.{len(block.after)}"
            step = TokenSlimming(at, width=model.width_of(index), slots=count, hidden=hidden)
            insert_step(model, index, "after", step.to(device=like.device, dtype=like.dtype))

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """Initial values, random by `seed` and the place of each module."""
        for step in model.steps():
            if isinstance(step, TokenSlimming):
                step.reset_parameters(keyed.generator(self.seed, "sit", step.name))

    def fills(self, model: OpenModel) -> list[int]:
        """The blocks that get a module behind them."""
        return [row["block"] for row in self.learn(model)["slimming"]]

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> SiT:
        """With the keep rate that leaves this share of the model's MACs, and a token in every stage."""
        made = cls(**knobs)
        stages = len(default_stages(len(model.blocks)) if made.stages is None else made.stages)
        rates = [step / 200 for step in range(200, 0, -1)]
        fitting = [rate for rate in rates if kept_tokens(model.patches(), rate, stages)[-1] > 0]
        return nearest_setting(model, [replace(made, keep_rate=rate) for rate in fitting], share)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The grid: a slimming module has a weight for each token that it makes."""
        counts = [row["tokens"] for row in structure["slimming"]]
        return {"grid": f"it slims it to {', '.join(map(str, counts))} tokens"} if counts else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"patch_tokens": patch tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks behind whose module more tokens are than the plan leaves there, counted in a run of the model."""
        counts = model.patch_tokens()
        rows = [(row["block"], row["tokens"], counts[row["block"] + 1]) for row in structure["slimming"]]
        return [f"after block {i}: requested {want} tokens, has {got}" for i, want, got in rows if got > want]

    # --- the training that follows ---------------------------------------------------

    def objective(self, model: OpenModel, data: Data, config: FitConfig) -> FeatureRecalibration:
        """Feature recalibration distillation from `data.teacher`. Raises `Refused` for one that is not its like."""
        if data.teacher is None:
            raise BadInput("sit learns from the dense model: give teacher")
        return FeatureRecalibration(
            model,
            data.teacher,
            teacher_preprocess=data.preprocess,
            token_weight=self.token_weight,
            logit_weight=self.logit_weight,
            temperature=self.temperature,
            rtsm=self.rtsm,
            lr_scale=self.lr_scale,
            label_smoothing=config.label_smoothing,
            task=data.task_of(model),
            seed=self.seed,
        )

    def check_teacher(self, model: OpenModel, teacher: nn.Module) -> None:
        """Raise `Refused` for a teacher whose tokens those of `model` cannot be compared with, or no classifier."""
        require_classifier(model, "sit", by_task=False)
        if self.token_weight:
            check_pair(model, teacher)


def _checked_row(row: Mapping[str, Any], model: OpenModel) -> tuple[int, int, int]:
    """A row of the (perhaps hand-edited) structure, or `BadInput`."""
    check("block", row["block"], Annotated[int, Ge(0), Le(len(model.blocks) - 2)])  # a block must follow
    return row["block"], row["tokens"], row["hidden"]
