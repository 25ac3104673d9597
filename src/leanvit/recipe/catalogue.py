"""References: small trained models that come with the package, by name and offline. `leanvit/NAME` means one.

Each is a run folder under `leanvit/references/` with a `reference.toml`: what it is, how it was trained, what it was
measured to give. Light to import.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import leanvit
from leanvit.errors import BadInput, CheckpointError, nearest, unknown

PREFIX = "leanvit/"  # no timm name holds a slash
FOLDER = Path(leanvit.__file__).parent / "references"
RECORD = "reference.toml"
RUN = "leanvit.json"
_OLD_NAMES = {"accuracy_percent": "score", "stored_percent": "stored_score"}  # of older records
MOST_BYTES = 12_000_000  # of one reference, all files: every installation carries them


@dataclass(frozen=True, kw_only=True)
class Record:
    """`reference.toml`: what a published model is. Figures are measured when it is published, never typed in."""

    title: str
    model: str  # timm name
    methods: tuple[str, ...]  # slugs, in order; () is dense
    input_size: tuple[int, int, int]  # (C, H, W)
    classes: int
    parameters: int
    macs: int  # multiply-accumulates of one image
    data: str  # name of the data set
    split: str  # as the data set says, with its note
    images: int  # measured
    metric: str  # what `score` and `stored_score` are: "top-1", "mAP", ...
    unit: str = "%"  # of both
    score: tuple[float, float, float]  # before the parameters were rounded: value, 95 % interval
    stored_as: str  # "": not rounded
    stored_score: tuple[float, float, float]  # of what is in the folder
    agreement_percent: float | None = None  # of answers that are alike; None: the task does not say, or too many
    measured_on: str  # CPU
    presets: tuple[str, ...]  # of `leanvit train --recipe`, a stage each; () where options alone were given
    commands: tuple[str, ...]  # that made the run, oldest first
    epochs: int  # of all stages
    training_seconds: float
    trained_on: str
    seed: int
    date: str  # of the last command, or of the publication: YYYY-MM-DD
    versions: str
    licence: str
    data_source: str  # where the data are from, and under which terms
    weights_sha256: str  # binds the record to the weights

    def to_toml(self) -> str:
        """The record as the text of `reference.toml`; TOML has no null."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in asdict(self).items() if value is not None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def figure(self, score: tuple[float, float, float]) -> str:
        """A score in words: "top-1 75.11 %"."""
        return f"{self.metric} {self.number(score[0])} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        """A figure of the metric: percent with two decimals, others with four digits in all."""
        return f"{value:.2f}" if self.unit == "%" else f"{value:.4g}"


@dataclass(frozen=True)
class Reference:
    """A reference of the package."""

    name: str
    folder: Path
    record: Record

    @property
    def spec(self) -> str:
        """What to give as MODEL: `leanvit/NAME`."""
        return f"{PREFIX}{self.name}"

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def references() -> list[Reference]:
    """The small trained models that come with the package, by name; `leanvit.load(reference.spec)` gives one.

    Raises `CheckpointError` for a damaged record.
    """
    return [Reference(name, FOLDER / name, read_record(FOLDER / name)) for name in _names()]


def reference(name: str) -> Reference:
    """One reference, with or without the prefix. Raises `BadInput` with the nearest names."""
    short = name.removeprefix(PREFIX)
    if short not in _names():
        raise _unknown(name)
    return Reference(short, FOLDER / short, read_record(FOLDER / short))


def reference_name(spec: str | Path) -> str | None:
    """The name in `leanvit/NAME`; None for everything else, a `Path` among it: that is always a place on disk.

    Raises:
        BadInput: there is no such reference, or a folder here has the same path: nothing is guessed.
    """
    if not isinstance(spec, str) or not spec.startswith(PREFIX):
        return None
    name = spec.removeprefix(PREFIX)
    here = os.path.exists(spec)  # False for what no path can be, too
    if name in _names():
        if here:
            raise BadInput(f"{spec} is a reference of leanvit and a folder here: give ./{spec} for the folder")
        return name
    if here or not re.fullmatch(r"[\w.-]+", name):
        return None
    raise _unknown(spec)


def run_folder(spec: str | Path) -> Path:
    """The run folder that a path or `leanvit/NAME` means. Raises as `reference_name` does."""
    name = reference_name(spec)
    return Path(spec) if name is None else FOLDER / name


def read_record(folder: Path) -> Record:
    """The record of a published run. Raises `CheckpointError` if it is missing or damaged."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / RECORD
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
        known = [field.name for field in fields(Record)]
        for key in content.keys() - set(known):
            raise CheckpointError(f"{path}: unknown key {key!r}: {nearest(key, known)}")
        return TypeAdapter(Record).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{path} is not a record of a reference: {where}: {problem['msg']}") from error
    except (OSError, ValueError) as error:  # not TOML, not UTF-8
        raise CheckpointError(f"{path} is not a record of a reference: {error}") from error


def _names() -> list[str]:
    """Folders that hold a run."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{RUN}"))


def _unknown(name: str) -> BadInput:
    known = [f"{PREFIX}{known}" for known in _names()]
    return unknown("reference", name, known) if known else BadInput(f"{name}: this leanvit comes without references")


def _toml(value: Any) -> str:
    """JSON's text, numbers and lists are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
