"""The page's plots as plain plotly figures (JSON). Colours, fonts and the legend are made by the page.

A trace's `meta` holds its `series` (a colour's number; -1: no model's) and its `groups`: it is shown while none of
them is switched off in the legend. A figure's `legend` lists the switches.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from leanvit.measure import Comparison, Reliability, reliability
from leanvit.measure.table import titled
from leanvit.runs.evidence import Evidence
from leanvit.runs.logs import Curve, Points
from leanvit.runs.token_maps import TokenMaps
from leanvit.tasks import LABEL_METRICS, Metric


class Colours(dict[str, int]):
    """A number for each model, the same in every plot of a page; numbers are given as names come."""

    def __missing__(self, name: str) -> int:
        self[name] = len(set(self.values()))
        return self[name]

    def share(self, name: str, other: str) -> None:
        """Give a name the colour of another."""
        self[name] = self[other]


Figure = dict[str, Any]
Trace = dict[str, Any]

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def entry(name: str, *, group: str, series: int = -1, symbol: str = "circle") -> dict[str, Any]:
    """One switch of a legend: what it is called, what it switches, its colour's number and its symbol."""
    return {"name": name, "group": group, "series": series, "symbol": symbol}


def plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names are shown as they are."""
    return html.escape(text, quote=False)


def token_counts(maps: Sequence[tuple[str, TokenMaps]], colours: Colours) -> Figure | None:
    """Sequence length in each block's MLP, one stair a model; None where no model was traced."""
    if not maps:
        return None
    traces = [
        {
            **_line(name, colours[name], list(range(len(one.tokens))), list(one.tokens)),
            "mode": "lines+markers",
            "line": {"shape": "hvh", "width": 2},
            "marker": {"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            "hovertemplate": "block %{x}: %{y} tokens<extra>" + plain(name) + "</extra>",
        }
        for number, (name, one) in enumerate(maps)
    ]
    longest = max(len(one.tokens) for _, one in maps)
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "block"}, "dtick": 1 if longest <= 14 else 2},
            "yaxis": {"title": {"text": "tokens in the MLP"}, "rangemode": "tozero"},
        },
        "legend": [
            entry(name, series=colours[name], symbol=SYMBOLS[i % len(SYMBOLS)], group=f"model:{name}")
            for i, (name, _) in enumerate(maps)
        ],
    }


def training_curves(curves: Mapping[str, Curve], colours: Colours) -> dict[str, Figure]:
    """Loss, validation score and learning rate by step, a colour a run; only what some run logged. Of runs of several
    metrics a figure for each."""
    wanted: dict[str, tuple[str, Callable[[Curve], Points], str]] = {
        "loss": ("training loss", lambda c: c.loss, "%{y:.4g}")
    }
    metrics = dict.fromkeys(curve.metric for curve in curves.values())
    for metric in metrics:
        key = "accuracy" if len(metrics) == 1 and metric in LABEL_METRICS else f"validation {metric.title}"
        shape = "%{y:.2f} %" if metric.unit == "%" else f"%{{y:.4g}} {plain(metric.unit)}".rstrip()
        wanted[key] = (f"validation {plain(titled(metric))}", partial(_score_of, metric), shape)
    wanted["rate"] = ("learning rate", lambda c: c.lr, "%{y:.3g}")
    made = {}
    for key, (title, points, shown) in wanted.items():
        traces, known = [], []
        for name, curve in curves.items():
            mean = curve.epoch_loss if key == "loss" else ()
            found: Points = points(curve) or mean  # a short training logs no single steps
            if not found:
                continue
            known.append(name)
            trace = _line(name, colours[name], [x for x, _ in found], [y for _, y in found])
            trace["hovertemplate"] = f"step %{{x}}: {shown}<extra>{plain(name)}</extra>"
            if mean:
                traces.append(
                    {**trace, "opacity": 0.35, "line": {"width": 1}, "hoverinfo": "skip", "hovertemplate": None}
                )
                trace = {**trace, "x": [x for x, _ in mean], "y": [y for _, y in mean]}
                trace["hovertemplate"] = f"mean of the epoch to step %{{x}}: {shown}<extra>{plain(name)}</extra>"
            alone = len(trace["x"]) == 1  # no line joins one point
            traces.append({**trace, "mode": "lines" if key in ("loss", "rate") and not alone else "lines+markers"})
        if traces:
            made[key] = {
                "data": traces,
                "layout": {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": title}}},
                "legend": [entry(name, series=colours[name], group=f"model:{name}") for name in known],
            }
    return made


def _score_of(metric: Metric, curve: Curve) -> Points:
    return curve.score if curve.metric == metric else ()


def calibration(
    comparison: Comparison, evidence: Evidence, colours: Colours, series: Callable[[str], str] = str
) -> dict[str, tuple[Figure, dict[str, Reliability]]]:
    """For each runtime the reliability diagram of all its models, and the reliability behind it by model.

    series: under which name a model has its colour.
    """
    made = {}
    for runtime, rows in comparison.by_runtime().items():
        found = {
            row.model: reliability(evidence.answers[row.name].confidence.clip(0, 1), evidence.right(row.name))
            for row in rows
        }
        figure = {
            "data": [_diagonal(), *(_reliability(name, colours[series(name)], one) for name, one in found.items())],
            "layout": {
                "xaxis": {"title": {"text": "confidence of the answer [%]"}, "range": [0, 103]},
                "yaxis": {"title": {"text": "answered rightly [%]"}, "range": [0, 103]},
            },
            "legend": [entry(name, series=colours[series(name)], group=f"model:{name}") for name in found],
        }
        made[runtime] = (figure, found)
    return made


def _reliability(name: str, number: int, found: Reliability) -> Trace:
    images = sum(b.count for b in found.bins)
    trace = _line(name, number, [100 * b.confidence for b in found.bins], [100 * b.accuracy for b in found.bins])
    return {
        **trace,
        "mode": "lines+markers",
        "line": {"width": 1.5},
        # An area that grows with the images of the bin: few images are weak evidence.
        "marker": {"size": [5 + 20 * (b.count / images) ** 0.5 for b in found.bins], "opacity": 0.75},
        "customdata": [b.count for b in found.bins],
        "hovertemplate": "%{customdata} images: confidence %{x:.1f} %, right %{y:.1f} %<extra>"
        + plain(name)
        + "</extra>",
    }


def _diagonal() -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "perfectly calibrated",
        "x": [0, 100],
        "y": [0, 100],
        "line": {"dash": "dot", "width": 1},
        "hoverinfo": "skip",
        "meta": {"series": -1, "groups": []},
    }


def _line(name: str, number: int, x: list[Any], y: list[Any]) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": x,
        "y": y,
        "line": {"width": 2},
        "marker": {"size": 6},
        "meta": {"series": number, "groups": [f"model:{name}"]},
    }
