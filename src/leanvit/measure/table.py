"""A comparison as a table for the terminal: five columns that fit 80 characters, or all of them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leanvit.measure.latency import Spread
from leanvit.measure.rows import Row, Rows
from leanvit.tasks.intervals import Interval
from leanvit.tasks.metric import Metric

NONE = "–"  # not measurable, or the baseline itself
_TEXT_COLUMNS = ("model", "runtime", "precision")


def short_table(comparison: Rows) -> Table:
    """Model, score, change, latency and speed-up: one line a model, a heading for each runtime."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_lines(_short_caption(comparison)), caption_justify="left"
    )
    table.add_column("model", overflow="fold", min_width=12)
    for heading in (titled(comparison.metric), _change_title(comparison), "latency [ms]", "speed-up"):
        table.add_column(Text(heading), justify="right")
    groups = comparison.by_runtime()
    for place, rows in groups.items():
        if len(groups) > 1:
            table.add_row(Text(f"in {place}", style="bold"))
        for row in rows:
            table.add_row(Text(row.model if len(groups) > 1 else row.name), *map(Text, _short_cells(comparison, row)))
        table.add_section()
    return table


def titled(metric: Metric) -> str:
    """A metric with its unit: "top-1 [%]"."""
    return f"{metric.title} [{metric.unit}]" if metric.unit else metric.title


def change_unit(metric: Metric) -> str:
    """The unit of the difference of two figures."""
    return "points" if metric.unit == "%" else metric.unit


def figure(value: float, unit: str, *, sign: bool = False, digits: int = 2) -> str:
    """A figure of an interval in its unit: percent and points with two decimals, others with four digits in all."""
    plus = "+" if sign else ""
    return f"{value:{plus}.{digits}f}" if unit in ("percent", "points") else f"{value:{plus}.{digits + 2}g}"


def _change_title(comparison: Rows) -> str:
    unit = change_unit(comparison.changed)
    return f"change [{unit}]" if unit else "change"


def _short_cells(comparison: Rows, row: Row) -> tuple[str, str, str, str]:
    score, change, faster = row.score, row.change_points, row.speedup_vs_baseline
    return (
        figure(score.value, score.unit),
        NONE if change is None else _short_change(change),
        NONE if row.latency_ms is None else _number(row.latency_ms.median),
        NONE if faster is None else f"{faster.median:.2f}x",
    )


def _short_change(change: Interval) -> str:
    low, high = (figure(end, change.unit, sign=True, digits=1) for end in (change.low, change.high))
    return f"{figure(change.value, change.unit, sign=True)} ({low} … {high})"


def metric_lines(comparison: Rows) -> Iterator[str]:
    """What the change is of, where that is not the score, and which figures are the better the lower they are."""
    if comparison.changed != comparison.metric:
        yield f"change: of {comparison.changed.title}"
    for metric in comparison.metrics:
        if metric.better == "lower":
            yield f"{metric.title}: lower is better"


def _short_caption(comparison: Rows) -> Iterator[str]:
    yield f"{comparison.images} images, changes with 95 % intervals; latency of a batch of {comparison.latency_batch}"
    yield from metric_lines(comparison)
    yield from speed_lines(comparison)
    yield from kept_lines(comparison)
    yield from (f"{row.name}: {note}" for row in comparison.rows for note in row.notes)


KEPT = "kept: without weights that were pruned to zeros. All MACs are executed: what that gives in speed is the latency"


def kept_lines(comparison: Rows) -> Iterator[str]:
    """What zeros of sparse tensors leave of parameters and MACs, of each model that has some."""
    told = set()
    for row in comparison.rows:
        if row.kept_params is None or row.params is None or row.model in told:
            continue
        told.add(row.model)
        macs = ""
        if row.kept_macs_per_image is not None and row.macs_per_image is not None:
            macs = f", {_number(row.kept_macs_per_image, 1e9)} of {_number(row.macs_per_image, 1e9)} G MACs"
        yield f"{row.model} keeps {_number(row.kept_params, 1e6)} of {_number(row.params, 1e6)} M parameters{macs}"
    if told:
        yield KEPT


def speed_lines(comparison: Rows) -> Iterator[str]:
    """What the speed-ups are against, what there is none of and why, and what a change of runtime gives by itself."""
    model = comparison.row(comparison.baseline).model
    sped = [row for row in comparison.rows if row.speedup_vs_baseline is not None]
    if sped:
        yield f"speed-up: against {model} in the same runtime"
    for row in sped:
        reference = comparison.reference(row)
        if reference is not None and reference.precision != row.precision:
            own, other = (one.precision or "unknown precision" for one in (row, reference))
            yield f"{row.name}: {own} against {other}"
    for runtime in comparison.without_reference():
        yield f"no speed-up in {runtime}: {model} was not timed there; measure it in {runtime} too"
    for change in comparison.runtime_changes():
        yield f"change of runtime: {change}"


