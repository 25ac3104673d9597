"""`leanvit compress`: methods applied to a model in order, recovered, measured and saved as a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec, key_values, preprocess_settings, recovery_of
from leanvit.errors import BadInput

NAME = "compress"


def command(
    model: options.OptionalModel = None,
    data: options.OptionalData = None,
    with_: options.Methods = None,
    recover: options.Recover = 0,
    recover_lr: options.RecoverLr = None,
    recover_batch: options.RecoverBatch = None,
    recover_with: options.RecoverWith = None,
    recover_set: options.RecoverSet = None,
    distill: Annotated[
        str | None,
        typer.Option("--distill", metavar="HOW", help="How the recovery is taught: soft (default) or hard."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="RUN", help="A run that teaches instead of the dense model.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe file (TOML) instead of --with.")
    ] = None,
    adapt: options.Adapt = False,
    convert: options.Convert = False,
    class_names: options.ClassNames = "by-name",
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
    seed: options.OptionalSeed = None,
    batch: options.LatencyBatch = 8,
    measured: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure dense, each step and all.")] = True,
    out: options.Out = None,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            metavar="NAME",
            help="Of a model of parts, the part that methods are applied to.",
        ),
    ] = "",
    task: options.TaskName = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted compression in --out, one that trains.")
    ] = False,
    overwrite: options.Overwrite = False,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """Apply methods to a model, in order, and save the lean model with its history.

    On several processes, which train together: `torchrun --nproc-per-node N -m leanvit compress ...`.
    """
    if recipe is None and model is None:
        raise BadInput("give a MODEL (a timm name or a run folder), or --recipe FILE")
    if recipe is None and not with_:
        raise BadInput("give at least one --with METHOD (see: leanvit methods), or --recipe FILE")
    if recipe is not None and with_:
        raise BadInput("--recipe names the methods: leave --with out")
    model_args = key_values(model_arg, "--model-arg")
    run = load_verb("compress")
    from leanvit.recipe import load_recipe, parse_with

    given = {"epochs": recover or None, "lr": recover_lr, "batch_size": recover_batch, "distillation": distill}
    if recipe is not None:
        request = load_recipe(recipe)
        methods = request.methods
        model, data = model or request.model, data or request.data
        model_args = {**request.model_args, **model_args}
        recovery = recovery_of(given, recover_set, request.recovery, recover_with)
        teacher = teacher or (Path(request.teacher) if request.teacher else None)
        seed = request.seed if seed is None else seed
        out = out or (Path(request.out) if request.out else None)
    else:
        methods = tuple(parse_with(text) for text in with_ or ())
        recovery = recovery_of(given, recover_set, ways=recover_with)
    if model is None:
        raise BadInput("give a MODEL")

    with output.stdout_for_result():
        result = run(
            model,
            methods,
            None if data is None else data_spec(data, classes, shots, on_bad),
            recovery=recovery,
            teacher=teacher,
            adapt=adapt,
            convert=convert,
            class_names=class_names,
            model_args=model_args,
            pretrained=pretrained,
            weights=weights,
            **preprocess_settings(mean, std, crop_pct, interpolation),
            limit=limit,
            seed=seed or 0,
            latency_batch=batch,
            measured=measured,
            out=out,
            part=part,
            task=task,
            resume=resume,
            overwrite=overwrite,
            log=output.log,
            command=command_line(),
        )
    if output.process()[0] > 0:
        return
    if as_json:
        output.print_json(result.to_json())
        return
    output.print_rich(result.target_table())
    if result.comparison is not None:
        output.print_rich(result.comparison.table(wide=wide))
    output.show(f"{result.folder}: {result.label}. Next: {shlex.join(['leanvit', 'report', str(result.folder)])}")
