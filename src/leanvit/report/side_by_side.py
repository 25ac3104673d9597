"""Methods side by side at equal MACs: what `leanvit compare-methods` keeps in `compare.json`, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leanvit.measure import Comparison, Interval, Row
from leanvit.measure.rows import runtime_name
from leanvit.measure.table import change_unit, speed_lines, titled
from leanvit.measure.table import figure as number
from leanvit.report.figures import Colours, Figure, Trace, entry, plain
from leanvit.report.rows import NONE, Cell, change_cell, interval_cell
from leanvit.runs.compared import BASELINE, INT8, MethodResult, SideBySide
from leanvit.runs.saving import RECOVERED, ways_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A speed: one runtime at one precision."""

    runtime: str
    precision: str

    @property
    def title(self) -> str:
        return f"speed, {self.runtime} {self.precision}"


@dataclass(frozen=True)
class Line:
    """One row of the table: texts, each with its small print."""

    name: str
    cells: tuple[tuple[str, str], ...]


def most_accurate(result: SideBySide, comparison: Comparison) -> str:
    """The method that is best at the end; a control only where there is nothing else. "" where none was measured."""
    known = {row.name: comparison.score_of(row, comparison.changes).value for row in comparison.rows}
    found = [one for one in result.standings if one.name in known]
    found = [one for one in found if one.knobs.get("select") not in ("random", "lowest")] or found
    best = min if comparison.changed.better == "lower" else max
    return best(found, key=lambda one: known[one.name]).name if found else ""


def recovery_in_words(result: SideBySide) -> str:
    """The training that all methods got, or "" """
    if not result.recovery:
        return ""
    epochs, lr, batch = (result.recovery.get(key) for key in ("epochs", "lr", "batch_size"))
    rate = f"{lr:g}" if isinstance(lr, float) else lr
    length = f"{epochs} {'epoch' if epochs == 1 else 'epochs'}"
    ways = ways_of({RECOVERED: result.recovery.get("methods")})
    by = f" by {', '.join(ways)}" if ways else ""
    return f"{length}{by}, batch {batch}, learning rate {rate}, seed {result.seed}"


def columns(comparison: Comparison) -> list[Column]:
    """The runtimes and precisions in which speed was measured."""
    found = (Column(runtime_name(row), row.precision or "") for row in comparison.rows if row.samples_s)
    return list(dict.fromkeys(found))


