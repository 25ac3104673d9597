"""Run folders: where they go, that nothing is replaced unasked, and the record of the commands that made them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput, CheckpointError, is_whole
from leanvit.files import write_atomic
from leanvit.recipe.steps import ABOUT
from leanvit.recipe.store import JSON_NAME
from leanvit.training.checkpoint import STATE
from leanvit.verbs.clearing import (
    COMMANDS,
    EARLIER_LOG,
    TRAINING_LOG,
    only_leftovers,
    was_begun,
)
from leanvit.verbs.locking import refuse_if_held

RUNS = Path("runs")
_PACKAGES = ("torch", "timm", "openvino", "onnxruntime")


def new_folder(
    out: str | Path | None,
    name: str,
    *,
    overwrite: bool = False,
    holds: Sequence[str | Path] = (JSON_NAME, STATE, ABOUT),
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of a new run: `out`, or the first free `runs/NAME`, `runs/NAME-2`, ... Nothing is made yet.

    Args:
        holds: files of which a folder must hold one to be replaced: `overwrite` is for what leanvit made, and for what
            a kill left of that. What a kill left before anything was made is in nobody's way (`say` says so).

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
        say(f"--out {path} holds what a process that was killed left: it is cleared away")
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


def require_whole(name: str, value: object, *, least: int, most: float = math.inf) -> None:
    """Raise `BadInput` unless the value is a whole number within bounds."""
    if not is_whole(value, least=least, most=most):
        accepted = f"a whole number, {least} or more" if most == math.inf else f"a whole number, {least} to {most}"
        raise BadInput(f"{name} is {value!r}; accepted: {accepted}")


def training_logs(folder: Path) -> list[Path]:
    """The logs of a run's trainings, oldest first."""
    earlier = (folder / EARLIER_LOG.format(number) for number in range(1, 1000))
    return [*takewhile(Path.is_file, earlier), *(p for p in [folder / TRAINING_LOG] if p.is_file())]


def trained_on_labels(folder: Path) -> bool:
    """Whether a run's last training was scored as multi-label data are (mAP), or its measurement was of such data."""
    for log in reversed(training_logs(folder)):
        rows = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in rows if '"map":' in line or '"top1":' in line]
        if found:
            return '"map":' in found[-1]
    measured = folder / "measure.json"
    return (
        measured.is_file() and re.search(r'"multi_label":\s*true', measured.read_text("utf-8", "replace")) is not None
    )


def keep_logs(source: Path | None, target: Path) -> None:
    """Copy the training logs of the run that `target` was trained on from."""
    if source is None or source.resolve() == target.resolve():
        return
    for number, log in enumerate(training_logs(source), start=1):
        write_atomic(target / EARLIER_LOG.format(number), log.read_bytes())


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


@dataclass(frozen=True)
class Command:
    """One verb that ran: what was typed, when (UTC), how long it took, with what."""

    verb: str
    command: str
    at: str
    seconds: float
    versions: dict[str, str]
    wrote: str = ""  # file or folder, relative to the run


class Stopwatch:
    """Times one verb, and adds it to the record of a run folder."""

    def __init__(self, verb: str, command: str) -> None:
        self.verb, self.command = verb, command
        self.at = datetime.now(UTC).isoformat(timespec="seconds")
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    def record(self, folder: Path, *, wrote: str = "", before: tuple[Command, ...] = ()) -> None:
        """Append to the folder's record; `before`: the commands that made what this verb started from."""
        done = Command(self.verb, self.command, self.at, round(self.seconds, 2), _versions(), wrote)
        path = folder / COMMANDS
        old = path.read_bytes() if path.is_file() else b""
        lines = [json.dumps(asdict(c)) for c in (*before, done)]
        write_atomic(path, old + "".join(f"{line}\n" for line in lines).encode())


def commands_of(folder: Path) -> tuple[Command, ...]:
    """The record of a run folder, oldest first; empty if there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / COMMANDS
    if not path.is_file():
        return ()
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return tuple(Command(**{key: _of_kind(row, key) for key in Command.__dataclass_fields__}) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a record of commands: {error}") from error


def _of_kind(row: dict[str, Any], key: str) -> Any:
    kinds = {"seconds": (int, float), "versions": (dict,)}.get(key, (str,))
    if not isinstance(row[key], kinds):
        raise TypeError(f"{key} is {row[key]!r}")
    return row[key]


def _versions() -> dict[str, str]:
    from leanvit import __version__

    found = {"leanvit": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
