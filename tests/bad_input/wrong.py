"""What a wrong call is: a row of the tables, for the Python API (`Case`) or for the command line (`Cli`)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput

TINY = ("depth=1", "embed_dim=12", "num_heads=1")  # constructor arguments: milliseconds
NAME = "vit_tiny_patch16_224"


@dataclass(frozen=True)
class Case:
    """A call of the Python API from the folder of `World`, and the error that it must give."""

    name: str
    call: Callable[[], Any]
    says: tuple[str, ...]  # regular expressions: the argument, what was given, what is accepted
    error: type[Exception] = BadInput


@dataclass(frozen=True)
class Cli:
    """A command line (without the program's name), its exit code, and what stderr must say."""

    name: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2


def tiny(*more: str) -> tuple[str, ...]:
    """`--model-arg` for a tiny model; a pair in `more` replaces the one of its name."""
    keys = {pair.partition("=")[0] for pair in more}
    pairs = (*(p for p in TINY if p.partition("=")[0] not in keys), *more)
    return tuple(word for pair in pairs for word in ("--model-arg", pair))


def plain(text: str) -> str:
    """Text without the box that usage errors stand in, and with single spaces."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def missing(says: tuple[str, ...], text: str) -> list[str]:
    return [phrase for phrase in says if not re.search(phrase, plain(text))]


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every path below a folder: files by size and time of change, links by where they lead."""
    found: dict[str, tuple[Any, ...]] = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(above, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            where = path.removeprefix(f"{folder}/")
            if kind == stat.S_IFLNK:
                found[where] = ("link", os.readlink(path))
            elif kind == stat.S_IFDIR:
                found[where] = ("folder",)
            else:
                found[where] = ("file", status.st_size, status.st_mtime_ns)
    return found
