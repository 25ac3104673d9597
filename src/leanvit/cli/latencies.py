"""`leanvit latencies`: measure a table of block latencies at other widths, which latency targets are predicted from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import key_values

NAME = "latencies"


def command(
    run: options.Model,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="torch, openvino, openvino-bf16, openvino-int8, onnx or onnx-int8.", show_default=True
        ),
    ] = "torch",
    batch: options.LatencyBatch = 8,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of the runtime; default: its own choice.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which what is timed takes turns.")] = 7,
    check: Annotated[
        int, typer.Option(metavar="N", help="Whole models of random widths, predicted and measured; 0: none.")
    ] = 5,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    out: options.OutFile = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Time a model's blocks at other widths, for latency targets (nvit); interrupted, the same command goes on."""
    model_args = key_values(model_arg, "--model-arg")
    with output.stdout_for_result(), output.progress_bar("entries") as progress:
        result = load_verb("latencies")(
            run,
            runtime=runtime,
            batch=batch,
            threads=threads,
            rounds=rounds,
            check=check,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            out=out,
            overwrite=overwrite,
            log=output.log,
            progress=progress,
        )
    if as_json:
        output.print_json(result.to_json())
        return
    if result.table.check:
        output.print_rich(held_out(result.table))
    output.show(str(result.file))


def held_out(table: Any) -> Any:
    """Predicted against measured, for a person."""
    from rich.table import Table

    check = table.check
    shown = Table(title=f"Held-out models, {table.runtime}, batch {table.batch}")
    for heading in ("embed", "predicted ms", "measured ms", "error", "error, machine's drift left in"):
        shown.add_column(heading, justify="right")
    for row in check["rows"]:
        seconds = (f"{row[key] * 1e3:.2f}" for key in ("predicted_s", "measured_s"))
        errors = (f"{row[key]:+.1%}" for key in ("error", "raw_error"))
        shown.add_row(str(row["embed"]), *seconds, *errors)
    shown.caption = (
        f"median error {check['median_error']:.1%}, worst {check['worst_error']:.1%}; spread of the entries "
        f"{table.provenance['spread']:.1%}"
    )
    return shown
