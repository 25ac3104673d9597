"""`leanvit demo`: the whole way on embedded data, in minutes, ending with a report page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line

NAME = "demo"


def command(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the runs and the page go: runs/demo.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Training epochs; fewer is faster and worse.", show_default="as the demo needs")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    overwrite: options.Overwrite = False,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """Train a small ViT on handwritten digits, make it lean in four ways, measure, and write the report.

    On several processes, which train together: `torchrun --nproc-per-node N -m leanvit demo`.
    """
    with output.stdout_for_result():
        result = load_verb("demo")(out, epochs=epochs, overwrite=overwrite, log=output.log, command=command_line())
    if result is None:  # of several processes, the first one has the result
        return
    if as_json:
        output.print_json(result.to_json())
    else:
        output.print_rich(result.table(wide=wide))
        output.show(f"\nReport: {result.page}")
    if open_:
        import webbrowser

        webbrowser.open(result.page.resolve().as_uri())