def as_text(table: Table) -> str:
    """A table without colours, as wide as the terminal (80 characters where there is none)."""
    width = shutil.get_terminal_size((80, 24)).columns
    console = Console(file=io.StringIO(), width=max(width, 72), color_system=None, force_terminal=False)
    console.print(table, highlight=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def _lines(lines: Iterator[str]) -> Text:
    return Text("\n".join(lines))


def comparison_table(comparison: Rows) -> Table:
    """One line a model, a unit in every heading; a column in which no row has a value is left out."""
    cells = {heading: [cell(row) for row in comparison.rows] for heading, cell in _columns(comparison).items()}
    shown = {heading: texts for heading, texts in cells.items() if set(texts) != {NONE}}
    table = Table(caption=_lines(_caption(comparison)), caption_justify="left")
    for heading in shown:  # Text: brackets are units here, not markup
        table.add_column(Text(heading), justify="left" if heading in _TEXT_COLUMNS else "right")
    for line in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, line))
    return table


def _columns(comparison: Rows) -> dict[str, Callable[[Row], str]]:
    batch = comparison.latency_batch
    return {
        "model": lambda r: r.name,
        "runtime": lambda r: r.runtime or NONE,
        "precision": lambda r: r.precision or NONE,
        **{titled(metric): partial(_score, number) for number, metric in enumerate(comparison.metrics)},
        _change_title(comparison): lambda r: _interval(r.change_points, sign=True),
        "agreement [%]": lambda r: _interval(r.agreement_percent),
        "params [M]": lambda r: _number(r.params, 1e6),
        "kept params [M]": lambda r: _number(r.kept_params, 1e6),
        "MACs [G/image]": lambda r: _number(r.macs_per_image, 1e9),
        "kept MACs [G/image]": lambda r: _number(r.kept_macs_per_image, 1e9),
        f"latency [ms/batch of {batch}]": lambda r: _spread(r.latency_ms),
        "throughput [images/s]": lambda r: _number(r.images_per_s),
        f"speed-up [x {comparison.row(comparison.baseline).model}]": lambda r: _spread(r.speedup_vs_baseline),
        "energy [J/image]": lambda r: _spread(r.joules_per_image),
        "peak memory [MiB]": lambda r: _number(r.peak_memory_bytes, 2**20),
        "weights [MiB]": lambda r: _number(r.weights_bytes, 2**20),
        "on disk [MiB]": lambda r: _number(r.disk_bytes, 2**20),
    }


def _caption(comparison: Rows) -> Iterator[str]:
    machine = comparison.environment
    size = "x".join(map(str, comparison.input_size))
    yield f"{comparison.images} images of {size}, 95 % intervals; medians and quartiles of {comparison.rounds} rounds"
    yield f"{machine.get('cpu')}, {machine.get('threads')} threads of torch"
    yield from metric_lines(comparison)
    yield from speed_lines(comparison)
    if any(row.kept_params is not None for row in comparison.rows):
        yield KEPT
    yield from energy_lines(comparison)
    for row in comparison.rows:
        yield from (f"{row.name}: {note}" for note in row.notes)


def energy_lines(comparison: Rows) -> Iterator[str]:
    """What the energy column holds and what the machine takes when idle, or why there is no such column."""
    for source in dict.fromkeys(row.energy_source for row in comparison.rows if row.energy_source):
        yield f"energy: {source}"
    if comparison.idle_watts is not None:
        idle = comparison.idle_watts
        yield (
            f"idle power of the same counter: {_number(idle.median)} W ({_number(idle.q25)} … {_number(idle.q75)}), "
            "not subtracted"
        )


def _number(value: float | None, unit: float = 1) -> str:
    if value is None:
        return NONE
    scaled = value / unit
    return f"{scaled:.3g}" if abs(scaled) < 100 else f"{scaled:.0f}"


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return NONE
    value, low, high = (figure(v, interval.unit, sign=sign) for v in (interval.value, interval.low, interval.high))
    return f"{value}\n({low} … {high})"


def _score(number: int, row: Row) -> str:
    return _interval(row.scores[number])


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return f"{_number(spread.median)}\n({_number(spread.q25)} … {_number(spread.q75)})"
