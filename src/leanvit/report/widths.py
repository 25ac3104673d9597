"""Widths of a lean model's blocks beside those of its root, as a table and as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanvit.report.figures import Colours, Figure, entry, plain
from leanvit.runs.widths import KINDS, Widths


@dataclass(frozen=True)
class Row:
    """One block as a line of the table; a cell is (root, lean), None where there is no such block."""

    block: int
    cells: tuple[tuple[int | None, int | None], ...]


def rows(widths: Widths) -> tuple[Row, ...]:
    """The table: a line a block, a cell for each kind of width."""
    count = max(len(widths.root), len(widths.lean))
    columns = [
        [(_at(widths.of("root", kind), i), _at(widths.of("lean", kind), i)) for i in range(count)] for kind in KINDS
    ]
    return tuple(Row(i, tuple(column[i] for column in columns)) for i in range(count))


def _at(values: Sequence[int], i: int) -> int | None:
    return values[i] if i < len(values) else None


def figures_of(name: str, widths: Widths, colours: Colours) -> dict[str, Figure]:
    """For each kind of width that changed a bar a block: the root's behind, the lean model's before it."""
    made = {}
    for kind in widths.changed:
        heading, unit = KINDS[kind]
        bars = [
            _bars("root", -1, widths.of("root", kind), width=0.84, opacity=0.4, unit=unit),
            _bars(name, colours[name], widths.of("lean", kind), width=0.52, opacity=1.0, unit=unit),
        ]
        made[heading] = {
            "data": bars,
            "layout": {
                "barmode": "overlay",
                "xaxis": {"title": {"text": "block"}, "dtick": 1 if len(widths.root) <= 14 else 4, "showgrid": False},
                "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            },
            "legend": [
                entry("root", group="model:root", symbol="square"),
                entry(name, series=colours[name], group=f"model:{name}", symbol="square"),
            ],
        }
    return made


def _bars(name: str, number: int, values: list[int], *, width: float, opacity: float, unit: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": plain(name),
        "x": list(range(len(values))),
        "y": values,
        "width": width,
        "opacity": opacity,
        "meta": {"series": number, "groups": [f"model:{name}"]},
        "hovertemplate": f"block %{{x}}: %{{y}} {unit}<extra>{plain(name)}</extra>",
    }
