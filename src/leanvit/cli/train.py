"""`leanvit train`: a dense model from a timm name and a data set, saved as a run folder."""

from __future__ import annotations

from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec, key_values

NAME = "train"


def command(
    name: options.Model,
    data: options.DataSpec,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 10,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    set_: options.Settings = None,
    adapt: options.Adapt = False,
    convert: options.Convert = False,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    limit: options.Limit = None,
    classes: options.Classes = None,
    shots: options.Shots = None,
    on_bad: options.OnBad = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, at its exact step.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Train a model on a data set; the result is a run folder.

    On several processes: `torchrun --nproc-per-node N -m leanvit train ...`; the batch size is that of all together.
    """
    settings = {"epochs": epochs, "lr": lr, "batch_size": batch_size, **key_values(set_, "--set")}
    model_args = key_values(model_arg, "--model-arg")
    with output.stdout_for_result():
        result = load_verb("train")(
            name,
            data_spec(data, classes, shots, on_bad),
            settings=settings,
            adapt=adapt,
            convert=convert,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            limit=limit,
            seed=seed,
            out=out,
            resume=resume,
            overwrite=overwrite,
            say=output.say,
            command=command_line(),
        )
    if output.place()[0] > 0:
        return
    if as_json:
        output.print_json(result.to_json())
        return
    score = result.top1_percent
    shown = "" if score is None else f", {result.metric} {score:.2f} % on its validation split"
    print(f"{result.folder}: {result.label}, {result.epochs} epochs in {result.seconds:.0f} s{shown}")
