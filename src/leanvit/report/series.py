"""Which rows, runs and curves of a page are the same model: they have the same colour wherever they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leanvit.measure import Row
from leanvit.runs.record import RunRecord

Signature = tuple[int | None, int | None]  # parameters and MACs


class Series:
    """The name under which a model has its colour: that of the run that holds it, where one of the page does.

    A row that is named as another measurement's row, but has other parameters or MACs, is another model.
    """

    def __init__(self, records: Sequence[RunRecord], method_comparisons: Sequence[Path] = ()) -> None:
        self._own = {
            m.folder: m.folder.name if m.folder.parent in method_comparisons else run_name(m, records) for m in records
        }
        self._runs: dict[str, list[RunRecord]] = {}
        self._seen: dict[str, dict[Path, Signature]] = {}
        for record in records:
            self._runs.setdefault(record.name, []).append(record)
            for measurement in record.measurements:
                for row in measurement.comparison.rows:
                    if row.params is not None or row.macs_per_image is not None:
                        known = self._seen.setdefault(row.model, {})
                        known.setdefault(record.folder, (row.params, row.macs_per_image))

    def of_run(self, record: RunRecord) -> str:
        return self._own[record.folder]

    def of_row(self, record: RunRecord, rows: Sequence[Row], model: str) -> str:
        """Of a model in a measurement that lies in a run's folder."""
        if model in self._own.values():
            return model
        if model == record.name or _is_the_end(rows, model):
            return self.of_run(record)
        runs, own = self._runs.get(model, []), self._seen.get(model, {})
        if len(runs) == 1 and self._alike(model, record.folder, runs[0].folder):
            return self.of_run(runs[0])
        alone = not runs and len(set(own.values())) <= 1
        return model if alone else f"{model} [{record.folder.name}]"

    def _alike(self, model: str, one: Path, other: Path) -> bool:
        seen = self._seen.get(model, {})
        return one not in seen or other not in seen or seen[one] == seen[other]


def _is_the_end(rows: Sequence[Row], model: str) -> bool:
    """Whether a row is the last step of a compression (`+ int8`): the run itself."""
    return model.startswith("+ ") and model == rows[-1].model


def run_name(record: RunRecord, records: Sequence[RunRecord]) -> str:
    """The model's name; with its folder where several runs share it."""
    alike = [m.folder for m in records if m.name == record.name]
    if len(alike) == 1:
        return record.name
    apart = len({folder.name for folder in alike}) == len(alike)
    return f"{record.name} [{record.folder.name if apart else record.folder}]"
