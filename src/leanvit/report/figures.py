"""The page's plots as plain plotly figures (JSON). Colours and fonts come from the page, which knows light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanvit.measure import Comparison, Row
from leanvit.report.rows import model_of, runtime_of
from leanvit.report.token_maps import TokenMaps

Figure = dict[str, Any]

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def accuracy_against_latency(comparison: Comparison) -> Figure | None:
    """Top-1 with its interval against the median latency with its quartiles; None where nothing was timed."""
    points = []
    for row in comparison.rows:
        spread = row.latency_ms
        if spread is not None:
            points.append(_Point(row, spread.median, spread.q75 - spread.median, spread.median - spread.q25))
    return _pareto(points, f"latency [ms / batch of {comparison.latency_batch}]")


def accuracy_against_macs(comparison: Comparison) -> Figure | None:
    """Top-1 with its interval against MACs; one point a model."""
    rows = [row for row in comparison.rows if row.macs_per_image is not None]
    return _pareto([_Point(row, (row.macs_per_image or 0) / 1e6) for row in rows], "MACs [M / image]")


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    plus: float = 0.0
    minus: float = 0.0


def _pareto(points: Sequence[_Point], axis: str) -> Figure | None:
    """A colour a model, a symbol a runtime, and the stair of the points that none beats in both."""
    if not points:
        return None
    models = list(dict.fromkeys(model_of(p.row) for p in points))
    runtimes = list(dict.fromkeys(runtime_of(p.row) for p in points))
    traces = [_marker(p, models.index(model_of(p.row)), runtimes.index(runtime_of(p.row))) for p in points]
    first: set[int] = set()
    for trace in traces:  # the legend explains each colour once
        trace["showlegend"] = trace["meta"]["series"] not in first
        first.add(trace["meta"]["series"])
    keys = [_runtime_key(name, number) for number, name in enumerate(runtimes)] if len(runtimes) > 1 else []
    layout = {
        "xaxis": {"title": {"text": axis}, **_scale([p.x for p in points])},
        "yaxis": {"title": {"text": "top-1 [%]"}},
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }
    return {"data": [_frontier([(p.x, p.row.top1_percent.value) for p in points]), *traces, *keys], "layout": layout}


def _scale(xs: Sequence[float]) -> dict[str, Any]:
    """From zero, or logarithmic with ticks at 1, 2 and 5 where the values lie far apart."""
    if max(xs) <= 6 * min(xs):
        return {"rangemode": "tozero"}
    decades = range(math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _marker(point: _Point, model: int, runtime: int) -> dict[str, Any]:
    top1, name = point.row.top1_percent, _plain(model_of(point.row))
    where = _plain(f"{runtime_of(point.row)} {point.row.precision or ''}".strip())
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.x],
        "y": [top1.value],
        "error_y": _error([top1.high - top1.value], [top1.value - top1.low]),
        "marker": {"size": 11, "symbol": _SYMBOLS[runtime % len(_SYMBOLS)]},
        "meta": {"series": model},
        "hovertemplate": f"{name}, {where}<br>%{{x:.4g}}; top-1 %{{y:.2f}} %<extra></extra>",
    }
    if point.plus or point.minus:
        trace["error_x"] = _error([point.plus], [point.minus])
    return trace


def _runtime_key(name: str, number: int) -> dict[str, Any]:
    """A legend entry for a symbol, without points."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _plain(name),
        "x": [None],
        "y": [None],
        "marker": {"size": 9, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
        "meta": {"series": -1},
    }


def _error(plus: list[float], minus: list[float]) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus, "thickness": 1, "width": 3}


def _frontier(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The models that none beats in both: a stair from cheap to accurate."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "best trade-off",
        "x": [x for x, _ in best],
        "y": [y for _, y in best],
        "line": {"shape": "hv", "dash": "dot", "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"series": -1},
    }


def token_counts(maps: Sequence[TokenMaps]) -> Figure | None:
    """Sequence length in each block's MLP, one stair a model; None where no model was traced."""
    if not maps:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": _plain(one.name),
            "x": list(range(len(one.tokens))),
            "y": list(one.tokens),
            "line": {"shape": "hvh", "width": 2},
            "marker": {"size": 6, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
            "meta": {"series": number},
            "hovertemplate": "block %{x}: %{y} tokens<extra>" + _plain(one.name) + "</extra>",
        }
        for number, one in enumerate(maps)
    ]
    layout = {
        "xaxis": {"title": {"text": "block"}, "dtick": 1 if max(len(m.tokens) for m in maps) <= 14 else 2},
        "yaxis": {"title": {"text": "tokens in the MLP"}, "rangemode": "tozero"},
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }
    return {"data": traces, "layout": layout}


def _plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names are shown as they are."""
    return html.escape(text, quote=False)
