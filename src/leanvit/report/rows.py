"""A comparison as the rows of the page's table: grouped by runtime, each compared with dense in the same runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from leanvit.measure import Change, Comparison, Interval, Row
from leanvit.measure.latency import Spread
from leanvit.measure.rows import RuntimeChange, runtime_name
from leanvit.measure.table import KEPT, change_unit, energy_lines, figure
from leanvit.tasks import Metric

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure and what stands under it in small print."""

    text: str = NONE
    small: str = ""
    title: str = ""  # shown when pointed at


@dataclass(frozen=True)
class Line:
    """One model in one runtime."""

    name: str
    cells: tuple[Cell, ...]
    is_reference: bool


@dataclass(frozen=True)
class Group:
    """The models in one runtime; `change` is the change of runtime alone, or why there is no speed-up."""

    runtime: str
    lines: tuple[Line, ...]
    change: str = ""


@dataclass(frozen=True)
class Table:
    """Headings with their units, and the lines under them."""

    headings: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Headline:
    """The headline: one model against dense in the same runtime."""

    name: str
    reference: str
    runtime: str
    speedup: str
    score: str  # what the change is of
    change: str
    interval: str
    images: int
    batch: int
    model: str  # without its precision
    deployed: bool  # whether that runtime is one of deployment


def table(comparison: Comparison) -> Table:
    """The whole table; a column in which no model has a value is left out."""
    made = groups(comparison)
    cells = [line.cells for group in made for line in group.lines]
    shown = [i for i in range(len(cells[0])) if any(line[i].text != NONE for line in cells)]
    return Table(
        tuple(heading for i, heading in enumerate(_headings(comparison)) if i in shown),
        tuple(
            replace(
                group, lines=tuple(replace(line, cells=tuple(line.cells[i] for i in shown)) for line in group.lines)
            )
            for group in made
        ),
    )


