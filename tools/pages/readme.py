"""The table of methods in README.md, made from the cards: `python -m pages.readme [README.md]` renews it."""

from __future__ import annotations

import sys
from pathlib import Path

from leanvit.cards import Card, papers
from leanvit.errors import BadInput

BEGIN = "<!-- methods: made from the cards of papers by `python -m pages.readme`; edit there -->"
END = "<!-- end of methods -->"


def table() -> str:
    """The methods as a markdown table."""
    lines = ["| method | what it does | paper | published | measured here |", "|---|---|---|---|---|"]
    lines += [_row(card) for card in papers().values()]
    return "\n".join(lines)


def _row(card: Card) -> str:
    found = card.measured
    ours = _cell(found.text) + (f" ({_cell(found.machine)}; `{_cell(found.command)}`)" if found.text else "")
    cells = (f"`{card.slug}`", _cell(card.summary), _source(card), _cell(card.published), ours)
    return f"| {' | '.join(cells)} |"


def renewed(text: str) -> str:
    """A README's text with the table between its markers made anew. Raises `BadInput` if a marker is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"the README needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _source(card: Card) -> str:
    if not card.arxiv:
        return _cell(card.title)
    return f"[{_cell(card.title)}](https://arxiv.org/abs/{card.arxiv}){f' ({card.venue})' if card.venue else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "–"


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
