"""The measured headline of each paper: a text whose numbers are references into the benchmarks' results.

`make pages` renders the template of each card (`measured.template`, `leanvit.cards.Figure`) and writes
it as `headline.txt` beside the card, which goes into the wheel (the results do not); a test holds them to each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from leanvit.cards import HEADLINE, Figure, papers
from leanvit.errors import BadInput
from pages.performance import rows_at, value_at

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def headlines(results: Path = RESULTS) -> dict[Path, str]:
    """File -> text, of each card with a template. Raises `BadInput` where a reference finds no number, or several."""
    return {
        card.folder / HEADLINE: rendered(card.measured.template, card.measured.figures, results) + "\n"
        for card in papers().values()
        if card.measured.template and card.folder is not None
    }


def rendered(text: str, figures: Mapping[str, Figure], results: Path) -> str:
    """A text with its figures in it."""
    return text.format(**{name: _figure(name, figure, results) for name, figure in figures.items()})


def _figure(name: str, figure: Figure, results: Path) -> str:
    try:
        value = _value(figure, results)
        if figure.over:
            value /= _value(replace(figure, **figure.over), results)
    except (KeyError, LookupError, OSError) as error:
        raise BadInput(f"figure {name} = {figure}: {error}") from None
    values = value if isinstance(value, list) else [value]
    return ", ".join(format(one * figure.scale if figure.scale != 1 else one, figure.format) for one in values)


def _value(figure: Figure, results: Path) -> Any:
    content = _content(results / figure.file)
    rows = [
        row
        for row in rows_at(content, figure.table)
        if all(value_at(row, key) == value for key, value in figure.row.items())
    ]
    if not rows or (len(rows) > 1 and not figure.of):
        raise LookupError(f"{len(rows)} rows match")
    values = [_metric(row, figure.metric, content["columns"]) for row in rows]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if not all(isinstance(one, int | float) for one in flat):
        raise LookupError("no number is there")
    return {"": values[0], "mean": fmean(flat), "count": len(flat)}[figure.of]


def _metric(row: Mapping[str, Any], path: str, columns: Mapping[str, Any]) -> Any:
    """The value of a path; the entries of a list go by their number, or by what its column calls them ("median")."""
    if (found := value_at(row, path)) is not None:
        return found
    head, _, last = path.rpartition("/")
    entries = value_at(row, head) if head else None
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return None
    each = columns.get(head, {}).get("each", [])
    return entries[each.index(last) if last in each else int(last)]


@cache
def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
