"""`leanvit predict`: what a model answers on images without labels, as a table, CSV or JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import key_values
from leanvit.errors import BadInput

NAME = "predict"


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run folder, an artefact, leanvit/NAME, or a timm name.", show_default=False
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Images, folders (searched to the bottom), patterns, a .txt of paths, or a data spec.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="answers.csv or answers.jsonl; without it, a short table."),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="K", help="The K most probable classes of each image (default 1).")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Images a call (default 32).")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime", metavar="NAME", help="torch, openvino, onnx, ... (default torch; an artefact has its own)."
        ),
    ] = None,
    several: Annotated[
        bool,
        typer.Option("--multi-label", help="Each class by itself, for a model that does not record it (runs do)."),
    ] = False,
    task: options.TaskName = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="train or val of a data spec (default: every image).")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes that decode; 0: this one.")] = 0,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Say what is on images: names of classes and their probabilities, or what the model's task answers.

    No labels are needed.
    """
    model_args = key_values(model_arg, "--model-arg")
    if several and task is not None:
        raise BadInput(f"--multi-label says what the outputs mean, and so does --task {task}: give one of both")
    with output.stdout_for_result(), output.progress_bar("images") as progress:
        found = load_verb("predict_file")(
            model,
            images,
            out=out,
            top=top,
            batch=batch,
            runtime=runtime,
            task=_several_labels() if several else task,
            split=split,
            workers=workers,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            overwrite=overwrite,
            log=output.log,
            progress=progress,
        )
    if as_json:
        output.print_json(found.to_json())
    else:
        output.print_rich(*found.shown())
    found.require_some()


def _several_labels() -> object:
    """What `--multi-label` stands for, imported now."""
    from leanvit.tasks import MultiLabel

    return MultiLabel()
