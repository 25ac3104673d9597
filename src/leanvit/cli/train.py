"""`leanvit train`: a model from a timm name, a recipe or a run, and a data set, saved as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb
from leanvit.cli.options import command_line, data_spec, key_values, preprocess_settings
from leanvit.cli.together import require_one_process
from leanvit.errors import BadInput

NAME = "train"


def command(
    name: options.OptionalModel = None,
    data: options.OptionalData = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="A recipe (leanvit recipes), a TOML file, timm's args.yaml.",
            rich_help_panel="Training",
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="METHOD",
            help="A way of training (leanvit methods), like gmm_mask:mask=elm. Repeats.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split (default 10).")] = None,
    samples: Annotated[int | None, typer.Option(help="Images to train on, instead of --epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (default 0.001).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a batch (default 128, fewer where there are few).")
    ] = None,
    set_: options.Settings = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A run, or a timm name with its pretrained weights."),
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of a timm teacher.")] = None,
    distill: Annotated[str | None, typer.Option(metavar="KIND", help="soft, hard, token, or method.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the teacher, 0 to 1.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of soft distillation.")] = None,
    adapt: options.Adapt = False,
    convert: options.Convert = False,
    class_names: options.ClassNames = "by-name",
    task: options.TaskName = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option("--model-arg", metavar="K=V", help="Constructor argument, also of a run: img_size=32. Repeats."),
    ] = None,
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
    out: options.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, at its exact step.")] = False,
    overwrite: options.Overwrite = False,
    keep: Annotated[
        str, typer.Option("--keep", metavar="WHICH", help="Which epoch's weights are saved: last or best.")
    ] = "last",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to OUT/tensorboard too.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, run one step, show what it takes; write nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a model on a data set; the result is a run folder.

    On several processes: `torchrun --nproc-per-node N -m leanvit train ...`; the batch size is that of all together.
    """
    if data is None and not (dry and recipe):
        raise BadInput("give --data DATA (a dry run of a recipe goes without)")
    given = {"epochs": epochs, "samples": samples, "lr": lr, "batch_size": batch_size}
    request: dict[str, Any] = {
        "recipe": recipe,
        "settings": {**{k: v for k, v in given.items() if v is not None}, **key_values(set_, "--set")},
        "adapt": adapt,
        "convert": convert,
        "class_names": class_names,
        "task": task,
        "model_args": key_values(model_arg, "--model-arg"),
        "pretrained": pretrained,
        "weights": weights,
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "distill": distill,
        "alpha": alpha,
        "temperature": temperature,
        **preprocess_settings(mean, std, crop_pct, interpolation),
        "limit": limit,
        "seed": seed,
    }
    if with_:
        from leanvit.recipe import parse_with

        request["methods"] = [parse_with(text) for text in with_]
    spec = None if data is None else data_spec(data, classes, shots, on_bad)
    if dry:
        require_one_process("train --dry-run")
        _dry_run(name, spec, request, as_json)
        return
    with output.stdout_for_result():
        result = load_verb("train")(
            name,
            spec,
            **request,
            out=out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            keep=keep,
            log=output.log,
            command=command_line(),
        )
    if output.process()[0] > 0:
        return
    if as_json:
        output.print_json(result.to_json())
        return
    epochs_done = "1 epoch" if result.epochs == 1 else f"{result.epochs} epochs"
    output.show(f"{result.folder}: {result.label}, {epochs_done} in {result.seconds:.0f} s{_scored(result)}")


def _scored(result: Any) -> str:
    """What was reached on the validation split, as in ", top-1 81.25 % on val"; nothing without one."""
    if result.score is None:
        return ""
    number = f"{result.score:.2f}" if result.unit == "%" else f"{result.score:.4f}"
    return f", {' '.join(filter(None, (result.metric, number, result.unit)))} on val"


def _dry_run(name: str | None, spec: str | None, request: dict[str, Any], as_json: bool) -> None:
    with output.stdout_for_result():
        found = load_verb("dry_run")(name, spec, **request, log=output.log)
    if as_json:
        output.print_json(found.to_json())
    else:
        output.print_rich(found.table())
