"""`leanvit report`: run folders as one HTML page that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output

NAME = "report"


def command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or references.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: RUN/report.html.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a page that shows what each step gave and cost."""
    from leanvit.report import write_report

    page = write_report(runs, out, overwrite=overwrite)
    if as_json:
        output.print_json({"page": str(page), "runs": runs})
    else:
        output.show(str(page))
    if open_:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
