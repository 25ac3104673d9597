"""What a report is made of, read from run folders. Files from elsewhere are validated, never trusted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.measure import Comparison
from leanvit.recipe.catalogue import PREFIX
from leanvit.recipe.history import Root
from leanvit.recipe.method import Plan
from leanvit.recipe.papers import known_papers
from leanvit.recipe.store import RunFile, read_run_file
from leanvit.report.curves import Curve, read_curve
from leanvit.report.disagreements import load_pictures
from leanvit.report.evidence import Evidence
from leanvit.report.keeping import evidence_file, measurement_number, pictures_file
from leanvit.report.token_maps import TOKENS, TokenMaps
from leanvit.report.widths import Widths, read_widths
from leanvit.verbs.clearing import TRAINING_LOG
from leanvit.verbs.folders import Command, commands_of


@dataclass(frozen=True)
class Measurement:
    """One comparison, where it is from, and what was kept beside it."""

    file: str
    comparison: Comparison
    command: str
    evidence: Evidence | None = None
    pictures: dict[str, str] = field(default_factory=dict)  # by key; base64


@dataclass(frozen=True)
class Material:
    """One run folder."""

    folder: Path
    name: str  # "dense", "evit + int8", "leanvit/NAME"
    model: str  # timm name, and the reference that it came from
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    data: str
    asked: tuple[dict[str, Any], ...]
    commands: tuple[Command, ...]
    measurements: tuple[Measurement, ...]
    tokens: TokenMaps | None
    curve: Curve | None = None
    made_with: dict[str, str] = field(default_factory=dict)
    widths: Widths | None = None  # None: those of the root, or not to be had

    def data_of(self, measurement: Measurement) -> str:
        """Spec of the data a comparison was made on; the run's own where the comparison does not say."""
        return measurement.evidence.data if measurement.evidence else self.data


def read_run(folder: Path, *, reference: str = "") -> Material:
    """Read what the verbs left in a run folder. `reference`: its name, where it is one of the package.

    Raises `BadInput` if there is no run, `CheckpointError` for a file that is damaged or from a newer leanvit.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no run folder at {folder}")
    file = read_run_file(folder)
    commands = commands_of(folder)
    info = file.info
    origin = f"{PREFIX}{reference}" if reference else str(info.get("reference", ""))
    methods = " + ".join(plan.slug for plan in file.plans)
    return Material(
        folder=folder,
        name=origin if reference else methods or "dense",
        model=f"{file.root.name} ({origin})" if origin else file.root.name,
        model_args=dict(file.root.kwargs),
        classes=tuple(file.classes),
        data=str(info.get("data", "")),
        asked=tuple(row for row in _list(info.get("asked")) if isinstance(row, dict)),
        commands=commands,
        measurements=tuple(_measurement(path, commands) for path in _measure_files(folder)),
        tokens=_tokens(folder / TOKENS),
        curve=read_curve(folder / TRAINING_LOG),
        made_with={str(k): str(v) for k, v in _dict(info.get("made_with")).items()},
        widths=_widths(folder, file),
    )


def _measure_files(folder: Path) -> list[Path]:
    """`measure.json`, `measure-2.json`, ... in the order they were made."""
    numbered = [(measurement_number(path.name), path) for path in folder.glob("measure*.json")]
    return [path for _, path in sorted((number, path) for number, path in numbered if number is not None)]


def _measurement(path: Path, commands: tuple[Command, ...]) -> Measurement:
    made = [c.command for c in commands if c.wrote == path.name]
    content = path.read_bytes()
    try:
        comparison = Comparison.from_json(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    evidence = _evidence(path, content, comparison)
    pictures = load_pictures(pictures_file(path)) if evidence else {}
    return Measurement(path.name, comparison, made[-1] if made else "", evidence, pictures)


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


def _tokens(path: Path) -> TokenMaps | None:
    if not path.is_file():
        return None
    try:
        return TokenMaps.from_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _widths(folder: Path, file: RunFile) -> Widths | None:
    """None also where the method of a plan is not at hand: a report needs the run's figures, not its code."""
    plans = [Plan(p.slug, p.knobs, p.structure, p.finished) for p in file.plans]
    if any(plan.slug not in known_papers() for plan in plans):
        return None
    try:
        return read_widths(Root(file.root.name, file.root.kwargs), plans)
    except LeanvitError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
