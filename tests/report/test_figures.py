"""Plots as data."""

import pytest

from leanvit.report import figures


def points(figure):
    return [trace for trace in figure["data"] if trace["meta"]["series"] >= 0]


def test_latency_plot_has_a_point_and_error_bars_for_each_row(comparison) -> None:
    figure = figures.accuracy_against_latency(comparison)
    assert [(t["name"], t["x"], t["y"]) for t in points(figure)] == [
        ("dense", [10.0], [90.0]),
        ("slim", [5.0], [89.0]),
        ("dense", [4.0], [90.0]),
        ("slim", [1.0], [88.0]),
    ]
    slim = points(figure)[1]
    assert slim["error_y"]["array"] == [2.0] and slim["error_y"]["arrayminus"] == [3.0]
    assert slim["error_x"]["array"] == pytest.approx([0.25])
    assert "ms / batch of 8" in figure["layout"]["xaxis"]["title"]["text"]


def test_a_model_keeps_its_colour_and_a_runtime_its_symbol(comparison) -> None:
    series = [
        (t["meta"]["series"], t["marker"]["symbol"]) for t in points(figures.accuracy_against_latency(comparison))
    ]
    assert series == [(0, "circle"), (1, "circle"), (0, "diamond"), (1, "diamond")]


def test_values_far_apart_get_a_logarithmic_axis(make_row, compare_rows) -> None:
    near = figures.accuracy_against_latency(compare_rows(make_row("dense"), make_row("x", ms=5.0)))
    far = figures.accuracy_against_latency(compare_rows(make_row("dense"), make_row("x", ms=0.4)))
    assert near["layout"]["xaxis"]["rangemode"] == "tozero"
    assert far["layout"]["xaxis"]["type"] == "log"
    assert {"0.2", "0.5", "1", "10"} <= set(far["layout"]["xaxis"]["ticktext"])


def test_the_frontier_holds_only_models_that_none_beats(comparison) -> None:
    frontier = figures.accuracy_against_latency(comparison)["data"][0]
    assert list(zip(frontier["x"], frontier["y"], strict=True)) == [(1.0, 88.0), (4.0, 90.0)]


def test_macs_plot_has_one_point_a_model(comparison) -> None:
    assert [t["x"] for t in points(figures.accuracy_against_macs(comparison))] == [[5.0], [3.0]]


def test_nothing_to_plot_gives_nothing(make_row, compare_rows) -> None:
    assert figures.accuracy_against_latency(compare_rows(make_row("dense", ms=None))) is None
    assert figures.accuracy_against_macs(compare_rows(make_row("dense", macs=None))) is None
    assert figures.token_counts([]) is None


def test_token_counts_are_a_stair(maps) -> None:
    (trace,) = figures.token_counts([maps])["data"]
    assert (trace["x"], trace["y"], trace["name"]) == ([0, 1], [5, 4], "slim")


def test_names_are_not_read_as_markup(make_row, compare_rows) -> None:
    figure = figures.accuracy_against_latency(compare_rows(make_row("dense"), make_row("<b>x</b>")))
    assert points(figure)[1]["name"] == "&lt;b&gt;x&lt;/b&gt;"
