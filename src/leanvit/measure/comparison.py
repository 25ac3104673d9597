"""What `compare` found: rows of models on the same images, kept as JSON and shown as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from leanvit.errors import BadInput, CheckpointError, unknown
from leanvit.measure.intervals import Interval
from leanvit.measure.latency import Spread
from leanvit.measure.scoring import Change

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1


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
    speedup_vs_baseline: Spread | None  # baseline's time / this time; a note says when the runtimes differ
    peak_memory_bytes: int | None  # above the start of one call, weights excluded
    samples_s: tuple[float, ...]  # latency round by round, the same rounds in every row
    notes: tuple[str, ...]
    map_percent: Interval | None = None  # multi-label: mean average precision
    labels_percent: Interval | None = None  # multi-label: single labels decided rightly at probability 1/2
    joules_per_image: Spread | None = None  # counted, idle power included; never an estimate
    energy_source: str = ""  # what was read and what is in it, or "not measurable here: ..."; "": not asked for


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
            raise BadInput(f"a comparison needs distinct names and the baseline {self.baseline!r} among them: {names}")

    @property
    def score_name(self) -> str:
        """What `top1_percent` is called: of several labels an image, the share of images with all of them right."""
        return "all labels right" if self.multi_label else "top-1"

    def row(self, name: str) -> Row:
        """The row of a name. Raises BadInput, with the nearest names, for one that is not there."""
        by_name = {row.name: row for row in self.rows}
        if name not in by_name:
            raise unknown("row", name, by_name)
        return by_name[name]

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
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise CheckpointError(f"not a comparison: {where}: {first['msg']}") from None

    def table(self) -> Table:
        """A rich table; every column names its unit."""
        from leanvit.measure.table import comparison_table

        return comparison_table(self)


def _check_format(text: str | bytes) -> None:
    try:
        found = json.loads(text)
        number = found["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError("not a comparison: the text is no JSON object with a format number") from None
    if number != FORMAT:
        raise CheckpointError(f"comparison of format {number!r}; this leanvit reads format {FORMAT}")
