"""`leanvit publish`: a run as a compact folder to hand on, measured before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec

NAME = "publish"


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    data: options.DataSpec,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The new folder.", show_default=False)],
    store: Annotated[
        str, typer.Option("--store", metavar="TYPE", help="Parameters in the file: float16, bfloat16 or float32.")
    ] = "float16",
    title: Annotated[str, typer.Option("--title", help="What it is, in a line.")] = "",
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset", metavar="NAME", help="A recipe that trained it; default: from the run's record. Repeats."
        ),
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the weights.")] = "",
    data_source: Annotated[str, typer.Option("--data-source", help="Where the data are from, on which terms.")] = "",
    trained_on: Annotated[
        str, typer.Option("--trained-on", metavar="MACHINE", help="Default: from the run's record.")
    ] = "",
    most_mb: Annotated[
        float | None, typer.Option("--most-mb", metavar="N", help="Write nothing that takes more million bytes.")
    ] = None,
    class_names: options.ClassNames = "by-name",
    task: options.TaskName = None,
    limit: options.Limit = None,
    classes: options.Classes = None,
    on_bad: options.OnBad = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Hand a run on: half-precision weights, accuracy before and after, and a record of how it was made."""
    with output.stdout_for_result():
        result = load_verb("publish")(
            run,
            data_spec(data, classes, None, on_bad),
            out,
            store=store,
            title=title,
            presets=preset or (),
            licence=licence,
            data_source=data_source,
            trained_on=trained_on,
            most_mb=most_mb,
            class_names=class_names,
            task=task,
            limit=limit,
            overwrite=overwrite,
            log=output.log,
            command=command_line(),
        )
    if as_json:
        output.print_json(result.to_json())
        return
    found = result.record
    before = f"{found.number(found.score[0])} {found.unit}".rstrip()
    alike = (
        f"{found.agreement_percent:.2f} % of {found.images} answers alike"
        if found.agreement_percent is not None
        else ""
    )
    output.show(
        f"{result.folder}: {result.size_bytes / 1e6:.2f} MB in {found.stored_as or 'float32'}, "
        + ", ".join(filter(None, (f"{found.figure(found.stored_score)} (the run {before})", alike)))
    )
