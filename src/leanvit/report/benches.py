"""Comparisons sorted by what may be compared: the data first, then the conditions in which speed was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leanvit.report.pareto import Point
from leanvit.report.series import Series
from leanvit.runs.record import Measurement, RunRecord
from leanvit.tasks import Metric

Measured = tuple[RunRecord, Measurement]


@dataclass(frozen=True)
class Bench:
    """Measurements that share images, metric, input size, batch and machine: their points may stand in one plot."""

    metric: Metric
    input_size: tuple[int, ...]
    batch: int
    machine: str
    measured: tuple[Measured, ...]

    def points(self, series: Series) -> list[Point]:
        """A point for each row; a run's name is added where two measurements name different models alike."""
        several = len(self.measured) > 1
        found: dict[tuple[str, str], Point] = {}
        for record, measurement in self.measured:
            rows = measurement.comparison.rows
            for row in rows:
                key = series.of_row(record, rows, row.model)
                name = f"{row.model} [{record.folder.name}]" if several else row.model
                found[name, f"{measurement.comparison.runtime_label(row)} {measurement.file}"] = Point(
                    measurement.comparison, row, name, key
                )
        return list(found.values())


@dataclass(frozen=True)
class DataGroup:
    """Everything measured on the same images."""

    data: str
    images: int
    fingerprint: str  # of keys and labels; empty where they were not kept
    benches: tuple[Bench, ...]

    @property
    def measured(self) -> tuple[Measured, ...]:
        return tuple(one for bench in self.benches for one in bench.measured)


def by_data(records: Sequence[RunRecord]) -> list[DataGroup]:
    """Groups in the order in which the runs name their data. Images that are not known to be the same stay apart."""
    groups: dict[tuple[str, int, str], list[Measured]] = {}
    for record in records:
        for measurement in record.measurements:
            groups.setdefault(_data_key(record, measurement), []).append((record, measurement))
    return [DataGroup(*key, _benches(measured)) for key, measured in groups.items()]


def _data_key(record: RunRecord, measurement: Measurement) -> tuple[str, int, str]:
    fingerprint = measurement.evidence.fingerprint if measurement.evidence else ""
    return record.data_of(measurement), measurement.comparison.images, fingerprint


def _benches(measured: Sequence[Measured]) -> tuple[Bench, ...]:
    found: dict[tuple[Metric, tuple[int, ...], int, str], list[Measured]] = {}
    for one in measured:
        comparison = one[1].comparison
        key = (
            comparison.metric,
            tuple(comparison.input_size),
            comparison.latency_batch,
            _machine(comparison.environment),
        )
        found.setdefault(key, []).append(one)
    return tuple(Bench(*key, _newest(members)) for key, members in found.items())


def _newest(members: Sequence[Measured]) -> tuple[Measured, ...]:
    """Without what a run measured again: the same models and baseline, and every row. The newest names the earlier."""
    shown: list[Measured] = []
    for record, measurement in members:
        earlier: list[str] = []
        for other in [one for one in shown if one[0] is record and _replaces(measurement, one[1])]:
            shown.remove(other)
            earlier += [*other[1].earlier, other[1].file]
        shown.append((record, replace(measurement, earlier=tuple(earlier))))
    return tuple(shown)


def _replaces(newer: Measurement, older: Measurement) -> bool:
    new, old = newer.comparison, older.comparison
    rows = ({row.name for row in old.rows}, {row.name for row in new.rows})
    models = ({row.model for row in old.rows}, {row.model for row in new.rows})
    return new.baseline == old.baseline and models[0] == models[1] and rows[0] <= rows[1]


def _machine(environment: dict[str, object]) -> str:
    cpu, threads = environment.get("cpu", "unknown machine"), environment.get("threads")
    return f"{cpu}, {threads} {'thread' if threads == 1 else 'threads'}" if threads else str(cpu)
