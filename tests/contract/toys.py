"""The papers that the contract tests ask: leanvit's own, and the toys, which are folders and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanvit import cards

TOYS = Path(__file__).parents[1] / "toy_papers"


@contextmanager
def toys() -> Iterator[None]:
    """Inside, the toys are known."""
    cards.add_root(TOYS)
    try:
        yield
    finally:
        cards.remove_root(TOYS)


with toys():
    CARDS = tuple(cards.papers().values())


def of_kind(kind: str) -> list[cards.Card]:
    return [card for card in CARDS if kind in card.kinds]
