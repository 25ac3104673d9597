"""`leanvit compare-methods`: methods side by side on one model and data set, at equal MACs."""

from __future__ import annotations

from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec, key_values, recovery_of

NAME = "compare-methods"
OLD_NAME = "compare"  # until 0.2


def command(
    model: options.Model,
    data: options.DataSpec,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="METHOD",
            help="A method, without the knob that sets its cost: evit, diffrate:max_steps=300. Repeats. "
            "Default: all that reduce tokens or leave early and fit.",
        ),
    ] = None,
    macs: Annotated[float, typer.Option("--macs", help="The share of the model's MACs that every method keeps.")] = 0.6,
    tolerance: Annotated[float, typer.Option(help="How far off, as a share of that, a method may be.")] = 0.03,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="EViT with random and with the least attended tokens.")
    ] = True,
    recover: options.Recover = 0,
    recover_lr: options.RecoverLr = None,
    recover_batch: options.RecoverBatch = None,
    recover_with: options.RecoverWith = None,
    recover_set: options.RecoverSet = None,
    runtime: options.Runtimes = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round each to int8 as well; needs --runtime openvino or onnx.")
    ] = False,
    adapt: options.Adapt = False,
    convert: options.Convert = False,
    class_names: options.ClassNames = "by-name",
    task: options.TaskName = None,
    model_arg: options.ModelArgs = None,
    pretrained: options.Pretrained = False,
    weights: options.Weights = None,
    limit: options.Limit = None,
    classes: options.Classes = None,
    shots: options.Shots = None,
    on_bad: options.OnBad = None,
    seed: options.Seed = 0,
    batch: options.LatencyBatch = 8,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.")] = 15,
    out: options.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted comparison in --out.")] = False,
    overwrite: options.Overwrite = False,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """Compare methods at equal MACs: off the shelf, after equal recovery, measured; with a report.

    On several processes, which train together: `torchrun --nproc-per-node N -m leanvit compare-methods ...`.
    """
    model_args = key_values(model_arg, "--model-arg")
    numbers = {"epochs": recover or None, "lr": recover_lr, "batch_size": recover_batch}
    recovery = recovery_of(numbers, recover_set, ways=recover_with)
    with output.stdout_for_result():
        result = load_verb("compare_methods")(
            model,
            data_spec(data, classes, shots, on_bad),
            with_ or (),
            macs=macs,
            tolerance=tolerance,
            controls=controls,
            recovery=recovery,
            runtimes=runtime or (),
            int8=int8,
            latency_batch=batch,
            rounds=rounds,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            adapt=adapt,
            convert=convert,
            class_names=class_names,
            task=task,
            limit=limit,
            seed=seed,
            out=out,
            resume=resume,
            overwrite=overwrite,
            log=output.log,
            command=command_line(),
        )
    if result is None:  # of several processes, the first one has the result
        return
    if as_json:
        output.print_json(result.to_json())
        return
    output.print_rich(result.table(wide=wide))
    output.show(str(result.page))
