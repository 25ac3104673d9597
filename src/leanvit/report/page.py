"""`report`: run folders -> one HTML page that needs nothing else, no network either."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from leanvit import __version__
from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.recipe.catalogue import reference_name, run_folder
from leanvit.report.sections import Sections, sections
from leanvit.report.token_pictures import PATCH
from leanvit.report.values import share_in_words, shown
from leanvit.runs.compared import COMPARED, MethodComparison, SideBySide
from leanvit.runs.folders import new_file
from leanvit.runs.record import RunRecord, read_run

_SIZE = "@size-of-this-page@"  # replaced when the page is whole


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a page about run folders and return its path.

    Args:
        runs: run folders, folders of `leanvit compare-methods` (all runs in them), or references as `leanvit/NAME`
            (then give `out`); each gives its comparisons, token maps, curves and commands. They may stand on different
            models and data: what was measured on other images is shown apart, never in one plot or table.
        out: HTML file; default: `report.html` in the first run's folder (or `report-2.html` and so on).
        overwrite: replace `out`.

    Raises:
        BadInput: no run, a run given twice, or an `out` that exists.
        CheckpointError: a damaged `leanvit.json` or `compare.json`. Other files that cannot be read are left out: the
            page and a warning name them with the reason.
    """
    method_comparisons, runs = _opened(runs)
    names = [reference_name(run) for run in runs]
    folders = [run_folder(run) for run in runs]
    if not folders:
        raise BadInput("report needs at least one run folder")
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise BadInput(f"run {folder} is given twice")
    records = [read_run(folder, reference=name or "") for folder, name in zip(folders, names, strict=True)]
    home = method_comparisons[0].folder if method_comparisons else folders[0]
    page = new_file(out, None if names[0] else home / "report.html", overwrite=overwrite)
    made = sections(records, method_comparisons)
    for one in made.unreadable:
        warnings.warn(f"not in the report: {one}", stacklevel=2)
    text = _rendered(made, records)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, text.encode("utf-8"))
    return page


def _opened(runs: Sequence[str | Path]) -> tuple[list[MethodComparison], list[str | Path]]:
    """The comparisons among the folders, and all runs: those of a comparison in its place."""
    method_comparisons: list[MethodComparison] = []
    found: list[str | Path] = []
    for run in runs:
        if reference_name(run) is None and (Path(run) / COMPARED).is_file():
            method_comparisons.append(MethodComparison(Path(run), SideBySide.read(Path(run))))
            found += method_comparisons[-1].result.folders(Path(run))
        else:
            found.append(run)
    return method_comparisons, found


def render(records: Sequence[RunRecord], method_comparisons: Sequence[MethodComparison] = ()) -> str:
    """The page's text. All that comes from runs is escaped; the page's own scripts are the only ones that may run."""
    return _rendered(sections(records, method_comparisons), records)


def _rendered(made: Sections, records: Sequence[RunRecord]) -> str:
    scripts = {"theme": _asset("theme.js"), "plotly": get_plotlyjs(), "page": _asset("page.js")}
    context = {
        "sections": made,
        "records": records,
        "patch": PATCH,
        "version": __version__,
        "size": _SIZE,
        "plots": Markup(_script_json(made.plots)),
        "scripts": {name: Markup(text) for name, text in scripts.items()},
        "policy": _policy(scripts.values()),
        "style": Markup(_asset("page.css")),
    }
    text = _environment().get_template("page.html.jinja").render(context)
    return text.replace(_SIZE, f"{len(text.encode()) / 1e6:.1f} MB", 1)


@cache
def _environment() -> Environment:
    """Kept: its templates are compiled once."""
    made = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"shown": shown, "share_in_words": share_in_words}
    return made


def _asset(name: str) -> str:
    return files("leanvit.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Any) -> str:
    """The page's content security policy: nothing is fetched, and only these very scripts run."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'"


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
