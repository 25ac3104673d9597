"""Arguments that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanvit.errors import BadInput
from leanvit.knobs import Words, check
from leanvit.values import read_pair, read_value, split_values

if TYPE_CHECKING:
    from leanvit.recipe import Recovery

DATA_HELP = "digits, an image folder, a table (csv), parquet, list:FILE, wds:PATTERN, or hf:NAME."
MODEL_HELP = "A timm name, a run folder, leanvit/NAME, hf-hub:OWNER/NAME, or local-dir:FOLDER."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="K=V", help="Constructor argument of a timm name, like img_size=32. Repeats."),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load timm's pretrained weights (downloads).")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Weights of a timm name: .safetensors, .pth, .npz."),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="A,B,C", help="Mean that a timm name normalises by, of pixels from 0 to 1."),
]
Std = Annotated[str | None, typer.Option("--std", metavar="A,B,C", help="Standard deviation that it normalises by.")]
CropPct = Annotated[
    float | None,
    typer.Option("--crop-pct", metavar="X", help="Share of the resized image that is cropped, like 0.9."),
]
Interpolation = Annotated[
    str | None, typer.Option("--interpolation", metavar="NAME", help="How images are resized: bicubic, bilinear, ...")
]
DataSpec = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP, show_default=False)]
OptionalData = Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP, show_default=False)]
Classes = Annotated[
    str | None,
    typer.Option("--classes", metavar="A,B", help="Keep these classes only, by name or index; they become 0, 1, ..."),
]
Shots = Annotated[
    int | None, typer.Option("--shots", metavar="K", help="Few-shot: K images of each class; val stays whole.")
]
OnBad = Annotated[
    str | None,
    typer.Option("--on-bad", metavar="HOW", help="An image that cannot be read: error (default) or skip, then listed."),
]
Adapt = Annotated[
    bool,
    typer.Option(
        "--adapt",
        help="Fit a timm name to the data: classes, channels, resolution. train: a run's classifier too.",
    ),
]
Convert = Annotated[
    bool,
    typer.Option("--convert", help="Let preprocessing make images fit: enlarged more than twofold, grey <-> colour."),
]
ClassNames = Annotated[
    str,
    typer.Option(
        "--class-names",
        metavar="HOW",
        help="How the data's classes are found among the model's: by-name (default), or by-position.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="What the outputs mean: NAME or NAME:field=value, as segmentation. Default: by run and labels.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Take only N images of each split, even over the classes.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
OptionalSeed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random (default 0).")]
LatencyBatch = Annotated[int, typer.Option("--batch", metavar="N", help="Images a call when latency is measured.")]
FixedBatch = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", help="A fixed batch, which runs faster; default: any.", rich_help_panel="Deployment"
    ),
]
OptionalModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Methods = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="METHOD", help="A method, like evit or evit:keep_rate=0.7. Repeats, in order."),
]
Recover = Annotated[
    int, typer.Option("--recover", metavar="EPOCHS", help="Train after compression, taught by the dense model.")
]
RecoverLr = Annotated[float | None, typer.Option("--recover-lr", help="Learning rate of the recovery (default 1e-4).")]
RecoverBatch = Annotated[
    int | None,
    typer.Option("--recover-batch", metavar="N", help="Images a step of the recovery (default 64, or fewer)."),
]
RecoverWith = Annotated[
    list[str] | None,
    typer.Option(
        "--recover-with",
        metavar="METHOD",
        help="A way of training for the recovery (leanvit methods), like --with of train. Repeats.",
    ),
]
RecoverSet = Annotated[
    list[str] | None,
    typer.Option(
        "--recover-set",
        metavar="K=V",
        help="Other settings of the recovery: alpha, temperature, each, or a field of FitConfig. Repeats.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="A model to compare with; the first is the baseline. Repeats.",
    ),
]
Runtimes = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="torch, torch.compile, torch.export, openvino, openvino-bf16 or onnx. Repeats: a row for each.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Other settings, those of FitConfig: ema_decay=0.999. Repeats."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PATH", help="Where the result goes; by default a name under runs/."),
]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE.json", help="Where the result goes; by default in the run folder."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="Every column that was measured; without it five, which fit 80 characters.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]


def key_values(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`["img_size=32", "global_pool=avg"]` -> `{"img_size": 32, "global_pool": "avg"}`; values are those of
    `leanvit.values`. Raises `BadInput`."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, value = read_pair(pair, f"{option} {pair!r} is not KEY=VALUE")
        if key in found:
            raise BadInput(f"{option} {key} is given twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found


def preprocess_settings(
    mean: str | None, std: str | None, crop_pct: float | None, interpolation: str | None
) -> dict[str, Any]:
    """`--mean 0.5,0.5,0.5` and so on, as the verbs take them. Raises `BadInput` for what is no list of numbers."""
    return {
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    numbers = [read_value(part) for part in split_values(text)]
    hint = Annotated[tuple[float, ...], Words("numbers with commas between, one a channel")]
    return check(option, numbers, hint)  # type: ignore[no-any-return]


def recovery_of(
    given: Mapping[str, Any],
    more: Sequence[str] | None,
    base: Recovery | None = None,
    ways: Sequence[str] | None = None,
) -> Recovery | None:
    """The recovery of the command line, over that of a recipe file (`base`).

    given: numbers of its own options, None where an option was not used. more: `--recover-set`. ways: `--recover-with`,
    which take the place of the file's.

    Raises `BadInput` where nothing asks for one, but a number or a way of it is given.
    """
    from leanvit.recipe import Recovery, parse_with

    methods = tuple(parse_with(text) for text in ways or ())
    numbers = {**{k: v for k, v in given.items() if v is not None}, **key_values(more, "--recover-set")}
    if "epochs" not in numbers and base is None:
        if numbers or ways:
            named = ", ".join([*numbers, *(f"--recover-with {text}" for text in ways or ())])
            raise BadInput(f"{named} is given for a recovery that was not requested: add --recover EPOCHS")
        return None
    if base is not None:
        numbers = {**base.numbers(), **numbers}
        methods = methods or base.methods
    return Recovery.of(numbers, methods)


def data_spec(data: str, classes: str | None, shots: int | None, on_bad: str | None) -> str:
    """The data spec with the options of the command line in it, so that the record of a run opens the same data."""
    if classes is None and shots is None and on_bad is None:
        return data
    from leanvit.data.specs import with_options

    names = None if classes is None else tuple(name.strip() for name in classes.split(",") if name.strip())
    return with_options(data, {"classes": names, "shots": shots, "on_bad": on_bad})


def command_line() -> str:
    """What was typed, for the record of the run; bytes that are not text are spelt out."""
    return shlex.join(["leanvit", *sys.argv[1:]]).encode(errors="backslashreplace").decode()
