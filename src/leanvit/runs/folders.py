"""Where new folders and files go, and that nothing is replaced unasked."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from leanvit.errors import BadInput
from leanvit.recipe.steps import ABOUT
from leanvit.recipe.store import JSON_NAME
from leanvit.runs.clearing import only_leftovers, was_begun
from leanvit.runs.locking import refuse_if_held
from leanvit.training.checkpoint import STATE

RUNS = Path("runs")


def new_folder(
    out: str | Path | None,
    name: str,
    *,
    overwrite: bool = False,
    holds: Sequence[str | Path] = (JSON_NAME, STATE, ABOUT),
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of a new run: `out`, or the first free `runs/NAME`, `runs/NAME-2`, ... Nothing is made yet.

    Args:
        holds: files of which a folder must hold one to be replaced: `overwrite` is for what leanvit made, and for what
            a kill left of that. What a kill left before anything was made is in nobody's way (`log` is called with the
            reason).

    Raises:
        BadInput: `out` is a file, cannot be made or written, another process writes into it, or it holds something (and
            `overwrite` is off, or it is not leanvit's).
    """
    if out is None:
        return require_writable(next(path for path in _numbered(RUNS / _plain(name)) if not path.exists()))
    path = require_writable(out)
    if path.exists() and not path.is_dir():
        raise BadInput(f"--out {path} is a file; accepted: a folder, or a path where one can be made")
    if not path.is_dir() or not any(path.iterdir()):
        return path
    refuse_if_held(path)
    if not any((path / file).is_file() for file in holds) and only_leftovers(path):
        log(f"--out {path} holds what a process that was killed left: it is cleared away")
        return path
    ours = any((path / file).is_file() for file in holds) or was_begun(path)
    if overwrite and not ours:
        raise BadInput(f"--out {path} holds something that is not a run: --overwrite replaces runs; give another path")
    if not overwrite and (path / STATE).is_file() and not (path / JSON_NAME).is_file():
        raise BadInput(f"--out {path} holds an unfinished training: give --resume, another path, or --overwrite")
    if not overwrite and (path / ABOUT).is_file():
        raise BadInput(f"--out {path} holds an unfinished compression: give --resume, another path, or --overwrite")
    if not overwrite:
        way = "another path, or --overwrite" if ours else "another path (--overwrite replaces runs, it holds none)"
        raise BadInput(f"--out {path} is not empty: give {way}")
    return path


def require_writable(out: str | Path, *, what: str = "--out") -> Path:
    """The path, if something can be written there: asked before any work, and nothing is made. Raises `BadInput`."""
    if not str(out):
        raise BadInput(f"{what} is {str(out)!r}; accepted: the path of a new file or folder")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{what} {str(out)!r} is not UTF-8 text: runtimes cannot open such a path") from None
    path = Path(out)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a new path; what it is below, is seen next
            path.lstat()
        found = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
        found.stat()
    except (OSError, ValueError) as error:
        raise BadInput(f"{what} {str(out)!r} cannot be made: {getattr(error, 'strerror', None) or error}") from None
    if found != path and not found.is_dir():
        raise BadInput(f"{what} {path} cannot be made: {found} is a file")
    if not os.access(found, os.W_OK | (os.X_OK if found.is_dir() else 0)):
        raise BadInput(f"{what} {path} cannot be written: {found} is read-only")
    return path


def new_file(out: str | Path | None, default: Path | None, *, overwrite: bool = False) -> Path:
    """The path of a new file: `out`, or the first free of `default`, `default-2`, ... Raises `BadInput` likewise."""
    if out is None:
        if default is None:
            raise BadInput("--out is needed here: there is no run folder to write into")
        try:
            require_writable(default.parent, what="the run folder")
        except BadInput as error:
            raise BadInput(f"{error}: give --out") from None
        return default if overwrite else next(path for path in _numbered(default) if not path.exists())
    path = require_writable(out)
    if path.is_dir():
        raise BadInput(f"--out {path} is a folder; accepted: a file")
    if path.exists() and not overwrite:
        raise BadInput(f"--out {path} exists: give another path, or --overwrite")
    return path


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in range(2, 10_000):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
    raise BadInput(f"{path} and thousands after it exist: give --out")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "run"
