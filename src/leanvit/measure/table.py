"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.table import Table
from rich.text import Text

from leanvit.measure.comparison import Comparison, Row
from leanvit.measure.intervals import Interval
from leanvit.measure.latency import Spread

NONE = "–"  # not measurable, or the baseline itself
_TEXT_COLUMNS = ("model", "runtime", "precision")


def comparison_table(comparison: Comparison) -> Table:
    """One line a model, a unit in every heading; a column in which no row has a value is left out."""
    cells = {heading: [cell(row) for row in comparison.rows] for heading, cell in _columns(comparison).items()}
    shown = {heading: texts for heading, texts in cells.items() if set(texts) != {NONE}}
    table = Table(caption=Text("\n".join(_caption(comparison))), caption_justify="left")
    for heading in shown:  # Text: brackets are units here, not markup
        table.add_column(Text(heading), justify="left" if heading in _TEXT_COLUMNS else "right")
    for line in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, line))
    return table


def _columns(comparison: Comparison) -> dict[str, Callable[[Row], str]]:
    batch = comparison.latency_batch
    return {
        "model": lambda r: r.name,
        "runtime": lambda r: r.runtime or NONE,
        "precision": lambda r: r.precision or NONE,
        "mAP [%]": lambda r: _interval(r.map_percent),
        "labels right [%]": lambda r: _interval(r.labels_percent),
        f"{comparison.score_name} [%]": lambda r: _interval(r.top1_percent),
        "change [points]": lambda r: _interval(r.change_points, sign=True),
        "agreement [%]": lambda r: _interval(r.agreement_percent),
        "params [M]": lambda r: _number(r.params, 1e6),
        "MACs [G/image]": lambda r: _number(r.macs_per_image, 1e9),
        f"latency [ms/batch of {batch}]": lambda r: _spread(r.latency_ms),
        "throughput [images/s]": lambda r: _number(r.images_per_s),
        f"speed-up [x {comparison.baseline}]": lambda r: _spread(r.speedup_vs_baseline),
        "energy [J/image]": lambda r: _spread(r.joules_per_image),
        "peak memory [MiB]": lambda r: _number(r.peak_memory_bytes, 2**20),
        "weights [MiB]": lambda r: _number(r.weights_bytes, 2**20),
        "on disk [MiB]": lambda r: _number(r.disk_bytes, 2**20),
    }


def _caption(comparison: Comparison) -> Iterator[str]:
    machine = comparison.environment
    size = "x".join(map(str, comparison.input_size))
    yield f"{comparison.images} images of {size}, 95 % intervals; medians and quartiles of {comparison.rounds} rounds"
    yield f"{machine.get('cpu')}, {machine.get('threads')} threads of torch"
    yield from energy_lines(comparison)
    for row in comparison.rows:
        yield from (f"{row.name}: {note}" for note in row.notes)


def energy_lines(comparison: Comparison) -> Iterator[str]:
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
    shape = "+.2f" if sign else ".2f"
    return f"{interval.value:{shape}}\n({interval.low:{shape}} … {interval.high:{shape}})"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return f"{_number(spread.median)}\n({_number(spread.q25)} … {_number(spread.q75)})"
