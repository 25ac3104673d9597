"""`leanvit measure`: a run beside others, on the same images, interleaved: accuracy, speed, size."""

from __future__ import annotations

from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec, key_values, preprocess_settings

NAME = "measure"


def command(
    run: options.Model,
    data: options.DataSpec,
    against: options.Against = None,
    runtime: options.Runtimes = None,
    all_runtimes: Annotated[
        bool, typer.Option("--all-runtimes", help="Every runtime that is installed, in one comparison.")
    ] = False,
    batch: options.LatencyBatch = 8,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.")] = 15,
    convert: options.Convert = False,
    class_names: options.ClassNames = "by-name",
    task: options.TaskName = None,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    limit: options.Limit = None,
    classes: options.Classes = None,
    shots: options.Shots = None,
    on_bad: options.OnBad = None,
    out: options.OutFile = None,
    overwrite: options.Overwrite = False,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """Measure a model, alone or against others; a run folder keeps the result."""
    model_args = key_values(model_arg, "--model-arg")
    with output.stdout_for_result():
        result = load_verb("measure")(
            run,
            data_spec(data, classes, shots, on_bad),
            against=against or (),
            runtimes=runtime,
            all_runtimes=all_runtimes,
            latency_batch=batch,
            rounds=rounds,
            convert=convert,
            class_names=class_names,
            task=task,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            **preprocess_settings(mean, std, crop_pct, interpolation),
            limit=limit,
            out=out,
            overwrite=overwrite,
            log=output.log,
            command=command_line(),
        )
    if as_json:
        output.print_json(result.to_json())
        return
    output.print_rich(result.comparison.table(wide=wide))
    for what, reason in result.left_out.items():
        output.show(f"left out: {what}: {reason}")
    if result.file is not None:
        output.show(str(result.file))
