"""What composes with what, computed from the methods' declarations. The table in the docs is this one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from leanvit.anatomy.parts.blocks import SLOTS
from leanvit.errors import BadInput, Refused
from leanvit.recipe.protocol import FillsSlots, Method
from leanvit.recipe.registry import method_class, shaping_methods
from leanvit.tasks import Task

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

TRAITS = {  # what a model can offer, in words
    "class_token": "a class token",
    "full_grid": "the full grid of patches",
    "float": "float weights and activations",
    "whole_weights": "weights not pruned to zeros",
    "token_blocks": "transformer blocks that tokens of patches run through (none in a traced graph, none left behind "
    "semantic tokens or early exits)",
    "maps": "feature maps on the full grid (`model.maps`)",
    "places": "tokens that stand for patches, each at its position in the grid",
    "free_attention": "attention that does not read where tokens are (rotary positions, relative biases, windows)",
    "width": "the width of its stream of tokens",
    "static_tokens": "a token count that depends on the image size only",
}


@dataclass(frozen=True)
class Cell:
    """Whether `second` may follow `first` on a model that offers everything."""

    first: str
    second: str
    verdict: str  # "yes", "different blocks" or "no"
    reason: str = ""


KINDS_OF_LABELS = {"one": "one class an image", "several": "several labels an image"}


def compatibility(slugs: Sequence[str] | None = None) -> list[Cell]:
    """Every ordered pair of methods."""
    slugs = shaping_methods() if slugs is None else slugs
    return [cell(a, b) for a in slugs for b in slugs]


def cell(first: str, second: str) -> Cell:
    """Whether `second` may follow `first`, from their declarations alone."""
    a, b = method_class(first), method_class(second)
    lost = sorted(b.requires & a.destroys)  # type: ignore[attr-defined]
    if lost:
        return Cell(first, second, "no", f"{second} needs {_words(lost)}, which {first} takes away")
    if a.slot and b.slot and (a.blends or b.blends):  # type: ignore[attr-defined]
        blending, other = (first, second) if a.blends else (second, first)  # type: ignore[attr-defined]
        return Cell(first, second, "different blocks", f"{other} takes tokens in blocks before {blending} mixes them")
    if a.slot and a.slot == b.slot:  # type: ignore[attr-defined]
        return Cell(first, second, "different blocks", f"both work in the slot {a.slot!r} of a block")  # type: ignore[attr-defined]
    return Cell(first, second, "yes")


def check_order(traits: Iterable[str], methods: Sequence[Method], *, kept: frozenset[str] = frozenset()) -> None:
    """Raise `Refused` (reason, and an order that works if there is one) unless the methods may run in this order.

    kept: traits that a model around this one needs of it, which no method may take away.
    Raises `BadInput` for what is no method.
    """
    for i, m in enumerate(methods):
        if not isinstance(m, type) and isinstance(m, Method):
            continue
        if isinstance(m, type) or getattr(m, "slug", None) is None:
            raise BadInput(f"methods[{i}] is {m!r}; accepted: a method, like EViT(keep_rate=0.7) or parse_with('evit')")
        raise BadInput(
            f"methods[{i}] is {m.slug!r}, a way to train; accepted: a method with shape(model, structure). To train "
            f"with it: leanvit train MODEL --with {m.slug}, or in a recovery: --recover EPOCHS --recover-with {m.slug}"
        )
    for m in methods:
        if lost := sorted(m.destroys & kept):
            raise Refused(taken_away(m.slug, lost))
    problem = _problem(frozenset(traits), methods)
    if not problem:
        return
    for other in permutations(methods) if len(methods) <= 6 else ():
        if not _problem(frozenset(traits), other):
            raise Refused(f"{problem}. This order works: {', '.join(m.slug for m in other)}")
    raise Refused(problem)


def taken_away(slug: str, lost: Iterable[str]) -> str:
    """Why a method cannot be applied to a part that must keep these traits."""
    return f"{slug} takes {_words(lost)} away, which the model around this part needs of it"


def check_slots(model: OpenModel, methods: Sequence[Method]) -> None:
    """Raise `Refused` where two methods would reduce tokens in one slot of one block of this model.

    Computed from what methods declare (`slot`, `fills`), before any work; a method that takes blocks away before
    another declares nothing that this could know, and is seen when it has run.
    """
    taken = {
        (block.name, slot): step.source
        for block in model.blocks
        for slot in SLOTS
        for step in getattr(block, slot)
        if step.reduces
    }
    for m in methods:
        if not m.slot or not isinstance(m, FillsSlots):
            continue
        for block in (model.blocks[i] for i in m.fills(model)):
            other = taken.setdefault((block.name, m.slot), "")
            if other == m.slug:
                raise Refused(f"{block.name} already reduces tokens by {m.slug}: give it other blocks")
            if other:
                raise Refused(both_reduce((other, m.slug), block.name, m.slot))
            taken[block.name, m.slot] = m.slug
    _check_blends(model, methods)


def _check_blends(model: OpenModel, methods: Sequence[Method]) -> None:
    """Raise `Refused` where a method would take tokens behind another one that mixes them all."""
    found = [(*place, step.source, step.blends) for place, step in reducing(model)]
    for m in methods:
        if m.slot and isinstance(m, FillsSlots):
            found += [(i, SLOTS.index(m.slot), m.slug, m.blends) for i in m.fills(model)]
    refuse_behind_blends(model, found)


def reducing(model: OpenModel) -> list[tuple[tuple[int, int], Any]]:
    """((block, number of the slot), step) of every step that reduces tokens, in the order in which they run."""
    return [
        ((i, k), step)
        for i, block in enumerate(model.blocks)
        for k, slot in enumerate(SLOTS)
        for step in getattr(block, slot)
        if step.reduces
    ]


def refuse_behind_blends(model: OpenModel, found: Iterable[tuple[int, int, str, bool]]) -> None:
    """Raise `Refused` if one of (block, slot, slug, blends) lies behind the first that blends, and is of another."""
    rows = sorted(found)
    first = next((row for row in rows if row[3]), None)
    for row in rows if first is not None else ():
        if first is not None and row[:2] > first[:2] and row[2] != first[2]:
            raise Refused(
                f"{row[2]} would reduce tokens in {model.blocks[row[0]].name}, behind {model.blocks[first[0]].name}, "
                f"where {first[2]} mixes them all and none stands for patches any more: give {row[2]} earlier blocks"
            )


def both_reduce(sources: Iterable[str], block: str, slot: str) -> str:
    """Why two methods cannot share a block."""
    return f"{' and '.join(sorted(sources))} both reduce tokens in {block} ({slot}): give them different blocks"


def _problem(traits: frozenset[str], methods: Sequence[Method]) -> str:
    taken: dict[str, str] = {}  # trait -> the method that took it away
    for m in methods:
        missing = sorted(m.requires - traits)
        if missing:
            by = sorted({taken[t] for t in missing if t in taken})
            why = f", which {' and '.join(by)} takes away" if by else ", which this model does not have"
            return f"{m.slug} needs {_words(missing)}{why}"
        taken |= dict.fromkeys(m.destroys, m.slug)
        traits -= m.destroys
    return ""


def _words(traits: Iterable[str]) -> str:
    return " and ".join(TRAITS.get(t, t) for t in traits)


def require_known_task(m: Any, task: Task) -> None:
    """Raise `BadInput` for a method that learns from classes of images where another task is learned."""
    if m.learns_from and task.label_kind not in m.learns_from:
        known = " or ".join(KINDS_OF_LABELS[kind] for kind in m.learns_from)
        raise BadInput(f"{m.slug} knows {known}, but the data is {task.words}")
