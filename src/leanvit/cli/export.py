"""`leanvit export`: a run as an artefact of a runtime, with its preprocessing inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, key_values, preprocess_settings

NAME = "export"


def command(
    run: options.Model,
    to: Annotated[str, typer.Option("--to", metavar="RUNTIME", help="openvino, onnx or torch.")] = "openvino",
    input_type: Annotated[
        str, typer.Option("--input", metavar="KIND", help="float: normalised images; u8: pixels, normalised inside.")
    ] = "float",
    batch: options.FixedBatch = None,
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="ONNX operator set, 17 to 20 (default: PyTorch's).")
    ] = None,
    task: options.TaskName = None,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    crop_pct: options.CropPct = None,
    interpolation: options.Interpolation = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Of the artefact; default: RUN/artefacts/RUNTIME."),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Export a model for deployment; by default into the run folder, under artefacts/."""
    model_args = key_values(model_arg, "--model-arg")
    with output.stdout_for_result():
        result = load_verb("export")(
            run,
            to=to,
            batch=batch,
            input_type=input_type,
            opset=opset,
            task=task,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            **preprocess_settings(mean, std, crop_pct, interpolation),
            out=out,
            overwrite=overwrite,
            log=output.log,
            command=command_line(),
        )
    if as_json:
        output.print_json(result.to_json())
        return
    integers = "{} of {} products in integers".format(*result.integer_products) if result.integer_products else ""
    opset_of = f"opset {result.opset}" if result.opset else ""
    facts = (
        f"{result.label} for {result.runtime}",
        opset_of,
        result.precision,
        f"{result.size_bytes / 2**20:.2f} MiB",
        integers,
    )
    output.show(f"{result.folder}: {', '.join(filter(None, facts))}")
