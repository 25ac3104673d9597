"""Models measured on the same images: a row of figures each, and what is computed over all rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from leanvit.errors import BadInput, unknown
from leanvit.measure.latency import Spread
from leanvit.tasks import Classification
from leanvit.tasks.intervals import Change, Interval
from leanvit.tasks.metric import Metric, metric_of

FORMAT = 2  # of the JSON of a `Comparison`; 1 knew labels of images only


@dataclass(frozen=True)
class Row:
    """One model of a comparison. None: not measurable for this runner (never an estimate), or the baseline itself."""

    name: str
    runtime: str | None
    precision: str | None
    params: int | None
    macs_per_image: int | None
    weights_bytes: int | None  # parameters and buffers in memory
    disk_bytes: int | None
    scores: tuple[Interval, ...]  # one for each of `Rows.metrics`: in percent where its unit is "%", else in its unit
    change_points: Change | None  # of the metric `Rows.changes` against the baseline, paired: in points, or its unit
    agreement_percent: Interval | None  # with the baseline's answers; None also where they have no decisions to share
    latency_ms: Spread | None  # of one batch
    images_per_s: float | None
    speedup_vs_baseline: Spread | None  # time of `Comparison.reference` (in this runtime) / this time
    peak_memory_bytes: int | None  # above the start of one call, weights excluded
    samples_s: tuple[float, ...]  # latency round by round, the same rounds in every row
    notes: tuple[str, ...]
    joules_per_image: Spread | None = None  # counted, idle power included; never an estimate
    energy_source: str = ""  # what was read and what is in it, or "not measurable here: ..."; "": not asked for
    kept_params: int | None = None  # without pruned weights: exact zeros of sparse tensors; None: none are sparse
    kept_macs_per_image: int | None = None  # likewise (`measure.Cost`): `macs_per_image` are those that are executed
    model: str = ""  # what ran: rows of one model in several runtimes share it; by default the name without the runtime

    def __post_init__(self) -> None:
        if not self.model:  # files of 0.1.0 have the runtime in the name alone: "lean (openvino-bf16)"
            own = re.fullmatch(rf"(.+) \(({re.escape(self.runtime)}(?:-\w+)?)\)", self.name) if self.runtime else None
            object.__setattr__(self, "model", own[1] if own else self.name)
            object.__setattr__(self, "runtime", own[2] if own else self.runtime)

    @property
    def score(self) -> Interval:
        """The first of `scores`: what the task judges by."""
        return self.scores[0]


@dataclass(frozen=True)
class RuntimeChange:
    """The same model in another runtime (or at another precision): what that alone gives. No speed-up of a method."""

    row: Row
    instead_of: Row  # the baseline
    gain: Spread  # time of `instead_of` / time of `row`

    def __str__(self) -> str:
        here, there = (f"{runtime_name(r)} {r.precision or ''}".strip() for r in (self.row, self.instead_of))
        gain = self.gain
        return f"{self.row.model}, {here} instead of {there}: {gain.median:.2f}x ({gain.q25:.2f} … {gain.q75:.2f})"


@dataclass(frozen=True)
class Rows:
    """Rows in the order given, and the conditions that they share."""

    baseline: str
    images: int  # evaluated by each model
    input_size: tuple[int, ...]  # (C, H, W)
    latency_batch: int
    rounds: int
    rows: tuple[Row, ...]
    environment: dict[str, Any]
    task: str = Classification.name  # by which the models are judged
    metrics: tuple[Metric, ...] = Classification.metrics  # of that task; the first is the score
    changes: str = ""  # the metric whose paired change the rows have; "": the first
    format: int = FORMAT
    idle_watts: Spread | None = None  # of what `energy_source` counts, while the machine was idle
    classes: tuple[str, ...] = ()  # that the images were scored on, by name; empty: not recorded

    # How pydantic reads the JSON, nested dataclasses included.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names) or self.baseline not in names:
            shown = f"{names[:20]}{' …' if len(names) > 20 else ''}"
            raise BadInput(f"a comparison needs distinct names and the baseline {self.baseline!r} among them: {shown}")
        self._check_metrics()
        object.__setattr__(self, "rows", _distinguished(self.rows))
        rows = tuple(replace(row, **self._by_the_rule(row)) for row in self.rows)
        object.__setattr__(self, "rows", rows)
        for name in ("_by_name", "_references"):  # of the rows as they were given
            self.__dict__.pop(name, None)

    def _by_the_rule(self, row: Row) -> dict[str, Any]:
        """Speed-ups of files of 0.1.0 could hold a change of runtime, which a note said."""
        notes = tuple(note for note in row.notes if not note.startswith("the speed-up holds the change of runtime"))
        reference = self.reference(row)
        if reference is None or reference.name == row.name:
            return {"speedup_vs_baseline": None, "notes": notes}
        if not row.samples_s or not reference.samples_s:  # a figure without its rounds is taken as it is, where it can
            return {"speedup_vs_baseline": row.speedup_vs_baseline if notes == row.notes else None, "notes": notes}
        try:
            return {"speedup_vs_baseline": self.ratio(reference.name, row.name), "notes": notes}
        except (ValueError, ArithmeticError):  # rounds that are not: `from_json` refuses them by name
            return {"speedup_vs_baseline": None, "notes": notes}

    def _check_metrics(self) -> None:
        names = [one.name for one in self.metrics]
        if not names or len(set(names)) != len(names):
            raise BadInput(f"a comparison needs metrics of distinct names, got {names}")
        if self.changes and self.changes not in names:
            raise unknown("metric", self.changes, names)
        for row in self.rows:
            if len(row.scores) != len(names):
                raise BadInput(f"row {row.name!r} has {len(row.scores)} scores; accepted: {len(names)}, one a metric")

    @property
    def metric(self) -> Metric:
        """What `Row.score` is of."""
        return self.metrics[0]

    @property
    def changed(self) -> Metric:
        """What `Row.change_points` is of."""
        return metric_of(self.metrics, self.changes)

    def score_of(self, row: Row, metric: str) -> Interval:
        """A row's figure of a metric by its name. Raises BadInput for an unknown one."""
        return row.scores[self.metrics.index(metric_of(self.metrics, metric))]

    def row(self, name: str) -> Row:
        """The row of a name. Raises BadInput, with the nearest names, for one that is not there."""
        if name not in self._by_name:
            raise unknown("row", name, self._by_name)
        return self._by_name[name]

    def reference(self, row: Row) -> Row | None:
        """What a row's speed is compared with: the baseline model in the same runtime, at the same precision if there.

        It is the row itself for a row of the baseline model, None where the baseline model was not measured there.
        """
        known = self._references.get(row.runtime, ())
        named = sorted(known, key=lambda r: (r.precision != row.precision, r.name != self.baseline))
        return named[0] if named else None

    def runtime_label(self, row: Row) -> str:
        """The runtime in words; with the precision where a runtime holds the same model at several."""
        name = runtime_name(row)
        return f"{name} {row.precision or ''}".strip() if row.runtime in self._twice else name

    def by_runtime(self) -> dict[str, list[Row]]:
        """The rows by `key`, in the order in which they come."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(self.runtime_label(row), []).append(row)
        return found

    def runtime_changes(self) -> list[RuntimeChange]:
        """What each other runtime gives the baseline model alone: a fact of its own, in no speed-up."""
        first = self.row(self.baseline)
        others = [row for row in self.rows if row.model == first.model and row.name != first.name]
        return [
            RuntimeChange(r, first, self.ratio(first.name, r.name)) for r in others if r.samples_s and first.samples_s
        ]

    def without_reference(self) -> list[str]:
        """Runtimes without a speed-up: the baseline model was not timed there."""
        alone = [row for row in self.rows if row.samples_s and not getattr(self.reference(row), "samples_s", ())]
        return list(dict.fromkeys(map(runtime_name, alone)))

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    @cached_property
    def _references(self) -> dict[str | None, list[Row]]:
        """The rows of the baseline model, by runtime."""
        model = self.row(self.baseline).model
        found: dict[str | None, list[Row]] = {}
        for row in self.rows:
            if row.model == model:
                found.setdefault(row.runtime, []).append(row)
        return found

    @cached_property
    def _twice(self) -> set[str | None]:
        """Runtimes in which some model stands at more than one precision."""
        seen: dict[tuple[str | None, str], set[str | None]] = {}
        for row in self.rows:
            seen.setdefault((row.runtime, row.model), set()).add(row.precision)
        return {runtime for (runtime, _), precisions in seen.items() if len(precisions) > 1}

    def ratio(self, a: str, b: str) -> Spread:
        """How many times as long a takes as b, from the rounds that both were timed in."""
        samples = [self.row(name).samples_s for name in (a, b)]
        for name, taken in zip((a, b), samples, strict=True):
            if not taken:
                raise BadInput(f"row {name!r} has no latency: {'; '.join(self.row(name).notes)}")
        return Spread.of([x / y for x, y in zip(*samples, strict=True)])


def runtime_name(row: Row) -> str:
    """A row's runtime in words."""
    return row.runtime or "unknown runtime"


def _distinguished(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """A model stands once in a runtime at a precision: a second row of it goes by its whole name."""
    seen: set[tuple[str | None, ...]] = set()
    found = []
    for row in rows:
        key = (row.model, row.runtime, row.precision)
        found.append(replace(row, model=row.name) if key in seen and row.model != row.name else row)
        seen.add(key)
    return tuple(found)
