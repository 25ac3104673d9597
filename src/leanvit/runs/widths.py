"""Widths of a lean model's blocks beside those of its root: counted on both, built without values."""

from __future__ import annotations

from dataclasses import dataclass

from leanvit.anatomy.surgery.block_widths import BlockWidths, block_widths
from leanvit.recipe.history import History, replay

# field of `BlockWidths`: heading, unit
KINDS = {
    "embed": ("embedding", "features"),
    "heads": ("heads", "heads"),
    "qk": ("q and k of a head", "features"),
    "v": ("v of a head", "features"),
    "mlp": ("MLP", "hidden features"),
}


@dataclass(frozen=True)
class Widths:
    """The blocks of a root and of the lean model made of it, each in the order in which they run."""

    root: tuple[BlockWidths, ...]
    lean: tuple[BlockWidths, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Fields of `BlockWidths` in which some block differs from the root's."""
        if len(self.root) != len(self.lean):
            return tuple(KINDS)
        return tuple(kind for kind in KINDS if self.of("root", kind) != self.of("lean", kind))

    def of(self, which: str, kind: str) -> list[int]:
        """One width of every block, of the `root` or of the `lean` model."""
        return [getattr(block, kind) for block in getattr(self, which)]


def read_widths(history: History) -> Widths | None:
    """The widths of what plans make of a root; None if every block is as wide as the root's.

    Raises `LeanvitError` where the plans cannot be replayed.
    """
    if not history.plans:
        return None
    before, after = (block_widths(replay(history.root, done, device="meta")) for done in ((), history.plans))
    found = Widths(before, after)
    return found if found.changed else None
