"""ToMe: how many tokens merge in each block, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le, MinLen

from leanvit.anatomy import OpenModel
from leanvit.errors import BadInput
from leanvit.knobs import RISING, Index, Rule, Words, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import BlockRow
from leanvit.tokens.tome import plain, windows

_ON = {False: plain, True: windows}  # where tokens merge, by whether the model attends in windows


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

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Merges where there are any: {"blocks": [{"block": int, "r": int}, ...]}."""
        depth = len(model.blocks)
        if isinstance(self.r, tuple) and not _inflected(self.r) and len(self.r) > depth:
            raise BadInput(f"r lists {len(self.r)} blocks; accepted: up to {depth}, the model's depth")
        return {"blocks": [{"block": i, "r": r} for i, r in enumerate(schedule(self.r, depth)) if r]}

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the steps in. Where the model attends in windows, tokens merge in each window for the MLP alone."""
        rows = [_checked_row(row, model) for row in structure["blocks"]]
        _ON[model.windowed].put(model, rows, prop_attn=self.prop_attn)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """Nothing: r tokens merge in a grid of any size, half of them at most."""
        return {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"patch_tokens": patch tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP more patch tokens are than the plan leaves there. In windows nothing is checked."""
        return _ON[model.windowed].misses(model, structure["blocks"])

    def fills(self, model: OpenModel) -> list[int]:
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
