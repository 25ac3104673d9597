"""Saving a compressed run: its history, what was requested of each method and achieved, and its training's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanvit.files import write_atomic
from leanvit.recipe.steps import last_log
from leanvit.recipe.store import save
from leanvit.recipe.text import text_of
from leanvit.recipe.training_methods import as_rows
from leanvit.runs.layout import TRAINING_LOG

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel
    from leanvit.data import Preprocess

RECOVERED = "recovered_with"  # in a run's info: the ways to train of its recoveries, oldest first
_OF_ITS_OWN = ("made_with", "steps", "frozen")  # of a run's info: not handed on to what is made from it


@dataclass(frozen=True)
class TargetRow:
    """What was requested of one method, and what the saved model has."""

    method: str
    asked: dict[str, Any]  # the knobs
    achieved: dict[str, Any]
    missed: tuple[str, ...] = ()  # in words: targets missed beyond the method's tolerance
    share: dict[str, float] = field(default_factory=dict)  # of the model as it met it, and in all

    def to_json(self) -> dict[str, Any]:
        payload: dict[str, Any] = {"method": self.method, "asked": self.asked, "achieved": self.achieved}
        payload |= {"share": self.share} if self.share else {}
        return {**payload, "missed": list(self.missed)} if self.missed else payload

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TargetRow:
        """Read `to_json`'s row; what has another shape in a file from elsewhere is left out."""
        knobs, achieved, share = (_dict(row.get(key)) for key in ("asked", "achieved", "share"))
        return cls(
            method=str(row.get("method", "")),
            asked=knobs,
            achieved=achieved,
            missed=tuple(str(miss) for miss in _list(row.get("missed"))),
            share={k: v for k, v in share.items() if isinstance(v, float) and 0 <= v < 1e6},
        )


def save_compressed(
    lean: OpenModel,
    folder: Path,
    asked: Sequence[TargetRow],
    *,
    preprocess: Preprocess,
    info: Mapping[str, Any],
    data: str = "",
    recovered_with: Sequence[Any] = (),
    overwrite: bool = False,
) -> None:
    """Save what a compression made of a run, with the log of the last training among the steps in the folder.

    Args:
        asked: a row for each method of this compression, behind those that `info` has.
        info: of the run that it was made from.
        data: spec that methods learned from or that was measured; "": what `info` says.
        recovered_with: the ways to train of its recovery, recorded behind those that `info` has.

    Raises as `leanvit.save` does.
    """
    kept = {key: value for key, value in info.items() if key not in _OF_ITS_OWN}
    kept["asked"] = [*_list(info.get("asked")), *(row.to_json() for row in asked)]
    if recovered_with:
        kept[RECOVERED] = [*_list(info.get(RECOVERED)), *as_rows(recovered_with)]
    save(lean, folder, preprocess=preprocess, info=kept | ({"data": data} if data else {}), overwrite=overwrite)
    if log := last_log(folder):
        write_atomic(folder / TRAINING_LOG, log)


def asked_rows(info: Mapping[str, Any]) -> tuple[TargetRow, ...]:
    """The rows in a run's info, oldest first."""
    return tuple(TargetRow.from_json(row) for row in _list(info.get("asked")) if isinstance(row, dict))


def ways_of(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The ways to train that a run was made with, as text, oldest first: those of trainings, then of recoveries.

    What has another shape in a file from elsewhere is left out.
    """
    stages = [*(one for one in _list(info.get("stages")) if isinstance(one, dict)), info]
    rows = [row for key in ("methods", RECOVERED) for stage in stages for row in _list(stage.get(key))]
    return tuple(
        text_of(str(row.get("slug", "")), {str(k): v for k, v in _dict(row.get("knobs")).items()})
        for row in rows
        if isinstance(row, dict)
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
