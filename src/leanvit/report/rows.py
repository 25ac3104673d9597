"""A comparison as the rows of the page's table: grouped by runtime, each compared with dense in the same runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leanvit.measure import Comparison, Interval, Row
from leanvit.measure.latency import Spread
from leanvit.measure.table import energy_lines

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
    """The models in one runtime; `change` is the row for the change of runtime alone."""

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
    """What is said first: one model against dense in the same runtime."""

    name: str
    reference: str
    runtime: str
    speedup: str
    score: str  # what the change is of
    change: str
    interval: str
    images: int
    batch: int


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
        (comparison.score_name, "%"),
        ("mAP", "%"),
        ("change", "points"),
        ("agreement", "% same answer"),
        ("MACs", "M / image"),
        ("params", "M"),
        ("latency", f"ms / batch of {comparison.latency_batch}"),
        ("throughput", "images / s"),
        ("speed-up", "× dense"),
        ("energy", "J / image"),
        ("peak memory", "MiB"),
        ("weights", "MiB in memory"),
        ("on disk", "MiB"),
    ]


def model_of(row: Row) -> str:
    """The model's name without the runtime that `measure` adds to it."""
    return row.name.removesuffix(f" ({row.runtime})") if row.runtime else row.name


def runtime_of(row: Row) -> str:
    return row.runtime or "unknown runtime"


def is_simulated(row: Row) -> bool:
    """Whether torch ran an int8 model with its integers held in floats."""
    return "simulated" in (row.precision or "")


def reference_of(comparison: Comparison, runtime: str) -> Row | None:
    """The baseline's row in a runtime."""
    wanted = model_of(comparison.row(comparison.baseline))
    return next((r for r in comparison.rows if runtime_of(r) == runtime and model_of(r) == wanted), None)


def groups(comparison: Comparison) -> list[Group]:
    """Rows by runtime, in the order in which the runtimes come."""
    runtimes = dict.fromkeys(runtime_of(row) for row in comparison.rows)
    return [_group(comparison, runtime) for runtime in runtimes]


def speedup(comparison: Comparison, row: Row) -> Spread | None:
    """How many times as fast as the baseline in the same runtime, from the rounds that both were timed in."""
    reference = reference_of(comparison, runtime_of(row))
    if reference is None or reference.name == row.name or not row.samples_s or not reference.samples_s:
        return None
    return comparison.ratio(reference.name, row.name)


def headline(comparison: Comparison) -> Headline | None:
    """The fastest model against dense, in the runtime where dense is fastest."""
    references = [reference_of(comparison, g.runtime) for g in groups(comparison)]
    timed = [r for r in references if r is not None and r.latency_ms is not None]
    if not timed:
        return None
    runtime = runtime_of(min(timed, key=_median))
    rivals = [(speedup(comparison, r), r) for r in comparison.rows if runtime_of(r) == runtime]
    found = [(spread.median, row) for spread, row in rivals if spread is not None]
    if not found:
        return None
    factor, row = max(found, key=lambda pair: pair[0])
    change = row.change_points
    return Headline(
        name=model_of(row),
        reference=model_of(comparison.row(comparison.baseline)),
        runtime=runtime,
        speedup=f"{factor:.2f}×",
        score=comparison.score_name,
        change=NONE if change is None else f"{signed(change.value)} points",
        interval="" if change is None else f"{signed(change.low)} … {signed(change.high)}",
        images=comparison.images,
        batch=comparison.latency_batch,
    )


def _median(row: Row) -> float:
    return row.latency_ms.median if row.latency_ms else float("inf")


def _group(comparison: Comparison, runtime: str) -> Group:
    rows = [row for row in comparison.rows if runtime_of(row) == runtime]
    reference = reference_of(comparison, runtime)
    lines = tuple(Line(model_of(row), _cells(comparison, row), row is reference) for row in rows)
    return Group(runtime, lines, _change_of_runtime(comparison, reference))


def _change_of_runtime(comparison: Comparison, reference: Row | None) -> str:
    first = comparison.row(comparison.baseline)
    if reference is None or reference is first or not reference.samples_s or not first.samples_s:
        return ""
    gain = comparison.ratio(first.name, reference.name)
    return (
        f"The change of runtime alone: {model_of(first)}, {runtime_of(first)} {first.precision or ''} to "
        f"{runtime_of(reference)} {reference.precision or ''}: {gain.median:.2f}× ({gain.q25:.2f} … {gain.q75:.2f})"
    )


def _cells(comparison: Comparison, row: Row) -> tuple[Cell, ...]:
    twin = _twin(comparison, row)
    own = "" if twin is row else "of the same model in PyTorch"
    faster = speedup(comparison, row)
    change = row.change_points
    return (
        Cell(row.precision or NONE),
        _interval(row.top1_percent),
        _interval(row.map_percent),
        Cell()
        if change is None
        else Cell(
            signed(change.value),
            f"{signed(change.low)} … {signed(change.high)}",
            f"{change.lost} images lost, {change.gained} gained; McNemar p = {change.p_value:.3g}",
        ),
        _interval(row.agreement_percent),
        Cell(_number(twin.macs_per_image, 1e6), title=own if twin.macs_per_image else ""),
        Cell(_number(twin.params, 1e6), title=own if twin.params else ""),
        _spread(row.latency_ms),
        Cell(NONE if row.images_per_s is None else f"{row.images_per_s:,.0f}"),
        Cell("1" if row is reference_of(comparison, runtime_of(row)) else NONE)
        if faster is None
        else Cell(f"{faster.median:.2f}×", f"{faster.q25:.2f} … {faster.q75:.2f}"),
        replace(_spread(row.joules_per_image), title=row.energy_source),
        Cell(_number(row.peak_memory_bytes, 2**20)),
        Cell(_number(row.weights_bytes, 2**20)),
        Cell(_number(row.disk_bytes, 2**20)),
    )


def _twin(comparison: Comparison, row: Row) -> Row:
    """The row of the same model that torch ran: it knows MACs and parameters, which another runtime does not say."""
    if row.macs_per_image is not None:
        return row
    same = [r for r in comparison.rows if model_of(r) == model_of(row) and r.macs_per_image is not None]
    return same[0] if same else row


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return NONE
    scaled = value / unit
    return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def _interval(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell()
    return Cell(f"{interval.value:.2f}", f"{interval.low:.2f} … {interval.high:.2f}")


def _spread(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell()
    return Cell(_digits(spread.median), f"{_digits(spread.q25)} … {_digits(spread.q75)}")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def signed(value: float) -> str:
    """Two decimals, always with a sign."""
    return f"{value:+.2f}".replace("-", "−")


def notes(comparison: Comparison) -> list[str]:
    """What was not measured, and why; the change of runtime has a row of its own."""
    said = [f"{row.name}: {note}" for row in comparison.rows for note in row.notes if "change of runtime" not in note]
    return said + _missing(comparison.rows) + list(energy_lines(comparison))


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