def headings(result: SideBySide, comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, unit) of each column after the name."""
    metric = comparison.changed
    change = ("change", change_unit(metric))
    after = [(f"{metric.title}, recovered", metric.unit), change] if result.recovery else []
    speeds = [(c.title, f"× {BASELINE}, batch {comparison.latency_batch}") for c in columns(comparison)]
    return [
        ("MACs", f"× {BASELINE}"),
        (f"{metric.title}, off the shelf", metric.unit),
        change,
        *after,
        *speeds,
    ]


def lines(result: SideBySide, comparison: Comparison) -> list[Line]:
    """The baseline, then the methods from the best to the worst."""
    first = comparison.row(comparison.baseline)
    made = [_line(result, comparison, one) for one in _ranked(result, comparison)]
    own = [
        ("1", ""),
        _texts(interval_cell(_score(comparison, first))),
        (NONE, ""),
        *([(NONE, "")] * 2 if result.recovery else []),
    ]
    return [Line(BASELINE, (*own, *(_rate(comparison, BASELINE, c) for c in columns(comparison)))), *made]


def _score(comparison: Comparison, row: Row) -> Interval:
    """Of the metric that the changes are of: off the shelf it is that one, too."""
    return comparison.score_of(row, comparison.changes)


def _ranked(result: SideBySide, comparison: Comparison) -> list[MethodResult]:
    """The methods from the best at the end to the worst."""
    sign = 1 if comparison.changed.better == "lower" else -1

    def place(one: MethodResult) -> float:
        return sign * _score(comparison, comparison.row(one.name)).value

    return sorted(result.standings, key=place)


def _texts(cell: Cell) -> tuple[str, str]:
    return cell.text, cell.small


def _line(result: SideBySide, comparison: Comparison, one: MethodResult) -> Line:
    row = comparison.row(one.name)
    cells = (interval_cell(one.off_the_shelf_percent), change_cell(one.off_the_shelf_change))
    off_the_shelf = [_texts(cell) for cell in cells]
    cells = (interval_cell(_score(comparison, row)), change_cell(row.change_points))
    after = [_texts(cell) for cell in cells] if one.recovered else [(NONE, "")] * 2
    after = after if result.recovery else []
    speeds = [_speed(comparison, one.name, column) for column in columns(comparison)]
    return Line(one.name, ((f"{macs_ratio(comparison, one.name):.3f}", ""), *off_the_shelf, *after, *speeds))


def macs_ratio(comparison: Comparison, name: str) -> float:
    """A method's MACs over the baseline's: counted, and the mean over all images where they depend on the image."""
    own, first = (comparison.row(one).macs_per_image for one in (name, comparison.baseline))
    return own / first if own and first else float("nan")


def _row_of(comparison: Comparison, name: str, column: Column) -> Row | None:
    """The row of a model in a runtime and precision; int8 rows carry it in their name."""
    for row in comparison.rows:
        known = row.name.removesuffix(f" ({row.runtime})").removesuffix(f" {INT8}")
        if known == name and Column(runtime_name(row), row.precision or "") == column:
            return row
    return None


def _speed(comparison: Comparison, name: str, column: Column) -> tuple[str, str]:
    """How many times as fast as the baseline in the same runtime and precision."""
    own, other = (_row_of(comparison, n, column) for n in (name, BASELINE))
    if own is None or other is None or not own.samples_s or not other.samples_s:
        return NONE, ""
    faster = comparison.ratio(other.name, own.name)
    return f"{faster.median:.2f}", f"{faster.q25:.2f} … {faster.q75:.2f}"


def _rate(comparison: Comparison, name: str, column: Column) -> tuple[str, str]:
    row = _row_of(comparison, name, column)
    return (NONE, "") if row is None or not row.images_per_s else ("1", f"{row.images_per_s:,.0f} images/s")


def figure(result: SideBySide, comparison: Comparison, colours: Colours) -> Figure:
    """A line for each method, from its score off the shelf to that after the recovery; the baseline dotted."""
    ranked, metric = _ranked(result, comparison)[::-1], comparison.changed
    first = _score(comparison, comparison.row(comparison.baseline))

    def said(score: Interval) -> str:
        return f"{number(score.value, score.unit)} {metric.unit}".rstrip()

    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": BASELINE,
            "x": [first.value, first.value],
            "y": [plain(ranked[0].name), plain(ranked[-1].name)],
            "line": {"dash": "dot", "width": 1.5},
            "hovertemplate": f"{BASELINE} {plain(said(first))}<extra></extra>",
            "meta": {"series": -1, "groups": []},
        }
    ]
    for one in ranked:
        after, off_the_shelf = _score(comparison, comparison.row(one.name)), one.off_the_shelf_percent
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(one.name),
                "x": [off_the_shelf.value, after.value],
                "y": [plain(one.name)] * 2,
                "marker": {"size": 10, "symbol": ["circle-open", "circle"]},
                "line": {"width": 2},
                "hovertemplate": f"{plain(said(off_the_shelf))} off the shelf, {plain(said(after))} at the end"
                f"<extra>{plain(one.name)}</extra>",
                "meta": {"series": colours[one.name], "groups": [f"model:{one.name}"]},
            }
        )
    names = [one.name for one in reversed(ranked)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": f"{titled(metric)}, from off the shelf (ring) to the end (dot)"}},
            "yaxis": {
                "title": {"text": ""},
                "categoryorder": "array",
                "categoryarray": [plain(n) for n in names[::-1]],
            },
        },
        "legend": [entry(name, series=colours[name], group=f"model:{name}") for name in names],
    }


def short_table(result: SideBySide, comparison: Comparison) -> Table:
    """What was measured in five columns, for the terminal; what was left out is a row with its reason."""
    from rich.text import Text

    table = comparison.table(wide=False)
    _add_left_out(table, result)
    more = f"at {result.macs:g} of the MACs; accuracy off the shelf and MACs: --wide, and the report"
    table.caption = Text(f"{table.caption}\n{more}")
    return table


def _add_left_out(table: Table, result: SideBySide) -> None:
    """A row for each method that there are no figures of: its name, why, and no figure."""
    from rich.text import Text

    for name, why in result.left_out.items():
        label = Text.assemble(name, (f"\nleft out: {why}", "dim"))
        table.add_row(label, *(Text(NONE) for _ in table.columns[1:]))


def terminal_table(result: SideBySide, comparison: Comparison) -> Table:
    """The same for the terminal."""
    from rich.table import Table
    from rich.text import Text

    images = f"{comparison.images} images, 95 % intervals; medians and quartiles of {comparison.rounds} rounds"
    caption = [images, *speed_lines(comparison)]
    table = Table(caption=Text("\n".join(caption)), caption_justify="left")
    table.add_column("method")
    for heading, unit in headings(result, comparison):
        table.add_column(Text(f"{heading} [{unit}]" if unit else heading), justify="right")
    for line in lines(result, comparison):
        table.add_row(Text(line.name), *(Text(f"{text}\n{small}" if small else text) for text, small in line.cells))
    _add_left_out(table, result)
    return table
