"""The parts of a page, in the order in which they are read, as plain data for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leanvit.errors import CheckpointError, LeanvitError
from leanvit.report import figures, rows, side_by_side, widths
from leanvit.report.answer_pictures import MapAnswers, map_answers
from leanvit.report.benches import Bench, DataGroup, by_data
from leanvit.report.changes import Changes, changes
from leanvit.report.pareto import accuracy_against_cost
from leanvit.report.series import Series, run_name
from leanvit.report.token_pictures import Stack, stacks
from leanvit.runs.commands import Command
from leanvit.runs.compared import COMPARED, MethodComparison
from leanvit.runs.record import Measurement, RunRecord
from leanvit.runs.token_maps import TokenMaps
from leanvit.tasks import LABEL_METRICS, Classification, Metric

Views = dict[str, figures.Figure]


@dataclass
class Plots:
    """Every plot of the page: an id -> its figures by the name of the view; and the colours that they share."""

    views: dict[str, Views] = field(default_factory=dict)
    colours: figures.Colours = field(default_factory=figures.Colours)

    def add(self, views: Views) -> str:
        """The plot's id, empty for a plot without a view."""
        if not views:
            return ""
        name = f"plot-{len(self.views)}"
        self.views[name] = views
        return name


@dataclass(frozen=True)
class Table:
    """One measurement as a table."""

    title: str
    note: str
    table: rows.Table
    command: str
    earlier: tuple[str, ...]  # files of earlier measurements of the same, which are not shown


@dataclass(frozen=True)
class Reliability:
    """The calibration of all models in one runtime."""

    runtime: str
    plot: str
    ece_percent: tuple[tuple[str, float], ...]  # by model


@dataclass(frozen=True)
class Answers:
    """What one measurement shows image by image."""

    title: str
    changes: tuple[Changes, ...]
    chosen: int  # which of them is shown first
    reliability: tuple[Reliability, ...]
    images: int


@dataclass(frozen=True)
class BenchPart:
    """One plot and the measurements in it."""

    title: str
    conditions: str
    plot: str
    views: tuple[str, ...]
    tables: tuple[Table, ...]
    note: str


@dataclass(frozen=True)
class DataPart:
    """Everything measured on one set of images."""

    title: str
    images: int
    score: str  # what its models are judged by, in words: "accuracy" for labels of images
    benches: tuple[BenchPart, ...]
    answers: tuple[Answers, ...]
    without_answers: tuple[str, ...]  # commands that would make them
    maps: tuple[MapAnswers, ...]


@dataclass(frozen=True)
class TokenPart:
    """One model's token maps."""

    name: str
    source: str
    maps: TokenMaps
    stacks: tuple[Stack, ...]
    labels: tuple[str, ...]  # of the slider's stops: as given, then each reducing block


@dataclass(frozen=True)
class SideBySidePart:
    """Methods at equal MACs."""

    title: str
    plot: str
    headings: tuple[tuple[str, str], ...]
    lines: tuple[side_by_side.Line, ...]
    recovery: str  # in words; "" where there was none
    learning: tuple[str, ...]  # methods that train by themselves
    alone: tuple[str, ...]  # methods that no recovery followed, where others had one
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WidthsPart:
    """One model whose blocks have other widths than its root's."""

    name: str
    plots: tuple[tuple[str, str], ...]  # heading and id of each kind that changed
    headings: tuple[tuple[str, str], ...]
    rows: tuple[widths.Row, ...]
    unchanged: tuple[str, ...]
    blocks: str


@dataclass(frozen=True)
class Sections:
    """The whole page."""

    title: str
    heading: str
    chips: tuple[str, ...]
    headline: rows.Headline | None
    headline_data: str  # named where the runs stand on several
    side_by_side: tuple[SideBySidePart, ...]
    data: tuple[DataPart, ...]
    token_plot: str
    tokens: tuple[TokenPart, ...]
    widths: tuple[WidthsPart, ...]
    training: dict[str, str]  # what -> id of its plot
    commands: tuple[Command, ...]
    made_with: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]
    unreadable: tuple[str, ...]  # files that could not be read, each with the reason
    notes: tuple[str, ...]
    plots: dict[str, Views]


