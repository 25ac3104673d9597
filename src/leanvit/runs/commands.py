"""The commands that made a run: `commands.jsonl`, a line each, oldest first."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leanvit import __version__
from leanvit.errors import CheckpointError
from leanvit.files import write_atomic
from leanvit.runs.layout import COMMANDS

_PACKAGES = ("torch", "timm", "openvino", "onnxruntime")


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
    found = {"leanvit": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
