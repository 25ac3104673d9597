"""The page's plots as plain plotly figures (JSON). Colours and fonts come from the page, which knows light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from leanvit.measure import Comparison, Row
from leanvit.report.rows import macs_of, model_of, runtime_of
from leanvit.report.token_maps import TokenMaps

Figure = dict[str, Any]

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def accuracy_against_latency(comparison: Comparison) -> Figure | None:
    """Top-1 with its interval against the median latency with its quartiles; None where nothing was timed."""
    batch = comparison.latency_batch
    rows = [row for row in comparison.rows if row.latency_ms is not None]
    return _pareto(rows, _latency, f"latency [ms / batch of {batch}]", log=True)


def accuracy_against_macs(comparison: Comparison) -> Figure | None:
    """Top-1 with its interval against MACs; one point a model."""
    rows = [row for row in comparison.rows if row.macs_per_image is not None]
    return _pareto(rows, lambda row: ((macs_of(comparison, row) or 0) / 1e6, None), "MACs [M / image]", log=False)


def _latency(row: Row) -> tuple[float, tuple[float, float] | None]:
    spread = row.latency_ms
    if spread is None:
        raise ValueError(f"{row.name} was not timed")
    return spread.median, (spread.q75 - spread.median, spread.median - spread.q25)


def _pareto(
    rows: Sequence[Row], x_of: Callable[[Row], tuple[float, tuple[float, float] | None]], axis: str, *, log: bool
) -> Figure | None:
    if not rows:
        return None
    runtimes = list(dict.fromkeys(runtime_of(row) for row in rows))
    traces = [
        _points([row for row in rows if runtime_of(row) == runtime], x_of, name=runtime, number=number)
        for number, runtime in enumerate(runtimes)
    ]
    points = [(x_of(row)[0], row.top1_percent.value) for row in rows]
    layout = {
        "xaxis": {"title": {"text": axis}, **({"type": "log", "dtick": "D2"} if log else {"rangemode": "tozero"})},
        "yaxis": {"title": {"text": "top-1 [%]"}},
        "showlegend": len(runtimes) > 1,
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
    }
    return {"data": [_frontier(points), *traces], "layout": layout}


def _points(rows: Sequence[Row], x_of: Callable[[Row], Any], *, name: str, number: int) -> dict[str, Any]:
    xs = [x_of(row) for row in rows]
    intervals = [row.top1_percent for row in rows]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "name": _plain(name),
        "x": [x for x, _ in xs],
        "y": [i.value for i in intervals],
        "text": [_plain(model_of(row)) for row in rows],
        "textposition": ["top center" if k % 2 == 0 else "bottom center" for k in range(len(rows))],
        "error_y": _error([i.high - i.value for i in intervals], [i.value - i.low for i in intervals]),
        "marker": {"size": 11, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
        "meta": {"series": number},
        "hovertemplate": "%{text}<br>%{x:.4g}, top-1 %{y:.2f} %<extra></extra>",
    }
    if all(error is not None for _, error in xs):
        trace["error_x"] = _error([e[0] for _, e in xs], [e[1] for _, e in xs])
    return trace


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
        "legend": {"orientation": "h", "y": 1.15, "x": 0},
    }
    return {"data": traces, "layout": layout}


def _plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names are shown as they are."""
    return html.escape(text, quote=False)
