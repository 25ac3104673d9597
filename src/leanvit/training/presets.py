"""Training recipes as TOML: published ones that come with the package, by name, and files of a user's own.

A recipe holds numbers and names, never code. It also names its source and its published target.

title = "DeiT-Tiny from scratch"
arxiv = "2012.12877"

[model]
name = "deit_tiny_patch16_224"
args = {drop_path_rate = 0.1}
also = ["deit_tiny_distilled_patch16_224"]  # what else trains with these numbers, the arguments included

[fit]
epochs = 300
lr_base = 5e-4
lr_base_size = 512
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

import leanvit
from leanvit import cards
from leanvit.errors import BadInput, nearest, unknown
from leanvit.files import Strict, strict_message
from leanvit.training.teachers import Distill
from leanvit.training.timm_args import read_args
from leanvit.training.train_recipe import MeantFor, Target, TrainRecipe, check_fields

_PRESETS = Path(leanvit.__file__).parent / "presets"
SUFFIXES = (".toml", ".yaml", ".yml")
LARGEST = 2**18  # bytes of a recipe file; ours and timm's have some thousands


class _Model(Strict):
    name: str | None = None
    also: list[str] = Field(default_factory=list)
    args: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool = False
    convert: bool = False
    starts_from: str | None = None


class _File(Strict):
    title: str
    paper: str = ""
    arxiv: str = ""
    source: str = ""
    notes: str = ""
    unverified: list[str] = Field(default_factory=list)
    target: Target | None = None
    data: MeantFor | None = None
    model: _Model
    fit: dict[str, Any]
    distill: dict[str, Any] | None = None


def preset_names() -> list[str]:
    """Names of the recipes that come with the package, and with the papers that were added to it."""
    return sorted(_files())


def preset(name: str, model: object = None) -> TrainRecipe:
    """A recipe that comes with the package or a paper: by its name, or by that of an architecture (`dhvt`).

    An architecture's recipe is the one that is written for `model` (a timm name), or its only one. Raises `BadInput`
    with the nearest names, or with the recipes of the architecture.
    """
    known = _files()
    if name in known:
        return _parsed(known[name].read_text(encoding="utf-8"), name, f"recipe {name}")
    if name in cards.papers() and cards.papers()[name].models:
        return _of_architecture(name, model)
    raise unknown("recipe", name, known)


def load_train_recipe(spec: str | Path, model: object = None) -> TrainRecipe:
    """A preset by name (of an architecture: the one of `model`), a TOML file, or timm's `args.yaml`.

    Raises `BadInput`; an unknown key names the nearest.
    """
    path = Path(spec)
    if isinstance(spec, str) and path.suffix not in SUFFIXES and len(path.parts) == 1 and not path.is_file():
        return preset(spec, model)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BadInput(f"recipe {path} has more than {LARGEST} bytes; accepted: up to that")
        text = content.decode("utf-8")
    except OSError as error:
        raise BadInput(f"recipe {path}: {error.strerror}; accepted: a name (leanvit recipes), or a file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"recipe {path} is not text: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        return read_args(text, path)
    return _parsed(text, path.stem, f"recipe {path}")


def _of_architecture(slug: str, model: object) -> TrainRecipe:
    recipes = [one for one in map(preset, preset_names()) if one.model in cards.papers()[slug].models]
    meant = [one for one in recipes if one.trains(model)] if len(recipes) > 1 else recipes
    if len(meant) == 1:
        return meant[0]
    if not recipes:
        raise BadInput(f"recipe {slug!r} is an architecture without a recipe; accepted: a name (leanvit recipes)")
    listed = "; ".join(f"{one.name} (of {', '.join([one.model or '', *one.also])})" for one in recipes)
    given = "no model is given" if model is None else f"none of them is of {model}"
    raise BadInput(f"recipe {slug!r} is an architecture with several recipes, and {given}; accepted: {listed}")


def _files() -> dict[str, Path]:
    """Name -> file. Those of no paper are in `presets/`, those of a paper in its folder."""
    return {path.stem: path for path in _PRESETS.glob("*.toml")} | cards.recipes()


def _parsed(text: str, name: str, where: str) -> TrainRecipe:
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not TOML: {error}") from error
    if "method" in content:
        raise BadInput(f"{where} is of compress (it has methods): leanvit compress --recipe FILE")
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{where}: {strict_message(error, _File)}") from error
    try:
        recipe = _recipe(file, name, text)
        recipe.config()
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return recipe


def _recipe(file: _File, name: str, text: str) -> TrainRecipe:
    model = file.model
    if (model.name is None) == (model.starts_from is None):
        raise BadInput("model: give name (a timm name) or starts_from ('run', or the slug of a method)")
    if model.starts_from is not None and (model.args or model.also or model.pretrained):
        raise BadInput("model: args, also and pretrained are of a timm name, not of starts_from")
    check_fields(file.fit)
    return TrainRecipe(
        name=name,
        title=file.title,
        fit=file.fit,
        model=model.name,
        also=tuple(model.also),
        model_args=model.args,
        pretrained=model.pretrained,
        convert=model.convert,
        starts_from=model.starts_from,
        distill=None if file.distill is None else _distill(file.distill),
        target=file.target,
        data=file.data,
        paper=file.paper,
        arxiv=file.arxiv,
        source=file.source,
        notes=file.notes,
        unverified=tuple(file.unverified),
        text=text,
    )


def _distill(row: Mapping[str, Any]) -> Distill:
    known = [f.name for f in fields(Distill)]
    for key in row:
        if key not in known:
            raise BadInput(f"unknown key 'distill.{key}': {nearest(key, known)}")
    if "kind" not in row:
        raise BadInput("distill has no kind; accepted: soft, hard, token, method")
    return Distill(**row)
