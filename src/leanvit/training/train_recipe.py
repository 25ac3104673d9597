"""A validated training recipe, whatever kind of file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import Field

from leanvit.errors import BadInput, nearest
from leanvit.files import Strict
from leanvit.training.config import FitConfig
from leanvit.training.teachers import Distill

_LR_PRODUCT = ("lr_base", "lr_base_size", "lr_counts_accumulation")
_INSTEAD = {  # a field that is given -> those of a recipe whose place it takes
    "lr": _LR_PRODUCT,
    "lr_base": ("lr",),
    "samples": ("epochs",),
    "epochs": ("samples",),
    "warmup_steps": ("warmup_epochs",),
    "warmup_epochs": ("warmup_steps",),
}


class Target(Strict):
    """The published target of the recipe, and its conditions."""

    percent: float | None = None  # None: no figure yet; `conditions` gives the reason
    metric: str = "top-1"
    data: str
    conditions: str


class MeantFor(Strict):
    """The training split that the numbers of a recipe were chosen for."""

    name: str
    images: int = Field(ge=1, le=50_000_000)
    classes: int = Field(ge=1, le=1_000_000)
    channels: Literal[1, 3] = 3
    image_size: int = Field(ge=1, le=16384)  # side in pixels, typical


@dataclass(frozen=True)
class TrainRecipe:
    """A validated training recipe.

    `also` names other models that train with the same numbers, `model_args` included. `starts_from` is what a recipe
    that trains on must be given as MODEL: "run" is a dense run, a method's slug is a run that this method was applied
    to.
    """

    name: str  # of a preset, else the file's
    title: str
    fit: Mapping[str, Any]  # fields of `FitConfig`
    model: str | None = None
    also: tuple[str, ...] = ()
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    convert: bool = False  # images may be enlarged to the model's size
    starts_from: str | None = None
    distill: Distill | None = None
    target: Target | None = None
    data: MeantFor | None = None
    paper: str = ""
    arxiv: str = ""
    source: str = ""
    notes: str = ""
    unverified: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # what reading the file left out or changed: shown when the recipe is used
    text: str = ""  # the file

    def trains(self, model: object) -> bool:
        """Whether a MODEL is one that the recipe is written for."""
        return self.model is not None and model in (self.model, *self.also)

    def config(self, settings: Mapping[str, Any] | None = None) -> FitConfig:
        """The recipe's `FitConfig` with `settings` over it. Raises `BadInput` that names the field."""
        return FitConfig(**merged(self.fit, settings or {}))


def merged(fit: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `FitConfig`: `settings` win over `fit`; what is given one way (the learning rate, a length)
    replaces the other way."""
    check_fields(settings)
    left_out = {name for given in settings for name in _INSTEAD.get(given, ())}
    return {**{name: value for name, value in fit.items() if name not in left_out}, **settings}


def check_fields(settings: Mapping[str, Any]) -> None:
    """Raise `BadInput` for a name that is no field of `FitConfig`."""
    known = {f.name for f in fields(FitConfig)}
    for key in settings:
        if key not in known:
            raise BadInput(f"training has no setting {key!r}: {nearest(key, known)}")
