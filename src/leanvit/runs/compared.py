"""The folder of `leanvit compare`: what is compared, a run folder for each method, and what came out.

about.json       what is compared (sealed); written first
baseline/        the model that methods were applied to, with the measurement of all
NAME/            a method's run, with its `standing.json`; NAME-int8/: the same, rounded
compare.json     the result (`SideBySide`)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from leanvit.data.identity import changes
from leanvit.errors import BadInput, CheckpointError
from leanvit.files import Sealed, read_sealed, read_strict, sealed_text, write_atomic
from leanvit.measure import Change, Interval

ABOUT = "about.json"  # what is compared (sealed): written first, compared when it is resumed
METHOD_RESULT = "standing.json"  # of each method that is through, in its run folder
COMPARED = "compare.json"
BASELINE = "baseline"  # the folder of the model that methods were applied to
INT8 = "int8"  # what a rounded model's name ends with
FORMAT = 1
ERROR = "-error.txt"  # behind the name of what was left out: its traceback
_KIND = "leanvit-comparison"
_NEW = ("weights", "images")  # of what is compared when it is resumed: 0.1 did not write it down


@dataclass(frozen=True)
class MethodResult:
    """One method, set to the share of MACs."""

    name: str  # of its row, and of its run folder
    method: str  # slug
    knobs: dict[str, Any]
    off_the_shelf_percent: Interval  # before the recovery, what the changes are of: in percent, or its metric's unit
    off_the_shelf_change: Change | None  # against the baseline, in points, or that unit
    learns: bool  # whether the method trains by itself: off the shelf it has seen images already
    recovered: bool  # whether the recovery followed
    seconds: float  # that applying, training and recovering took

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def save(self, folder: Path) -> None:
        """Save it in the method's run folder, which marks the method as done."""
        write_atomic(folder / METHOD_RESULT, json.dumps(asdict(self), indent=1, allow_nan=False).encode())

    @classmethod
    def read(cls, folder: Path) -> MethodResult | None:
        """That of a run folder; None where the method is not through. Raises `CheckpointError` if it is damaged."""
        file = folder / METHOD_RESULT
        return read_strict(cls, file.read_bytes(), f"{file} is damaged, remove its folder") if file.is_file() else None


@dataclass(frozen=True)
class SideBySide:
    """Everything that was compared; accuracies after the recovery and speeds are in the baseline's `measure.json`."""

    model: str
    data: str
    macs: float  # the requested share
    recovery: dict[str, Any] | None
    seed: int
    standings: tuple[MethodResult, ...]
    left_out: dict[str, str]  # method or row -> why
    measurement: str  # file in the baseline's folder
    format: int = FORMAT

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal one back."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> SideBySide:
        """Read `to_json`'s text, strictly. Raises `CheckpointError`."""
        found = read_strict(cls, text, "not a comparison")
        if found.format != FORMAT:
            raise CheckpointError(f"comparison of format {found.format}; this leanvit reads format {FORMAT}")
        if any(Path(one.name).name != one.name for one in found.standings):
            raise CheckpointError("not a comparison: a name leads out of the folder")
        return found

    @classmethod
    def read(cls, folder: Path) -> SideBySide:
        """That of a folder. Raises `CheckpointError` naming the file."""
        try:
            return cls.from_json((folder / COMPARED).read_bytes())
        except CheckpointError as error:
            raise CheckpointError(f"{folder / COMPARED}: {error}") from None

    def folders(self, folder: Path) -> list[Path]:
        """The run folders in it: the baseline, then each method, and what of them was rounded to int8."""
        names = [BASELINE, *(one.name for one in self.standings)]
        rounded = [f"{name}-{INT8}" for name in names]
        return [folder / name for name in (*names, *rounded) if (folder / name).is_dir()]


@dataclass(frozen=True)
class MethodComparison:
    """A result and the folder that it was read from."""

    folder: Path
    result: SideBySide

    @property
    def baseline(self) -> Path:
        return self.folder / BASELINE


class _AboutFile(Sealed):
    about: dict[str, Any]


def clear_comparison(folder: Path) -> None:
    """Remove what the old comparison made, and nothing else; its result first, what it was of last."""
    if not (folder / ABOUT).is_file():
        return
    for name in (COMPARED, "report.html"):
        (folder / name).unlink(missing_ok=True)
    names = [BASELINE, *read_about(folder)["methods"]]
    for name in (*names, *(f"{name}-{INT8}" for name in names)):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / f"{name}{ERROR}").unlink(missing_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)


def read_about(folder: Path) -> dict[str, Any]:
    """What a comparison is of. Raises `CheckpointError`."""
    changed = "Begin again in another folder."
    return read_sealed(folder / ABOUT, _AboutFile, kind=_KIND, newest=1, changed=changed).about


def begin_comparison(folder: Path, request: dict[str, Any], *, resume: bool) -> None:
    """Write down what is compared, or make sure that it is the same."""
    file, request = folder / ABOUT, json.loads(json.dumps(request))
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, sealed_text({"kind": _KIND, "format": 1, "about": request}))
        return
    was = {"class_names": "by-name", **read_about(folder)}
    for key in dict.fromkeys([*was, *request]):
        if (key in _NEW and key not in was) or key == "images":  # an older version did not write it down
            continue
        if key == "weights" and was[key] != request[key]:
            raise BadInput(f"--resume: the weights of {request['model']} changed; accepted: the same")
        if was.get(key) != request.get(key):
            raise BadInput(f"--resume: {key} was {was.get(key)!r} and is {request.get(key)!r}; accepted: the same")
    before, now = was.get("images", {}), request["images"]
    changed = [text for split in now for text in changes(before.get(split), now[split])]
    if changed:
        raise BadInput(f"--resume: the comparison in {folder} is of other data: {'; '.join(changed)}")