def sections(records: Sequence[RunRecord], method_comparisons: Sequence[MethodComparison] = ()) -> Sections:
    """Everything that the runs give, sorted."""
    plots = Plots()
    groups = by_data(records)
    measured = [one for group in groups for one in group.measured]
    series = Series(records, [one.folder for one in method_comparisons])
    headline_group, headline = _newest_headline(groups, method_comparisons)
    maps = _traced(records)
    curves = {run_name(m, records): m.curve for m in records if m.curve is not None}
    parts = [_readable_part(one, records, plots) for one in method_comparisons]
    data = tuple(_data_part(group, plots, groups, series) for group in groups)
    for record in records:
        plots.colours.share(run_name(record, records), series.of_run(record))
    counts = figures.token_counts([(name, one) for name, _, one in maps], plots.colours)
    training = figures.training_curves(curves, plots.colours)
    last = measured[-1][1].comparison.environment if measured else {}
    return Sections(
        title=f"{_heading(records)}: {', '.join(dict.fromkeys(m.name for m in records))}",
        heading=_heading(records),
        chips=_chips(records, groups),
        headline=headline,
        headline_data=_data_name(headline_group, groups) if headline_group and len(groups) > 1 else "",
        side_by_side=tuple(part for part, _ in parts if part is not None),
        data=data,
        token_plot=plots.add({"": counts} if counts else {}),
        tokens=tuple(_token_part(name, record, one) for name, record, one in maps if one.pictures),
        widths=tuple(_widths_part(run_name(m, records), m.widths, plots) for m in records if m.widths),
        training={key: plots.add({"": figure}) for key, figure in training.items()},
        commands=_commands(records),
        made_with=_versions(records),
        machine=tuple((k, _text(v)) for k, v in last.items()),
        unreadable=(*(one for m in records for one in m.unreadable), *(reason for _, reason in parts if reason)),
        notes=_notes(records, [m for _, m in measured]),
        plots=plots.views,
    )


# --- the head -----------------------------------------------------------------------------------------------------


def _heading(records: Sequence[RunRecord]) -> str:
    models = list(dict.fromkeys(m.model for m in records))
    return models[0] if len(models) == 1 else f"{', '.join(models[:3])}{' …' if len(models) > 3 else ''}"


def _chips(records: Sequence[RunRecord], groups: Sequence[DataGroup]) -> tuple[str, ...]:
    """What all runs share; the arguments of the model only where all stand on the same."""
    first = records[0]
    same = all((m.model, m.model_args) == (first.model, first.model_args) for m in records)
    found = [f"{key} {value}" for key, value in first.model_args.items()] if same else []
    found += [f"data {_data_name(group, groups)}, {group.images} images" for group in groups]
    if not groups and first.data:
        found.append(f"data {first.data}")
    found += dict.fromkeys(bench.machine for group in groups for bench in group.benches)
    return tuple(found)


def _newest_headline(
    groups: Sequence[DataGroup], method_comparisons: Sequence[MethodComparison]
) -> tuple[DataGroup | None, rows.Headline | None]:
    """Of the newest measurement in a runtime of deployment, else of the newest; of methods side by side, the best."""
    results = {c.baseline: c.result for c in method_comparisons}
    found = []
    for group in groups:
        for record, measurement in group.measured:
            result, comparison = results.get(record.folder), measurement.comparison
            headline = rows.headline(comparison, side_by_side.most_accurate(result, comparison) if result else "")
            found += [(headline, measurement.at, group)] if headline is not None else []
    newest = sorted(found, key=lambda one: (one[0].deployed, one[1]))
    return (newest[-1][2], newest[-1][0]) if newest else (None, None)


def _data_name(group: DataGroup, groups: Sequence[DataGroup]) -> str:
    """The last part of a path, where that names one data set only; else the whole spec."""
    short = Path(group.data).name
    specs = {other.data for other in groups if Path(other.data).name == short}
    return (short if len(specs) == 1 else group.data) or "unnamed data"


# --- by data ------------------------------------------------------------------------------------------------------


