"""What `compare` found: rows of models on the same images, kept as JSON and shown as a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from leanvit.errors import BadInput, CheckpointError, unknown
from leanvit.measure.intervals import Interval
from leanvit.measure.latency import Spread
from leanvit.measure.scoring import Change

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1
LARGEST = 1e18  # of any figure in a file: what is larger was not measured


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
    top1_percent: Interval  # multi-label: images all of whose labels are right at probability 1/2
    change_points: Change | None  # against the baseline, paired
    agreement_percent: Interval | None  # with the baseline's answers
    latency_ms: Spread | None  # of one batch
    images_per_s: float | None
    speedup_vs_baseline: Spread | None  # time of `Comparison.reference` (in this runtime) / this time
    peak_memory_bytes: int | None  # above the start of one call, weights excluded
    samples_s: tuple[float, ...]  # latency round by round, the same rounds in every row
    notes: tuple[str, ...]
    map_percent: Interval | None = None  # multi-label: mean average precision
    labels_percent: Interval | None = None  # multi-label: single labels decided rightly at probability 1/2
    joules_per_image: Spread | None = None  # counted, idle power included; never an estimate
    energy_source: str = ""  # what was read and what is in it, or "not measurable here: ..."; "": not asked for
    model: str = ""  # what ran: rows of one model in several runtimes share it; by default the name without the runtime

    def __post_init__(self) -> None:
        if not self.model:  # files of 0.1.0 have the runtime in the name alone: "lean (openvino-bf16)"
            own = re.fullmatch(rf"(.+) \(({re.escape(self.runtime)}(?:-\w+)?)\)", self.name) if self.runtime else None
            object.__setattr__(self, "model", own[1] if own else self.name)
            object.__setattr__(self, "runtime", own[2] if own else self.runtime)


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
class Comparison:
    """Rows in the order given, and the conditions that they share."""

    baseline: str
    images: int  # evaluated by each model
    input_size: tuple[int, ...]  # (C, H, W)
    latency_batch: int
    rounds: int
    rows: tuple[Row, ...]
    environment: dict[str, Any]
    multi_label: bool = False
    format: int = FORMAT
    idle_watts: Spread | None = None  # of what `energy_source` counts, while nothing was asked of the machine
    classes: tuple[str, ...] = ()  # that the images were scored on, by name; empty: not recorded

    # How pydantic reads the JSON, nested dataclasses included.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names) or self.baseline not in names:
            shown = f"{names[:20]}{' …' if len(names) > 20 else ''}"
            raise BadInput(f"a comparison needs distinct names and the baseline {self.baseline!r} among them: {shown}")
        object.__setattr__(self, "rows", _told_apart(self.rows))
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

    @property
    def score_name(self) -> str:
        """What `top1_percent` is called: of several labels an image, the share of images with all of them right."""
        return "all labels right" if self.multi_label else "top-1"

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

    def place(self, row: Row) -> str:
        """The runtime in words; with the precision where a runtime holds the same model at several."""
        name = runtime_name(row)
        return f"{name} {row.precision or ''}".strip() if row.runtime in self._twice else name

    def places(self) -> dict[str, list[Row]]:
        """The rows by `place`, in the order in which they come."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(self.place(row), []).append(row)
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

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal Comparison back."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Comparison:
        """Read `to_json`'s text. An unknown, missing or mistyped key, or another format, raises CheckpointError."""
        from pydantic import TypeAdapter, ValidationError

        _check_format(text)
        try:
            found = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise CheckpointError(f"not a comparison: {where}: {first['msg']}") from None
        for where, reason in _implausible(found):
            raise CheckpointError(f"not a comparison: {where}: {reason}")
        return found

    def table(self, *, wide: bool = True) -> Table:
        """A rich table; every column names its unit. Not wide: model, top-1, change, latency and speed-up."""
        from leanvit.measure.table import comparison_table, short_table

        return comparison_table(self) if wide else short_table(self)

    def __rich__(self) -> Table:
        return self.table(wide=False)

    def __str__(self) -> str:
        """The short table as text."""
        from leanvit.measure.table import as_text

        return as_text(self.table(wide=False))


def runtime_name(row: Row) -> str:
    """A row's runtime in words."""
    return row.runtime or "unknown runtime"


def _told_apart(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """A model stands once in a runtime at a precision: a second row of it goes by its whole name."""
    seen: set[tuple[str | None, ...]] = set()
    found = []
    for row in rows:
        place = (row.model, row.runtime, row.precision)
        found.append(replace(row, model=row.name) if place in seen and row.model != row.name else row)
        seen.add(place)
    return tuple(found)


def _implausible(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What no measurement gives, though its type is right: (where, why)."""
    content = asdict(comparison)
    for key in ("images", "latency_batch", "rounds"):
        if not 1 <= content[key] <= LARGEST:
            yield key, "not a positive number that can be"
    if len(content["input_size"]) != 3 or not all(1 <= n <= LARGEST for n in content["input_size"]):
        yield "input_size", "not channels, height and width"
    timed = {len(row["samples_s"]) for row in content["rows"] if row["samples_s"]}
    if len(timed) > 1 or timed & {1}:
        yield "rows", f"samples_s of {sorted(timed)} rounds; accepted: as many in every row, 2 or more"
    for i, row in enumerate(content["rows"]):
        yield from ((f"rows.{i}.{key}", reason) for key, reason in _implausible_figures(row))


def _implausible_figures(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        numbers = list(_numbers(value))
        if any(not abs(number) <= LARGEST for number in numbers):
            yield key, f"a figure beyond {LARGEST:g}"
        elif key in _TIMES and any(number < 1 / LARGEST for number in numbers):
            yield key, "not above 0"
        elif key in _COUNTS and any(number < 0 for number in numbers):
            yield key, "below 0"
        elif key in _SHARES and value and not all(0 <= value[part] <= 100 for part in ("low", "value", "high")):
            yield key, "not between 0 and 100 %"


_TIMES = ("images_per_s", "latency_ms", "samples_s", "speedup_vs_baseline")
_COUNTS = ("params", "macs_per_image", "weights_bytes", "disk_bytes", "peak_memory_bytes")
_SHARES = ("top1_percent", "agreement_percent", "map_percent", "labels_percent")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool | str) or value is None:
        return
    if isinstance(value, int | float):
        yield value
        return
    for one in value.values() if isinstance(value, dict) else value:
        yield from _numbers(one)


def _check_format(text: str | bytes) -> None:
    try:
        found = json.loads(text)
        number = found["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError("not a comparison: the text is no JSON object with a format number") from None
    if number != FORMAT:
        raise CheckpointError(f"comparison of format {number!r}; this leanvit reads format {FORMAT}")
