"""The table of methods in README.md, grouped by family: `make pages` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from leanvit.cards import papers
from leanvit.errors import BadInput

BEGIN = "<!-- methods: made by `make pages` -->"
END = "<!-- end of methods -->"
FAMILIES = {  # in the order of the table; others follow under their own names
    "tokens": "Fewer tokens",
    "exits": "Early exits",
    "prune": "Smaller layers",
    "quantize": "8-bit integers",
    "backbones": "Architectures",
}


@dataclass(frozen=True)
class Row:
    """One method of the table."""

    slug: str
    family: str
    summary: str  # what it does
    measured: str  # "SETTING: FIGURE, more"; "" where nothing was measured


def rows() -> list[Row]:
    """A row for each paper."""
    return [Row(p.slug, p.family, p.summary, p.measured.text) for p in papers().values()]


def table(found: Iterable[Row]) -> str:
    """The rows as one markdown table, grouped by family."""
    order = list(FAMILIES)
    known = sorted(found, key=lambda row: order.index(row.family) if row.family in order else len(order))
    lines = ["| method | what it does | measured here |", "|---|---|---|"]
    for family, group in groupby(known, key=lambda row: row.family):
        lines.append(f"| **{FAMILIES.get(family, family)}** | | |")
        lines += [f"| `{r.slug}` | {_cell(r.summary)} | {_link(r)} |" for r in group]
    return "\n".join(lines)


def figure(measured: str) -> str:
    """The first number of a measured text, with the beginning of its setting: "DeiT-S/224: 1.49x in PyTorch"."""
    setting, _, text = measured.partition(": ")
    return f"{setting.partition(',')[0]}: {next(_clauses(text))}" if text else measured


def _clauses(text: str) -> Iterator[str]:
    """Beginnings of a text that end at a comma, a full stop or a bracket, and hold a digit and no open bracket."""
    for end in re.finditer(r"[,;]|\.(?= )| \(|$", text):
        clause = text[: end.start()]
        if re.search(r"\d", clause) and clause.count("(") == clause.count(")"):
            yield clause


def _link(row: Row) -> str:
    return f"[{_cell(figure(row.measured)) if row.measured else 'not yet'}](docs/methods/{row.slug}.md)"


def renewed(text: str) -> str:
    """A README's text with the table between its markers made anew. Raises `BadInput` if a marker is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"the README needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(rows())}\n{END}{after}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