def _headings(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, unit) of each column after the name."""
    return [
        ("precision", ""),
        *((metric.title, _unit(metric)) for metric in comparison.metrics),
        ("change", change_words(comparison)),
        ("agreement", "% same answer"),
        ("MACs", "M / image"),
        ("params", "M"),
        ("latency", f"ms / batch of {comparison.latency_batch}"),
        ("throughput", "images / s"),
        ("speed-up", f"× {comparison.row(comparison.baseline).model}"),
        ("energy", "J / image"),
        ("peak memory", "MiB"),
        ("weights", "MiB in memory"),
        ("on disk", "MiB"),
    ]


def is_simulated(row: Row) -> bool:
    """Whether torch ran an int8 model with its integers held in floats."""
    return "simulated" in (row.precision or "")


def groups(comparison: Comparison) -> list[Group]:
    """Rows by runtime, in the order in which the runtimes come."""
    gains = {change.row.name: change for change in comparison.runtime_changes()}
    return [_group(comparison, place, rows, gains) for place, rows in comparison.by_runtime().items()]


def deployed(row: Row) -> bool:
    """Whether a row is of a runtime that models are deployed in: any but torch itself."""
    return row.runtime is not None and row.runtime != "torch"


def headline(comparison: Comparison, model: str = "") -> Headline | None:
    """One model against the baseline: the last that was timed in a runtime of deployment; else the last in torch.

    Where it stands in several such runtimes, the one where it is fastest. model: the one to speak of instead.
    """
    sped = [row for row in comparison.rows if row.speedup_vs_baseline is not None]
    sped = [row for row in sped if row.model == model] or sped
    rivals = [row for row in sped if deployed(row)] or sped
    if not rivals:
        return None
    known = {row.model for row in rivals}
    newest = [name for name in dict.fromkeys(row.model for row in comparison.rows) if name in known][-1]
    row = min((r for r in rivals if r.model == newest), key=_median)
    reference, faster, change = comparison.reference(row), row.speedup_vs_baseline, row.change_points
    assert reference is not None and faster is not None
    apart = row.precision != reference.precision
    return Headline(
        name=_with_precision(row) if apart else row.model,
        reference=_with_precision(reference) if apart else reference.model,
        runtime=comparison.runtime_label(row),
        speedup=f"{faster.median:.2f}×",
        score=comparison.changed.title,
        change=NONE if change is None else f"{signed_in(change.value, change.unit)} {change.unit}".rstrip(),
        interval="" if change is None else reach(change),
        images=comparison.images,
        batch=comparison.latency_batch,
        model=row.model,
        deployed=deployed(row),
    )


def _with_precision(row: Row) -> str:
    return f"{row.model} ({row.precision or 'unknown precision'})"


def _median(row: Row) -> float:
    return row.latency_ms.median if row.latency_ms else float("inf")


def _group(comparison: Comparison, place: str, rows: Sequence[Row], gains: Mapping[str, RuntimeChange]) -> Group:
    lines = tuple(Line(row.model, _cells(comparison, row), comparison.reference(row) is row) for row in rows)
    own = [gains[row.name] for row in rows if row.name in gains]
    missing = "" if any(row.speedup_vs_baseline for row in rows) else _why_no_speedup(comparison, rows)
    return Group(place, lines, "; ".join(f"The change of runtime alone: {change}" for change in own) or missing)


def _why_no_speedup(comparison: Comparison, rows: Sequence[Row]) -> str:
    wanted = set(comparison.without_reference()) & {runtime_name(row) for row in rows}
    model = comparison.row(comparison.baseline).model
    return "; ".join(f"No speed-up: {model} was not timed in {runtime}, measure it there too" for runtime in wanted)


def _cells(comparison: Comparison, row: Row) -> tuple[Cell, ...]:
    twin = _twin(comparison, row)
    own = "" if twin is row else "of the same model in PyTorch"
    faster, reference = row.speedup_vs_baseline, comparison.reference(row)
    change = row.change_points
    return (
        Cell(row.precision or NONE),
        *map(interval_cell, row.scores),
        change_cell(change),
        interval_cell(row.agreement_percent),
        Cell(_number(twin.macs_per_image, 1e6), _kept(twin.kept_macs_per_image), own if twin.macs_per_image else ""),
        Cell(_number(twin.params, 1e6), _kept(twin.kept_params), own if twin.params else ""),
        _spread(row.latency_ms),
        Cell(NONE if row.images_per_s is None else f"{row.images_per_s:,.0f}"),
        Cell("1" if row is reference else NONE)
        if faster is None or reference is None
        else Cell(f"{faster.median:.2f}×", f"{faster.q25:.2f} … {faster.q75:.2f}", _against(row, reference)),
        replace(_spread(row.joules_per_image), title=row.energy_source),
        Cell(_number(row.peak_memory_bytes, 2**20)),
        Cell(_number(row.weights_bytes, 2**20)),
        Cell(_number(row.disk_bytes, 2**20)),
    )


def _kept(value: int | None) -> str:
    """What zeros leave, for the small print under what is executed."""
    return "" if value is None else f"kept {_number(value, 1e6)}"


def _against(row: Row, reference: Row) -> str:
    """What a speed-up is against, with the precisions where they differ."""
    if row.precision == reference.precision:
        return f"against {reference.model} in the same runtime"
    return f"{_with_precision(row)} against {_with_precision(reference)} in the same runtime"


def _twin(comparison: Comparison, row: Row) -> Row:
    """The row of the same model that torch ran: it knows MACs and parameters, which another runtime does not report."""
    if row.macs_per_image is not None:
        return row
    same = [r for r in comparison.rows if r.model == row.model and r.macs_per_image is not None]
    return same[0] if same else row


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return NONE
    scaled = value / unit
    return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def interval_cell(interval: Interval | None) -> Cell:
    """A figure and its interval."""
    if interval is None:
        return Cell()
    value, low, high = (figure(one, interval.unit) for one in (interval.value, interval.low, interval.high))
    return Cell(value, f"{low} … {high}")


def change_cell(change: Change | None) -> Cell:
    """A change and its interval; the images behind it where it is of images that are right or wrong."""
    if change is None:
        return Cell()
    p = "" if change.p_value is None else f"; McNemar p = {change.p_value:.3g}"
    images = "" if change.lost is None else f"{change.lost} images lost, {change.gained} gained{p}"
    return Cell(signed_in(change.value, change.unit), reach(change), images)


def change_words(comparison: Comparison) -> str:
    """The unit of a change, and what it is of where that is not the score."""
    metric = comparison.changed
    of = "" if metric == comparison.metric else f" of {metric.title}"
    return f"{change_unit(metric)}{of}".strip()


def _unit(metric: Metric) -> str:
    return f"{metric.unit}, lower is better".lstrip(", ") if metric.better == "lower" else metric.unit


def _spread(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell()
    return Cell(_digits(spread.median), f"{_digits(spread.q25)} … {_digits(spread.q75)}")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def signed_in(value: float, unit: str) -> str:
    """A figure of an interval in its unit, always with a sign."""
    return figure(value, unit, sign=True).replace("-", "−")


def reach(change: Interval) -> str:
    """The interval of a change."""
    return f"{signed_in(change.low, change.unit)} … {signed_in(change.high, change.unit)}"


def notes(comparison: Comparison) -> list[str]:
    """What was not measured, and why."""
    sentences = [f"{row.name}: {note}" for row in comparison.rows for note in row.notes]
    kept = [KEPT] if any(row.kept_params is not None for row in comparison.rows) else []
    return sentences + _missing(comparison.rows) + kept + list(energy_lines(comparison))


def _missing(rows: Sequence[Row]) -> list[str]:
    found = []
    simulated = [row.name for row in rows if is_simulated(row)]
    if simulated:
        found.append(
            f"in PyTorch int8 is simulated (integers held in floats): {', '.join(simulated)}. The accuracy is int8's; "
            "its speed is that of an artefact (leanvit export)"
        )
    elsewhere = [row.name for row in rows if row.macs_per_image is None and not row.notes]
    if elsewhere:
        found.append(f"parameters, MACs and peak memory are not visible in another runtime: {', '.join(elsewhere)}")
    return found
