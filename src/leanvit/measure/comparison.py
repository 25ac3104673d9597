"""What `compare` found: rows of models on the same images, kept as JSON and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from leanvit.errors import CheckpointError
from leanvit.files import read_strict
from leanvit.measure.rows import FORMAT, Rows
from leanvit.tasks import Classification, MultiLabel, Task

if TYPE_CHECKING:
    from rich.table import Table

LARGEST = 1e18  # of any figure in a file: what is larger was not measured


@dataclass(frozen=True)
class Comparison(Rows):
    """Rows that are written to a file, read from one, and shown."""

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal Comparison back. What zeros leave stands there where it is known."""
        content = asdict(self)
        for row in content["rows"]:
            for key in _KEPT:
                if row[key] is None:
                    del row[key]
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Comparison:
        """Read `to_json`'s text, or format 1's. An unknown, missing or mistyped key, or another format, raises
        CheckpointError."""
        found = read_strict(cls, _newest(text), "not a comparison")
        for where, reason in _implausible(found):
            raise CheckpointError(f"not a comparison: {where}: {reason}")
        return found

    def table(self, *, wide: bool = True) -> Table:
        """A rich table; every column names its unit. Not wide: model, score, change, latency and speed-up."""
        from leanvit.measure.table import comparison_table, short_table

        return comparison_table(self) if wide else short_table(self)

    def __rich__(self) -> Table:
        return self.table(wide=False)

    def __str__(self) -> str:
        """The short table as text."""
        from leanvit.measure.table import as_text

        return as_text(self.table(wide=False))


def _implausible(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What no measurement gives, though its type is right: (where, why)."""
    content = asdict(comparison)
    for key in ("images", "latency_batch", "rounds"):
        if not 1 <= content[key] <= LARGEST:
            yield key, "not a positive number that can be"
    if len(content["input_size"]) != 3 or not all(1 <= n <= LARGEST for n in content["input_size"]):
        yield "input_size", "not channels, height and width"
    percent = [one.unit == "%" for one in comparison.metrics]
    timed = {len(row["samples_s"]) for row in content["rows"] if row["samples_s"]}
    if len(timed) > 1 or timed & {1}:
        yield "rows", f"samples_s of {sorted(timed)} rounds; accepted: as many in every row, 2 or more"
    for i, row in enumerate(content["rows"]):
        for kept, of in _KEPT.items():
            if row[kept] is not None and (row[of] is None or row[kept] > row[of]):
                yield f"rows.{i}.{kept}", f"more than {of}"
        yield from ((f"rows.{i}.{key}", reason) for key, reason in _implausible_figures(row))
        if any(of and not _is_share(score) for of, score in zip(percent, row["scores"], strict=True)):
            yield f"rows.{i}.scores", "not between 0 and 100 %"


def _implausible_figures(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        numbers = list(_numbers(value))
        if any(not abs(number) <= LARGEST for number in numbers):
            yield key, f"a figure beyond {LARGEST:g}"
        elif key in _TIMES and any(number < 1 / LARGEST for number in numbers):
            yield key, "not above 0"
        elif key in _COUNTS and any(number < 0 for number in numbers):
            yield key, "below 0"
        elif key == "agreement_percent" and value and not _is_share(value):
            yield key, "not between 0 and 100 %"


def _is_share(interval: dict[str, Any]) -> bool:
    return all(0 <= interval[part] <= 100 for part in ("low", "value", "high"))


_TIMES = ("images_per_s", "latency_ms", "samples_s", "speedup_vs_baseline")
_KEPT = {"kept_params": "params", "kept_macs_per_image": "macs_per_image"}  # what they are of
_COUNTS = (*_KEPT, "params", "macs_per_image", "weights_bytes", "disk_bytes", "peak_memory_bytes")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool | str) or value is None:
        return
    if isinstance(value, int | float):
        yield value
        return
    for one in value.values() if isinstance(value, dict) else value:
        yield from _numbers(one)


def _newest(text: str | bytes) -> str | bytes:
    """Format 1, which had figures of labels of images by name, as format 2; format 2 as it is."""
    try:
        content = json.loads(text)
        number = content["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError("not a comparison: the text is no JSON object with a format number") from None
    if number == FORMAT:
        return text
    if number != 1:
        raise CheckpointError(f"comparison of format {number!r}; this leanvit reads formats 1 and {FORMAT}")
    try:
        return json.dumps(_from_format_1(content), allow_nan=False)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a comparison: format 1 with {error!r}") from None
    except ValueError as error:
        raise CheckpointError(f"not a comparison: {error}") from None


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    several = content.pop("multi_label", False)
    if not isinstance(several, bool):
        raise TypeError("multi_label is neither true nor false")
    task: Task = MultiLabel() if several else Classification()
    own = ("map_percent", "labels_percent", "top1_percent")  # as `MultiLabel.metrics` are
    for row in content["rows"]:
        figures = {key: row.pop(key, None) for key in own}
        row["scores"] = [figures[key] for key in own] if several else [figures["top1_percent"]]
    metrics = [asdict(one) for one in task.metrics]
    return {**content, "format": FORMAT, "task": task.name, "metrics": metrics, "changes": task.changes}
