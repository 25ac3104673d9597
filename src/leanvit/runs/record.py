"""The content of a run folder, read from its files. Files from elsewhere are validated, never trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanvit.cards import known_papers
from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.files import JSON_LIMIT
from leanvit.measure import Comparison
from leanvit.recipe.catalogue import PREFIX
from leanvit.recipe.roots import described
from leanvit.recipe.store import JSON_NAME, RunFile, read_run_file
from leanvit.runs.answer_maps import AnswerMaps
from leanvit.runs.commands import Command, commands_of
from leanvit.runs.disagreements import load_pictures
from leanvit.runs.evidence import Evidence
from leanvit.runs.layout import (
    COMMANDS,
    TOKENS,
    TRAINING_LOG,
    answer_maps_file,
    evidence_file,
    measurement_files,
    pictures_file,
)
from leanvit.runs.logs import Curve, read_curve
from leanvit.runs.saving import TargetRow, asked_rows, ways_of
from leanvit.runs.token_maps import TokenMaps
from leanvit.runs.widths import Widths, read_widths

LONGEST_REASON = 400  # characters of why a file cannot be read
LONGEST_SECONDS = 1e12


@dataclass(frozen=True)
class Measurement:
    """One comparison, where it is from, and what was kept beside it."""

    file: str
    comparison: Comparison
    command: str
    evidence: Evidence | None = None
    pictures: dict[str, str] = field(default_factory=dict)  # by key; base64
    maps: AnswerMaps | None = None  # of a task whose answers are maps
    at: str = ""  # when it was made (ISO 8601, UTC), where the record of commands says so
    earlier: tuple[str, ...] = ()  # files of earlier measurements of the same rows


@dataclass(frozen=True)
class RunRecord:
    """One run folder, as read from its files."""

    folder: Path
    name: str  # "dense", "evit + int8", "leanvit/NAME"
    model: str  # timm name, and the reference that it came from
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    data: str
    asked: tuple[TargetRow, ...]
    commands: tuple[Command, ...]
    measurements: tuple[Measurement, ...]
    tokens: TokenMaps | None
    curve: Curve | None = None
    made_with: dict[str, str] = field(default_factory=dict)
    widths: Widths | None = None  # None: those of the root, or not to be had
    unreadable: tuple[str, ...] = ()  # files that are shown nowhere, each with the reason
    ways: tuple[str, ...] = ()  # to train, that it was made with: `SLUG:KNOB=VALUE`

    def data_of(self, measurement: Measurement) -> str:
        """Spec of the data a comparison was made on; the run's own where the comparison does not say."""
        return measurement.evidence.data if measurement.evidence else self.data


def read_run(folder: Path, *, reference: str = "") -> RunRecord:
    """Read what the verbs left in a run folder. `reference`: its name, where it is one of the package.

    A file beside `leanvit.json` that is damaged, or from a newer leanvit, is left out and named in `unreadable`.

    Raises `BadInput` if there is no run, `CheckpointError` for a damaged `leanvit.json`.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no run folder at {folder}")
    file = read_run_file(folder)
    reader = _Reader(folder)
    commands = reader.read(COMMANDS, _commands, ())
    info = file.info
    origin = f"{PREFIX}{reference}" if reference else str(info.get("reference", ""))
    methods = " + ".join(plan.plan().label for plan in file.plans)
    name, arguments = described(file.root)
    return RunRecord(
        folder=folder,
        name=origin if reference else methods or "dense",
        model=f"{name} ({origin})" if origin else name,
        model_args=arguments,
        classes=tuple(file.classes),
        data=str(info.get("data", "")),
        asked=asked_rows(info),
        commands=commands,
        measurements=_measurements(folder, commands, reader),
        tokens=reader.read(TOKENS, _tokens, None),
        curve=reader.read(TRAINING_LOG, read_curve, None),
        made_with={str(k): str(v) for k, v in _dict(info.get("made_with")).items()},
        widths=reader.read(JSON_NAME, lambda path: _widths(path.parent, file), None),
        unreadable=tuple(reader.unreadable),
        ways=ways_of(info),
    )


class _Reader:
    """Reads what lies in a folder; what cannot be read is listed with the reason, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: list[str] = []

    def read(self, name: str, reader: Callable[[Path], Any], missing: Any) -> Any:
        """What `reader` makes of a file, `missing` where it cannot."""
        try:
            return reader(self.folder / name)
        except (LeanvitError, OSError) as error:
            reason = " ".join(str(error).split())
            reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"
            self.unreadable.append(reason if name in reason else f"{self.folder / name}: {reason}")
            return missing


def _measurements(folder: Path, commands: tuple[Command, ...], reader: _Reader) -> tuple[Measurement, ...]:
    names = (path.name for path in measurement_files(folder))
    found = (reader.read(name, lambda path: _measurement(path, commands, reader), None) for name in names)
    return tuple(one for one in found if one is not None)


def _measurement(path: Path, commands: tuple[Command, ...], reader: _Reader) -> Measurement:
    made = [c for c in commands if c.wrote == path.name]
    if path.stat().st_size > JSON_LIMIT:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; accepted: up to {JSON_LIMIT}")
    content = path.read_bytes()
    try:
        comparison = Comparison.from_json(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    evidence = reader.read(evidence_file(path).name, lambda _: _evidence(path, content, comparison), None)
    pictures = reader.read(pictures_file(path).name, load_pictures, {}) if evidence else {}
    maps = reader.read(answer_maps_file(path).name, lambda file: _answer_maps(file, content, comparison), None)
    command, at = (made[-1].command, made[-1].at) if made else ("", "")
    return Measurement(path.name, comparison, command, evidence, pictures, maps, at)


def _evidence(path: Path, content: bytes, comparison: Comparison) -> Evidence | None:
    """The answers kept beside a comparison; None if there are none, or they are those of one that was replaced."""
    file = evidence_file(path)
    if not file.is_file():
        return None
    evidence = Evidence.load(file)
    if evidence.of != hashlib.sha256(content).hexdigest():
        return None
    missing = [row.name for row in comparison.rows if row.name not in evidence.answers]
    if missing or len(evidence.keys) != comparison.images:
        raise CheckpointError(
            f"{file} does not hold the answers of {path.name}: {missing or 'another number of images'}"
        )
    return evidence


def _answer_maps(file: Path, content: bytes, comparison: Comparison) -> AnswerMaps | None:
    """Those kept beside a comparison; None if there are none, or they are those of one that was replaced."""
    found = AnswerMaps.load(file)
    if found is None or found.of != hashlib.sha256(content).hexdigest():
        return None
    names = {name for one in found.pictures for name in one.answers} | {*found.per_class}
    if unknown := names - {row.name for row in comparison.rows}:
        raise CheckpointError(f"{file} holds answers of {sorted(unknown)}, which were not measured")
    return found


def _commands(path: Path) -> tuple[Command, ...]:
    found = commands_of(path.parent)
    if not all(abs(command.seconds) < LONGEST_SECONDS for command in found):
        raise CheckpointError(f"{path} is not a record of commands: seconds is no time")
    return found


def _tokens(path: Path) -> TokenMaps | None:
    if not path.is_file():
        return None
    if path.stat().st_size > JSON_LIMIT:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; accepted: up to {JSON_LIMIT}")
    try:
        return TokenMaps.from_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _widths(folder: Path, file: RunFile) -> Widths | None:
    """None also where the method of a plan is not at hand: a report needs the run's figures, not its code."""
    if any(plan.slug not in known_papers() for plan in file.plans):
        return None
    try:
        return read_widths(file.history())
    except LeanvitError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