def _data_part(group: DataGroup, plots: Plots, groups: Sequence[DataGroup], series: Series) -> DataPart:
    several = len(group.measured) > 1
    answered = [one for one in group.measured if one[1].evidence is not None]
    alike = sum(_data_name(other, groups) == _data_name(group, groups) for other in groups) > 1
    apart = f" (images {group.fingerprint or 'not recorded'})" if alike else ""
    return DataPart(
        title=f"{_data_name(group, groups)}{apart}",
        images=group.images,
        score=_score_name([bench.metric for bench in group.benches]),
        benches=tuple(_bench_part(bench, plots, series, several=several) for bench in group.benches),
        answers=tuple(_answers(record, m, plots, series, several=several) for record, m in answered),
        without_answers=tuple(
            m.command or f"leanvit measure {record.folder} --data {group.data or 'DATA'}"
            for record, m in group.measured
            if m.evidence is None and m.comparison.task == Classification.name
        ),
        maps=tuple(
            map_answers(f"{record.folder.name} · {m.file}" if several else "", m.comparison, m.maps)
            for record, m in group.measured
            if m.maps is not None
        ),
    )


def _score_name(metrics: Sequence[Metric]) -> str:
    if all(one in LABEL_METRICS for one in metrics):
        return "accuracy"
    return metrics[0].title if len(set(metrics)) == 1 else "scores"


def _bench_part(bench: Bench, plots: Plots, series: Series, *, several: bool) -> BenchPart:
    views = accuracy_against_cost(bench.points(series), plots.colours)
    size = "×".join(map(str, bench.input_size))
    note = ""
    if len(bench.measured) > 1:
        note = (
            f"{len(bench.measured)} measurements in one plot: their models were not interleaved, so compare latencies "
            "across them with care; accuracies, MACs and sizes compare as they are."
        )
    return BenchPart(
        title=f"{bench.metric.title} against cost",
        conditions=f"images of {size}, batch {bench.batch}, {bench.machine}",
        plot=plots.add(views),
        views=tuple(views),
        tables=tuple(_table(record, m, several=several) for record, m in bench.measured),
        note=note,
    )


def _table(record: RunRecord, measurement: Measurement, *, several: bool) -> Table:
    comparison = measurement.comparison
    known, scored = len(record.classes), len(comparison.classes)
    part = f" Accuracy among {scored} of the run's {known} classes." if 0 < scored < known else ""
    rounds = f"Latency in {comparison.rounds} rounds, all models interleaved, batch {comparison.latency_batch}."
    return Table(
        title=f"{record.folder.name} · {measurement.file}" if several else "",
        note=f"{rounds}{part}",
        table=rows.table(comparison),
        command=measurement.command,
        earlier=measurement.earlier,
    )


def _answers(record: RunRecord, measurement: Measurement, plots: Plots, series: Series, *, several: bool) -> Answers:
    comparison, evidence = measurement.comparison, measurement.evidence
    assert evidence is not None
    found = tuple(changes(comparison, evidence, comparison.classes or record.classes, measurement.pictures))
    key = partial(series.of_row, record, comparison.rows)
    return Answers(
        title=f"{record.folder.name} · {measurement.file}" if several else "",
        changes=found,
        chosen=_chosen(found, rows.headline(comparison)),
        reliability=tuple(
            Reliability(runtime, plots.add({"": figure}), tuple((n, 100 * r.ece) for n, r in by_model.items()))
            for runtime, (figure, by_model) in figures.calibration(comparison, evidence, plots.colours, key).items()
        ),
        images=len(evidence.keys),
    )


def _chosen(found: Sequence[Changes], headline: rows.Headline | None) -> int:
    """The pair of the headline, else the first."""
    if headline is None:
        return 0
    wanted = (headline.model, headline.runtime)
    return next((i for i, one in enumerate(found) if (one.model, one.runtime) == wanted), 0)


# --- methods at equal MACs ----------------------------------------------------------------------------------------


