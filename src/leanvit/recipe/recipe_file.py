"""Recipe files: one compression as TOML, validated strictly. A recipe names methods and numbers, never code.

model = "deit_small_patch16_224"
data = "photos/"
out = "runs/slim"

[[method]]
slug = "evit"
keep_rate = 0.7

[[method]]
slug = "int8"

[recovery]
epochs = 3
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanvit.errors import BadInput
from leanvit.files import strict_message
from leanvit.recipe.protocol import Method
from leanvit.recipe.recovering import Recovery
from leanvit.recipe.registry import make_method


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RecoveryFile(_Strict):
    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 64
    alpha: float = 0.5
    temperature: float = 2.0
    distillation: str = "soft"
    each: bool = False
    settings: dict[str, Any] = {}
    method: list[dict[str, Any]] = []  # ways to train


class _RecipeFile(_Strict):
    model: str
    model_args: dict[str, Any] = {}
    data: str | None = None
    out: str | None = None
    teacher: str | None = None
    seed: int = 0
    method: list[dict[str, Any]] = Field(min_length=1)
    recovery: _RecoveryFile | None = None


@dataclass(frozen=True)
class Recipe:
    """A validated recipe file; the methods are made, nothing has run."""

    model: str
    methods: tuple[Method, ...]
    model_args: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    out: str | None = None
    teacher: str | None = None  # a run that teaches instead of the root
    seed: int = 0
    recovery: Recovery | None = None


def load_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe. Raises `BadInput`; an unknown key names the nearest known one."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"recipe {path}: {error.strerror}; accepted: the path of a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"recipe {path} is not TOML: {error}") from error
    try:
        file = _RecipeFile.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"recipe {path}: {strict_message(error, _RecipeFile)}") from error
    try:
        methods = tuple(_method(i, row) for i, row in enumerate(file.method))
        recovery = None if file.recovery is None else _recovery(file.recovery)
    except BadInput as error:
        raise BadInput(f"recipe {path}: {error}") from error
    return Recipe(
        model=file.model,
        methods=methods,
        model_args=file.model_args,
        data=file.data,
        out=file.out,
        teacher=file.teacher,
        seed=file.seed,
        recovery=recovery,
    )


def _recovery(table: _RecoveryFile) -> Recovery:
    ways = tuple(_method(i, row) for i, row in enumerate(table.method))
    return Recovery(**table.model_dump(exclude={"method"}), methods=ways)


def _method(i: int, row: dict[str, Any]) -> Any:
    if not isinstance(row.get("slug"), str):
        raise BadInput(f"method number {i + 1} has no slug")
    return make_method(row["slug"], {k: v for k, v in row.items() if k != "slug"})
