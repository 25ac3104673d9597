"""The one table of methods, `papers.toml`: what README, `leanvit methods` and the registry read. Light to import."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from leanvit.errors import unknown


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@cache
def papers() -> dict[str, Paper]:
    """All methods by slug, in the order of the table."""
    rows = tomllib.loads(files("leanvit").joinpath("papers.toml").read_text(encoding="utf-8"))["method"]
    return {row["slug"]: Paper(**row) for row in rows}


def paper(slug: str) -> Paper:
    """One method's row. Raises `BadInput` with the nearest names."""
    if slug not in papers():
        raise unknown("method", slug, papers())
    return papers()[slug]
