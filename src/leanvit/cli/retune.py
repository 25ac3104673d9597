"""`leanvit retune`: other thresholds of a finished run, without training."""

from __future__ import annotations

from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line

NAME = "retune"


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    with_: Annotated[
        list[str],
        typer.Option("--with", metavar="METHOD", help="Like lgvit:threshold=0.8 or lgvit:speedup=1.5. Repeats."),
    ],
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Change settings that need no training, such as the thresholds of early exits; the result is a new run."""
    with output.stdout_for_result():
        result = load_verb("retune")(run, with_, out=out, overwrite=overwrite, command=command_line())
    if as_json:
        output.print_json(result.to_json())
        return
    output.print_rich(result.target_table())
    output.show(f"{result.folder}: {result.label}")