def _readable_part(
    method_comparison: MethodComparison, records: Sequence[RunRecord], plots: Plots
) -> tuple[SideBySidePart | None, str]:
    """The part, or why there is none: its measurement is not there, or is one of other models."""
    try:
        return _side_by_side_part(method_comparison, records, plots), ""
    except LeanvitError as error:
        return None, f"{method_comparison.folder / COMPARED} is not shown: {error}"


def _side_by_side_part(
    method_comparison: MethodComparison, records: Sequence[RunRecord], plots: Plots
) -> SideBySidePart:
    result = method_comparison.result
    own = next(m for m in records if m.folder == method_comparison.baseline)
    comparison = next((m.comparison for m in own.measurements if m.file == result.measurement), None)
    if comparison is None:
        raise CheckpointError(f"{method_comparison.baseline / result.measurement} is missing or cannot be read")
    return SideBySidePart(
        title=f"{result.model} at {result.macs:g} of its MACs, {comparison.images} images of {Path(result.data).name}",
        plot=plots.add({"": side_by_side.figure(result, comparison, plots.colours)}),
        headings=tuple(side_by_side.headings(result, comparison)),
        lines=tuple(side_by_side.lines(result, comparison)),
        recovery=side_by_side.recovery_in_words(result),
        learning=tuple(one.name for one in result.standings if one.learns),
        alone=tuple(one.name for one in result.standings if result.recovery and not one.recovered),
        left_out=tuple(result.left_out.items()),
    )


# --- tokens and training ------------------------------------------------------------------------------------------


def _traced(records: Sequence[RunRecord]) -> list[tuple[str, RunRecord, TokenMaps]]:
    return [(run_name(m, records), m, m.tokens) for m in records if m.tokens is not None]


def _token_part(name: str, record: RunRecord, maps: TokenMaps) -> TokenPart:
    patches = maps.grid[0] * maps.grid[1]
    after = (
        f"after block {r.block}: {r.tokens - maps.num_prefix} tokens for {patches} patches" for r in maps.reductions
    )
    return TokenPart(
        name=name,
        source=" + ".join(dict.fromkeys(r.source for r in maps.reductions if r.source)),
        maps=maps,
        stacks=tuple(stacks(maps, record.classes)),
        labels=(f"the image as given: {patches} patches", *after),
    )


def _widths_part(name: str, found: widths.Widths, plots: Plots) -> WidthsPart:
    made = widths.figures_of(name, found, plots.colours)
    root, lean = len(found.root), len(found.lean)
    return WidthsPart(
        name=name,
        plots=tuple((heading, plots.add({"": figure})) for heading, figure in made.items()),
        headings=tuple(widths.KINDS.values()),
        rows=widths.rows(found),
        unchanged=tuple(widths.KINDS[kind][0] for kind in widths.KINDS if kind not in found.changed),
        blocks=f"{lean} blocks." if lean == root else f"{lean} blocks, the root has {root}; both in running order.",
    )


# --- how it was made ----------------------------------------------------------------------------------------------


def _commands(records: Sequence[RunRecord]) -> tuple[Command, ...]:
    """Every command once, in the order they ran: runs share those that made what they started from."""
    found = {(c.at, c.command): c for record in records for c in record.commands if c.command}
    return tuple(sorted(found.values(), key=lambda c: c.at))


def _versions(records: Sequence[RunRecord]) -> tuple[tuple[str, str], ...]:
    """Every version that some command ran with, oldest first where they differ."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for versions in (record.made_with, *(c.versions for c in record.commands)):
            for package, number in versions.items():
                found.setdefault(str(package), {})[str(number)] = None
    return tuple((package, ", ".join(numbers)) for package, numbers in sorted(found.items()))


def _notes(records: Sequence[RunRecord], measured: Sequence[Measurement]) -> tuple[str, ...]:
    sentences = [note for m in measured for note in rows.notes(m.comparison)]
    for record in records:
        if not record.measurements and not measured:
            sentences.append(f"{record.folder}: not measured yet (leanvit measure {record.folder} --data DATA)")
        if record.tokens is None:
            sentences.append(
                f"{record.folder}: tokens were not traced (leanvit measure {record.folder} --data DATA does it)"
            )
    return tuple(dict.fromkeys(sentences))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
