"""`report`: run folders -> one HTML page that needs nothing else, no network either."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from leanvit import __version__
from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.report import figures, rows
from leanvit.report.material import Material, Measurement, read_run
from leanvit.report.token_maps import TokenMaps
from leanvit.report.token_pictures import PATCH, strips
from leanvit.verbs.folders import Command, new_file


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a page about run folders and return its path.

    Args:
        runs: run folders; each gives its comparisons, token maps and commands. The first names the page.
        out: HTML file; default: `report.html` in the first run's folder (or `report-2.html` and so on).
        overwrite: replace `out`.

    Raises:
        BadInput: no run, a run given twice, or an `out` that exists.
        CheckpointError: a damaged file in a run folder.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise BadInput("report needs at least one run folder")
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise BadInput(f"run {folder} is given twice")
    materials = [read_run(folder) for folder in folders]
    page = new_file(out, folders[0] / "report.html", overwrite=overwrite)
    text = render(materials)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, text.encode("utf-8"))
    return page


def render(materials: Sequence[Material]) -> str:
    """The page's text. All that comes from runs is escaped."""
    measurements = [(material, m) for material in materials for m in material.measurements]
    plots: dict[str, Any] = {}
    context = {
        "title": _title(materials),
        "materials": materials,
        "headline": next((h for _, m in measurements if (h := rows.headline(m.comparison))), None),
        "sections": [_section(material, m, plots, i) for i, (material, m) in enumerate(measurements)],
        "tokens": _tokens(materials, plots),
        "commands": _commands(materials),
        "made_with": _versions(materials, measurements),
        "notes": _notes(materials, measurements),
        "patch": PATCH,
        "version": __version__,
        "plots": Markup(_script_json(plots)),
        "plotly": Markup(get_plotlyjs()),
        "style": Markup(_asset("page.css")),
        "script": Markup(_asset("page.js")),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html.jinja")).render(context)


def _asset(name: str) -> str:
    return files("leanvit.report").joinpath(name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(materials: Sequence[Material]) -> str:
    return f"{materials[0].model}: {', '.join(m.name for m in materials)}"


def _section(material: Material, measurement: Measurement, plots: dict[str, Any], number: int) -> dict[str, Any]:
    comparison = measurement.comparison
    drawn = {}
    for key, make in (("latency", figures.accuracy_against_latency), ("macs", figures.accuracy_against_macs)):
        figure = make(comparison)
        if figure is not None:
            drawn[key] = f"plot-{number}-{key}"
            plots[drawn[key]] = figure
    return {
        "material": material,
        "measurement": measurement,
        "comparison": comparison,
        "size": "×".join(map(str, comparison.input_size)),
        "table": rows.table(comparison),
        "drawn": drawn,
        "environment": [(k, _text(v)) for k, v in comparison.environment.items()],
    }


def _tokens(materials: Sequence[Material], plots: dict[str, Any]) -> dict[str, Any]:
    traced: dict[str, tuple[Material, TokenMaps]] = {}
    for material in materials:
        if material.tokens is not None:
            traced.setdefault(material.tokens.name, (material, material.tokens))
    figure = figures.token_counts([maps for _, maps in traced.values()])
    if figure is not None:
        plots["plot-tokens"] = figure
    pictured = [
        {"maps": maps, "strips": strips(maps, material.classes), "sources": _sources(maps)}
        for material, maps in traced.values()
        if maps.pictures
    ]
    return {"plot": "plot-tokens" if figure is not None else "", "pictured": pictured}


def _sources(maps: TokenMaps) -> str:
    return " + ".join(dict.fromkeys(r.source for r in maps.reductions if r.source))


def _commands(materials: Sequence[Material]) -> list[Command]:
    """Every command once, in the order they ran: runs share those that made what they started from."""
    found = {(c.at, c.command): c for material in materials for c in material.commands if c.command}
    return sorted(found.values(), key=lambda c: c.at)


def _versions(
    materials: Sequence[Material], measurements: Sequence[tuple[Material, Measurement]]
) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for material in materials:
        for versions in (material.made_with, *(c.versions for c in material.commands)):
            found |= {str(k): str(v) for k, v in versions.items()}
    return sorted(found.items())


def _notes(materials: Sequence[Material], measurements: Sequence[tuple[Material, Measurement]]) -> list[str]:
    said = [note for _, m in measurements for note in rows.notes(m.comparison)]
    for material in materials:
        if not material.measurements and not measurements:
            said.append(f"{material.folder}: not measured yet (leanvit measure)")
        if material.tokens is None:
            said.append(f"{material.folder}: tokens were not traced")
    return list(dict.fromkeys(said))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
