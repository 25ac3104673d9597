"""What the structure of a plan may hold: a pydantic model for each method, checked before anything is built.

A method names its model by the class variable `structure_model`. Keys, containers and kinds of values are as it says;
NaN, True for 1 and numbers that come twice are refused. What depends on the model is the method's own to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from leanvit.errors import BadInput
from leanvit.files import strict_message

T = TypeVar("T")


class StructureModel(BaseModel):
    """An object of a structure, with exactly these keys and kinds of values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class BlockRow(StructureModel):
    """What a method does in one block."""

    block: Annotated[int, Field(ge=0)]


Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _rising(values: list[T]) -> list[T]:
    places = [value.block if isinstance(value, BlockRow) else value for value in values]
    for before, after in pairwise(places):
        if before >= after:  # type: ignore[operator]
            raise ValueError(f"{after} comes after {before}; accepted: each once, in ascending order")
    return values


Rising = AfterValidator(_rising)  # of a list of numbers, or of rows by block


def distinct(names: Sequence[Any], what: str) -> None:
    """Raise `ValueError`, for a validator, where one comes twice."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{what} {twice!r} comes twice")


def check_structure(m: Any, structure: Mapping[str, Any]) -> None:
    """Raise `BadInput`, naming plan and key, unless a structure is as the method's `structure_model` says."""
    model = getattr(m, "structure_model", None)
    if model is None:
        return
    try:
        model.model_validate(_listed(dict(structure)))
    except ValidationError as error:
        raise BadInput(f"the structure of plan {m.slug!r} does not fit: {strict_message(error, model)}") from error


def _listed(value: Any) -> Any:
    """Tuples as lists: as JSON has them."""
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, tuple | list) else value
