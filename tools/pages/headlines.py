"""The measured headline of each paper: a text whose numbers are references into the benchmarks' results.

`python -m pages.headlines` renders `headlines.toml` and writes the texts into `papers.toml` of the package, which goes
into the wheel (the results do not); a test holds them to each other. In headlines.toml, `text` holds `{name}` for each
of `figures`: the JSON `file` of benchmarks/results, the `table` of it ("rows" where nothing is said, "" for the file
itself), what its `row` has, the path of the `metric` in it, and Python's `format`. `of`: the "mean" of a list or of
several rows, the "count" of a list. `scale` multiplies; `over`, fields that differ, gives the figure to divide by.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from leanvit.errors import BadInput
from leanvit.files import write_atomic
from pages.performance import rows_at, value_at

ROOT = Path(__file__).parents[2]
HEADLINES = Path(__file__).with_suffix(".toml")
PAPERS = ROOT / "src" / "leanvit" / "papers.toml"


def headlines(results: Path = ROOT / "benchmarks" / "results") -> dict[str, str]:
    """The text of each slug with its numbers. Raises `BadInput` where a reference finds no number, or several."""
    told = tomllib.loads(HEADLINES.read_text(encoding="utf-8"))
    return {slug: rendered(one["text"], one.get("figures", {}), results) for slug, one in told.items()}


def rendered(text: str, figures: Mapping[str, Mapping[str, Any]], results: Path) -> str:
    """A text with its figures in it."""
    return text.format(**{name: _figure(name, figure, results) for name, figure in figures.items()})


def _figure(name: str, figure: Mapping[str, Any], results: Path) -> str:
    try:
        value = _value(figure, results)
        if "over" in figure:
            value /= _value({**figure, **figure["over"]}, results)
    except (KeyError, LookupError, OSError) as error:
        raise BadInput(f"figure {name} = {dict(figure)}: {error}") from None
    values = value if isinstance(value, list) else [value]
    return ", ".join(format(one * figure.get("scale", 1), figure.get("format", "")) for one in values)


def _value(figure: Mapping[str, Any], results: Path) -> Any:
    content = _content(results / figure["file"])
    wanted = figure.get("row", {})
    rows = [
        row
        for row in rows_at(content, figure.get("table", "rows"))
        if all(value_at(row, key) == value for key, value in wanted.items())
    ]
    if not rows or (len(rows) > 1 and "of" not in figure):
        raise LookupError(f"{len(rows)} rows match")
    values = [_metric(row, figure["metric"], content["columns"]) for row in rows]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if not all(isinstance(one, int | float) for one in flat):
        raise LookupError("no number is there")
    return {"": values[0], "mean": fmean(flat), "count": len(flat)}[figure.get("of", "")]


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


def renewed(text: str, measured: Mapping[str, str]) -> str:
    """The text of papers.toml with each slug's `measured` as it is rendered now."""
    head, *blocks = text.split("[[method]]")
    for i, block in enumerate(blocks):
        slug = tomllib.loads(block)["slug"]
        if slug in measured:
            line = f"measured = {json.dumps(measured[slug], ensure_ascii=False)}".replace("\\", "\\\\")
            blocks[i] = re.sub(r"^measured = .*$", line, block, flags=re.MULTILINE)
    return "[[method]]".join([head, *blocks])


def main() -> None:
    write_atomic(PAPERS, renewed(PAPERS.read_text(encoding="utf-8"), headlines()).encode())


if __name__ == "__main__":
    main()
