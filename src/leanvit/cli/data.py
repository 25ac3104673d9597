"""`leanvit data`: what a data set holds, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.options import data_spec, preprocess_settings

NAME = "data"


def command(
    path: Annotated[str, typer.Argument(metavar="DATA", help=options.DATA_HELP, show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Say whether this timm name or run folder fits.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option("--grid", metavar="FILE.png", help="Write a picture with images of each class.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Read every image, not a sample.")] = False,
    sample: Annotated[int, typer.Option("--sample", metavar="N", help="Images read of each split.")] = 256,
    classes: options.Classes = None,
    shots: options.Shots = None,
    seed: options.Seed = 0,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Look at a data set: format, splits, classes and their balance, sizes, bad images, leaks; and see it."""
    spec = data_spec(path, classes, shots, None)
    from leanvit import verbs

    with output.stdout_for_result():
        found = verbs.look(
            spec,
            model=model,
            grid=grid,
            every=every,
            sample=sample,
            seed=seed,
            **preprocess_settings(mean, std, crop_pct, interpolation),
            overwrite=overwrite,
            log=output.log,
        )
    if as_json:
        output.print_json(found.to_json())
        return
    output.print_rich(*found.shown())
