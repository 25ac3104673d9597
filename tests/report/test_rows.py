"""The table: runtimes apart, each with its own dense."""

from dataclasses import replace

import pytest

from leanvit.measure import Spread
from leanvit.report import rows


def test_each_runtime_is_compared_with_its_own_dense(comparison) -> None:
    by_name = {row.name: row for row in comparison.rows}
    assert by_name["slim"].speedup_vs_baseline.median == pytest.approx(2)
    assert by_name["slim (openvino)"].speedup_vs_baseline.median == pytest.approx(4), "not 10, torch's dense"
    assert by_name["dense (openvino)"].speedup_vs_baseline is None


def test_the_change_of_runtime_is_its_own_row(comparison) -> None:
    first, second = rows.groups(comparison)
    assert (first.runtime, first.change) == ("torch", "")
    assert "dense, openvino f32 instead of torch f32: 2.50x" in second.change
    assert [line.name for line in second.lines] == ["dense", "slim"]
    assert [line.is_reference for line in second.lines] == [True, False]


def test_macs_of_another_runtime_are_those_of_the_same_model(comparison) -> None:
    table = rows.table(comparison)
    column = [heading for heading, _ in table.headings].index("MACs")
    cells = [line.cells[column] for group in table.groups for line in group.lines]
    assert [cell.text for cell in cells] == ["5", "3", "5", "3"]
    assert "PyTorch" in cells[3].title and not cells[1].title


def test_a_runtime_without_the_baseline_has_no_speedup_and_says_what_to_measure(make_row, compare_rows) -> None:
    made = rows.groups(compare_rows(make_row("dense"), make_row("slim (onnx)", runtime="onnx", ms=1.0)))
    assert made[1].change == "No speed-up: dense was not timed in onnx, measure it there too"
    assert not any("×" in cell.text for cell in made[1].lines[0].cells)


def test_a_column_without_values_is_left_out(comparison) -> None:
    headings = [heading for heading, _ in rows.table(comparison).headings]
    assert "peak memory" not in headings and "on disk" in headings


def test_intervals_and_signs(comparison) -> None:
    table = rows.table(comparison)
    column = [heading for heading, _ in table.headings].index("change")
    cell = table.groups[0].lines[1].cells[column]
    assert (cell.text, cell.small) == ("−1.00", "−4.00 … +1.00")
    assert cell.title == "3 images lost, 1 gained; McNemar p = 0.625"


def test_the_headline_is_of_the_last_model_in_a_runtime_of_deployment(make_row, compare_rows) -> None:
    """Where it stands in several, the one where it is fastest; the precisions are named where they differ."""
    found = compare_rows(
        *(make_row("dense"), make_row("fast", ms=0.1), make_row("slim", ms=5.0)),
        *(make_row("dense (onnx)", runtime="onnx"), make_row("slim (onnx)", runtime="onnx", ms=4.0)),
        make_row("dense (openvino)", runtime="openvino"),
        replace(make_row("slim (openvino)", runtime="openvino", ms=2.0), precision="int8"),
        make_row("fast (openvino)", runtime="openvino", ms=0.5),
    )
    said = rows.headline(found)
    assert (said.name, said.reference, said.runtime, said.speedup) == (
        "slim (int8)",
        "dense (f32)",
        "openvino",
        "5.00×",
    )
    assert rows.headline(found, "fast").speedup == "20.00×"
    in_torch = rows.headline(replace(found, rows=found.rows[:3]))
    assert (in_torch.name, in_torch.runtime, in_torch.deployed) == ("slim", "torch", False)


def test_what_the_headline_says(comparison) -> None:
    said = rows.headline(comparison)
    assert (said.name, said.runtime, said.speedup, said.change, said.batch) == (
        "slim",
        "openvino",
        "4.00×",
        "−2.00 points",
        8,
    )


def test_nothing_timed_gives_no_headline(make_row, compare_rows) -> None:
    assert rows.headline(compare_rows(make_row("dense", ms=None), make_row("slim", ms=None))) is None


def test_simulated_int8_is_said_to_be_simulated(make_row, compare_rows) -> None:
    slim = replace(make_row("slim"), precision="int8 simulated")
    (note,) = rows.notes(compare_rows(make_row("dense"), slim))
    assert "int8 is simulated" in note and "slim" in note


def test_notes_name_what_is_missing(comparison) -> None:
    (note,) = rows.notes(comparison)
    assert "dense (openvino), slim (openvino)" in note


def test_energy_is_a_column_where_it_was_counted_and_a_reason_elsewhere(make_row, compare_rows) -> None:
    counted = replace(make_row("dense"), joules_per_image=Spread(0.5, 0.4, 0.6), energy_source="RAPL counters")
    table = rows.table(compare_rows(counted, make_row("slim")))
    column = [heading for heading, _ in table.headings].index("energy")
    assert table.headings[column] == ("energy", "J / image")
    first, second = (line.cells[column] for line in table.groups[0].lines)
    assert (first.text, first.small, first.title) == ("0.5", "0.4 … 0.6", "RAPL counters")
    assert second.text == rows.NONE
    missing = replace(make_row("dense"), energy_source="not measurable here: no counter")
    assert "energy: not measurable here: no counter" in rows.notes(compare_rows(missing))
