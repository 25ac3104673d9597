"""The one table of papers, `papers.toml`: what README, `leanvit methods` and the registry read. Light to import.

A row is a method, or an architecture (kind "build"), whose models have names of their own
(`models/registry.py`). Methods from
outside the package get a row when their module registers them; they are not in the table of the package.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from leanvit.errors import BadInput, unknown

ARCHITECTURE = "build"  # the kind of rows that are models


@dataclass(frozen=True)
class Paper:
    """One row of the table."""

    slug: str
    title: str
    kind: str  # what it does to a model: compress, train, design, ...
    family: str
    module: str
    summary: str
    arxiv: str = ""
    venue: str = ""
    published: str = ""  # the paper's headline
    measured: str = ""  # ours
    command: str = ""  # that made it
    machine: str = ""

    @property
    def is_method(self) -> bool:
        """Whether it is applied to a model; else it is an architecture."""
        return self.kind != ARCHITECTURE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@cache
def papers() -> dict[str, Paper]:
    """leanvit's own methods and architectures by slug, in the order of the table."""
    rows = tomllib.loads(files("leanvit").joinpath("papers.toml").read_text(encoding="utf-8"))["method"]
    return {row["slug"]: Paper(**row) for row in rows}


def own_methods() -> list[str]:
    """The slugs of leanvit's own methods, in the order of the table."""
    return [slug for slug, row in papers().items() if row.is_method]


def paper(slug: str) -> Paper:
    """One method's row, own or registered. Raises `BadInput` with the nearest names."""
    if slug not in known_papers():
        raise unknown("method", slug, known_papers())
    return known_papers()[slug]


_OUTSIDE: dict[str, Paper] = {}


def known_papers() -> dict[str, Paper]:
    """leanvit's own methods and those that were registered from outside, in this order."""
    return {**papers(), **_OUTSIDE}


def add_paper(row: Paper) -> None:
    """The row of a method from outside. Raises `BadInput` if the slug is malformed or belongs to another method."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", row.slug):
        raise BadInput(f"slug is {row.slug!r}; accepted: lower-case letters, digits and _, a letter first")
    owner = known_papers().get(row.slug)
    if owner is not None and owner.module != row.module:
        raise BadInput(f"slug {row.slug!r} belongs to the method of {owner.module}: give {row.module}'s another")
    _OUTSIDE[row.slug] = row
