"""Run folders: where they go, that nothing is replaced unasked, and the record of the commands that made them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput, CheckpointError

RUNS = Path("runs")
COMMANDS = "commands.jsonl"
TRAINING_LOG = "train.jsonl"
_LEFT = (
    "measure*.json",
    "predictions*.safetensors",
    "disagreements*.json",
    "tokens.json",
    COMMANDS,
    TRAINING_LOG,
    "training",
    "artefacts",
    "report*.html",
)
_PACKAGES = ("torch", "timm", "openvino", "onnxruntime")


def new_folder(out: str | Path | None, name: str, *, overwrite: bool = False) -> Path:
    """The folder of a new run: `out`, or the first free `runs/NAME`, `runs/NAME-2`, ... Nothing is made yet.

    Raises `BadInput` if `out` is a file, or a folder that holds something and `overwrite` is off.
    """
    if out is None:
        return next(path for path in _numbered(RUNS / _plain(name)) if not path.exists())
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; accepted: a folder, or a path where one can be made")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise BadInput(f"--out {out} is not empty: give another path, or --overwrite")
    return out


def clear_run(folder: Path, *, overwrite: bool) -> None:
    """Before a run is replaced: remove what verbs left of the old one, and nothing else."""
    if not overwrite or not folder.is_dir():
        return
    for name in _LEFT:
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def new_file(out: str | Path | None, default: Path | None, *, overwrite: bool = False) -> Path:
    """The path of a new file: `out`, or the first free of `default`, `default-2`, ... Raises `BadInput` likewise."""
    if out is None:
        if default is None:
            raise BadInput("--out is needed here: there is no run folder to write into")
        return default if overwrite else next(path for path in _numbered(default) if not path.exists())
    out = Path(out)
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder; accepted: a file")
    if out.exists() and not overwrite:
        raise BadInput(f"--out {out} exists: give another path, or --overwrite")
    return out


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
        lines = [json.dumps(asdict(c)) for c in (*before, done)]
        with (folder / COMMANDS).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


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
