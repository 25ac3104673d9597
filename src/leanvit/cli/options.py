"""Arguments that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from leanvit.errors import BadInput

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, or a run folder.", show_default=False)]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="K=V", help="Constructor argument of a timm name, like img_size=32. Repeats."),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load timm's pretrained weights (downloads).")]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Weights of a timm name, as .safetensors.")
]
DataSpec = Annotated[
    str,
    typer.Option("--data", metavar="DATA", help="digits, an image folder, parquet, or hf:NAME.", show_default=False),
]
Adapt = Annotated[
    bool, typer.Option("--adapt", help="Build a timm name so that it fits the data: classes, channels, resolution.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Take only N images of each split, even over the classes.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PATH", help="Where the result goes; by default a name under runs/."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]


def key_values(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`["img_size=32", "global_pool=avg"]` -> `{"img_size": 32, "global_pool": "avg"}`. Raises `BadInput`."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{option} {pair!r} is not KEY=VALUE")
        try:
            found[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[key.strip()] = value
    return found


def command_line() -> str:
    """What was typed, for the record of the run."""
    return shlex.join(["leanvit", *sys.argv[1:]])
