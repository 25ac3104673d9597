"""Score against cost: one plot whose cost axis is chosen on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leanvit.measure import Comparison, Row
from leanvit.measure.table import figure, titled
from leanvit.report.figures import SYMBOLS, Colours, Figure, Trace, entry, plain
from leanvit.report.rows import change_words, reach, signed_in


@dataclass(frozen=True)
class Point:
    """One row of a comparison as the plot names it."""

    comparison: Comparison
    row: Row
    model: str  # the row's model, and its run where that is needed
    series: str = ""  # what has a colour of its own on the page; by default the name

    @property
    def runtime_label(self) -> str:
        return self.comparison.runtime_label(self.row)

    @property
    def colour(self) -> str:
        return self.series or self.model


@dataclass(frozen=True)
class _Axis:
    """One kind of cost: a name for the button, a title with the unit, and how a row's value is found."""

    name: str
    title: Callable[[Comparison], str]
    value: Callable[[Row], float | None]


_AXES = (
    _Axis("latency", lambda c: f"latency [ms / batch of {c.latency_batch}]", lambda r: _median(r)),
    _Axis("MACs", lambda c: "MACs [M / image]", lambda r: _scaled(r.macs_per_image, 1e6)),
    _Axis("size on disk", lambda c: "size on disk [MiB]", lambda r: _scaled(r.disk_bytes, 2**20)),
    _Axis("parameters", lambda c: "parameters [M]", lambda r: _scaled(r.params, 1e6)),
)


def accuracy_against_cost(points: Sequence[Point], colours: Colours) -> dict[str, Figure]:
    """A figure for each cost that some row has, by the cost's name. The same traces in each, in the same order.

    A colour a model, a symbol a runtime; for each runtime the stair of the rows that none of it beats in both.
    """
    models = {p.model: p.colour for p in points}
    runtimes = list(dict.fromkeys(p.runtime_label for p in points))
    views = {}
    for axis in _AXES:
        known = [p for p in points if axis.value(p.row) is not None]
        if not known:
            continue
        views[axis.name] = {
            "data": [
                *(_stair(known, axis, runtime, number) for number, runtime in enumerate(runtimes)),
                *(_marker(p, axis, colours[p.colour], runtimes.index(p.runtime_label)) for p in points),
            ],
            "layout": {
                "xaxis": {"title": {"text": axis.title(points[0].comparison)}, **_scale(known, axis)},
                "yaxis": {"title": {"text": titled(points[0].comparison.metric)}},
            },
            "legend": [
                *(entry(name, series=colours[key], group=f"model:{name}") for name, key in models.items()),
                *(
                    entry(name, symbol=SYMBOLS[i % len(SYMBOLS)], group=f"runtime:{name}")
                    for i, name in enumerate(runtimes)
                    if len(runtimes) > 1
                ),
            ],
        }
    return views


def frontier(points: Sequence[tuple[float, float]], better: str = "higher") -> list[tuple[float, float]]:
    """The (cost, score) points that no other beats in both, from cheap to good. better: which score is, higher or
    lower."""
    sign = 1 if better == "higher" else -1
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best


def _scale(points: Sequence[Point], axis: _Axis) -> dict[str, Any]:
    """From zero, or logarithmic with ticks at 1, 2 and 5 where the values lie far apart."""
    xs = [x for p in points if (x := axis.value(p.row)) is not None]
    if max(xs) <= 6 * min(xs) or min(xs) <= 0:
        return {"rangemode": "tozero"}
    decades = range(math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _marker(point: Point, axis: _Axis, series: int, runtime: int) -> Trace:
    row, score = point.row, point.row.score
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": plain(point.model),
        "x": [axis.value(row)],
        "y": [score.value],
        "error_y": _error(score.high - score.value, score.value - score.low),
        "marker": {"size": 12, "symbol": SYMBOLS[runtime % len(SYMBOLS)]},
        "meta": {"series": series, "groups": [f"model:{point.model}", f"runtime:{point.runtime_label}"]},
        "hovertemplate": "<br>".join(map(plain, _details(point))).replace("%{", "% {") + "<extra></extra>",
    }
    if axis.name == "latency" and row.latency_ms is not None:
        spread = row.latency_ms
        trace["error_x"] = _error(spread.q75 - spread.median, spread.median - spread.q25)
    return trace


def _details(point: Point) -> list[str]:
    """The hover text of a row."""
    comparison, row, score = point.comparison, point.row, point.row.score
    value, low, high = (figure(one, score.unit) for one in (score.value, score.low, score.high))
    lines = [
        f"{point.model}, {point.runtime_label} {row.precision or ''}".strip(),
        f"{comparison.metric.title} {' '.join(filter(None, (value, comparison.metric.unit)))} ({low} … {high})",
    ]
    if row.change_points is not None:
        change = row.change_points
        words = " ".join(filter(None, (signed_in(change.value, change.unit), change_words(comparison))))
        lines.append(f"change {words} ({reach(change)})")
    if row.latency_ms is not None:
        lines.append(f"{row.latency_ms.median:.4g} ms / batch of {comparison.latency_batch}")
    faster, reference = row.speedup_vs_baseline, comparison.reference(row)
    if faster is not None and reference is not None:
        at = "" if reference.precision == row.precision else f" {reference.precision or ''}"
        lines.append(f"{faster.median:.2f}× as fast as {reference.model}{at} in {row.runtime}")
    if row.macs_per_image is not None:
        lines.append(f"{row.macs_per_image / 1e6:,.4g} M MACs / image")
    if row.kept_macs_per_image is not None:
        lines.append(f"{row.kept_macs_per_image / 1e6:,.4g} M of them kept")
    if row.disk_bytes is not None:
        lines.append(f"{row.disk_bytes / 2**20:,.3g} MiB on disk")
    return lines


def _stair(points: Sequence[Point], axis: _Axis, runtime: str, number: int) -> Trace:
    own = [(axis.value(p.row) or 0.0, p.row.score.value) for p in points if p.runtime_label == runtime]
    best = frontier(own, points[0].comparison.metric.better)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(f"best of {runtime}"),
        "x": [x for x, _ in best],
        "y": [y for _, y in best],
        "line": {"shape": "hv", "dash": "dot" if number % 2 else "dash", "width": 1.5},
        "hoverinfo": "skip",
        "meta": {"series": -1, "groups": [f"runtime:{runtime}"]},
    }


def _error(plus: float, minus: float) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": [plus], "arrayminus": [minus], "thickness": 1.5, "width": 0}


def _median(row: Row) -> float | None:
    return None if row.latency_ms is None else row.latency_ms.median


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
