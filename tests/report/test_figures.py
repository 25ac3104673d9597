"""Plots as data."""

from dataclasses import replace

import pytest

from leanvit.measure import Change, Interval, Row
from leanvit.report import figures, rows
from leanvit.report.figures import Colours
from leanvit.report.pareto import Point, accuracy_against_cost, frontier
from leanvit.runs.logs import Curve
from leanvit.tasks import Metric


def costs(comparison):
    return accuracy_against_cost([Point(comparison, row, row.model) for row in comparison.rows], Colours())


def points(figure):
    return [trace for trace in figure["data"] if trace["mode"] == "markers"]


def stairs(figure):
    return [list(zip(t["x"], t["y"], strict=True)) for t in figure["data"] if t["mode"] == "lines"]


def test_latency_plot_has_a_point_and_error_bars_for_each_row(comparison) -> None:
    figure = costs(comparison)["latency"]
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


def test_pointing_at_a_row_tells_its_figures_and_its_own_reference(comparison) -> None:
    payload = points(costs(comparison)["latency"])[3]["hovertemplate"]
    for part in ("slim, openvino f32", "top-1 88.00 %", "change −2.00 points", "4.00× as fast as dense in openvino"):
        assert part in payload


def test_a_model_keeps_its_colour_and_a_runtime_its_symbol(comparison) -> None:
    marks = [(t["meta"]["series"], t["marker"]["symbol"]) for t in points(costs(comparison)["latency"])]
    assert marks == [(0, "circle"), (1, "circle"), (0, "diamond"), (1, "diamond")]


def test_the_legend_switches_models_and_runtimes(comparison) -> None:
    figure = costs(comparison)["latency"]
    switches = [entry["group"] for entry in figure["legend"]]
    assert switches == ["model:dense", "model:slim", "runtime:torch", "runtime:openvino"]
    assert {group for trace in figure["data"] for group in trace["meta"]["groups"]} == set(switches)


def test_every_cost_that_some_row_has_is_a_view_with_the_same_traces(comparison) -> None:
    views = costs(comparison)
    assert list(views) == ["latency", "MACs", "size on disk", "parameters"]
    assert [t["x"] for t in points(views["MACs"])] == [[5.0], [3.0], [None], [None]]
    assert [t["x"] for t in points(views["size on disk"])] == [[2.0]] * 4


def test_values_far_apart_get_a_logarithmic_axis(make_row, compare_rows) -> None:
    near = costs(compare_rows(make_row("dense"), make_row("x", ms=5.0)))["latency"]
    far = costs(compare_rows(make_row("dense"), make_row("x", ms=0.4)))["latency"]
    assert near["layout"]["xaxis"]["rangemode"] == "tozero"
    assert far["layout"]["xaxis"]["type"] == "log"
    assert {"0.2", "0.5", "1", "10"} <= set(far["layout"]["xaxis"]["ticktext"])


def test_each_runtime_has_its_own_frontier(comparison) -> None:
    assert stairs(costs(comparison)["latency"]) == [[(5.0, 89.0), (10.0, 90.0)], [(1.0, 88.0), (4.0, 90.0)]]


def test_the_frontier_leaves_out_what_is_beaten_in_both() -> None:
    assert frontier([(3, 80), (1, 70), (2, 60), (3, 90), (4, 90)]) == [(1, 70), (3, 90)]
    assert frontier([(3, 8), (1, 9), (2, 9.5), (3, 7), (4, 7)], "lower") == [(1, 9), (3, 7)]


def test_a_figure_in_metres_is_shown_in_metres(make_row, compare_rows) -> None:
    def distance(name: str, value: float, ms: float) -> Row:
        change = None if name == "dense" else Change(value - 0.5, value - 0.6, value - 0.4, 100, "m")
        score = Interval(value, value - 0.1, value + 0.1, 100, "m")
        return replace(make_row(name, ms=ms), scores=(score,), change_points=change, agreement_percent=None)

    metric = Metric("rmse", "RMSE", "lower", "m")
    found = compare_rows(distance("dense", 0.5, 10.0), distance("slim", 0.75, 5.0), distance("poor", 0.9, 8.0))
    found = replace(found, task="distance", metrics=(metric,))
    figure = costs(found)["latency"]
    assert figure["layout"]["yaxis"]["title"]["text"] == "RMSE [m]"
    stair = next(trace for trace in figure["data"] if trace["mode"] == "lines")
    assert stair["y"] == [0.75, 0.5], "poor is slower and worse than slim"
    text = points(figure)[1]["hovertemplate"]
    assert "RMSE 0.75 m (0.65 … 0.85)" in text and "change +0.25 m (+0.15 … +0.35)" in text
    table = rows.table(found)
    assert table.headings[1:3] == (("RMSE", "m, lower is better"), ("change", "m"))
    assert [cell.text for cell in table.groups[0].lines[1].cells[1:3]] == ["0.75", "+0.25"]
    headline = rows.headline(found, "slim")
    assert (headline.score, headline.change, headline.interval) == ("RMSE", "+0.25 m", "+0.15 … +0.35")


def test_trainings_of_other_metrics_are_drawn_apart() -> None:
    metres = Curve((), (), ((2, 1.0),), ((2, 0.5),), Metric("rmse", "RMSE", "lower", "m"))
    made = figures.training_curves({"a": Curve((), (), ((2, 1.0),), ((2, 50.0),)), "b": metres}, Colours())
    titles = {key: figure["layout"]["yaxis"]["title"]["text"] for key, figure in made.items()}
    assert titles == {
        "loss": "training loss",
        "validation top-1": "validation top-1 [%]",
        "validation RMSE": "validation RMSE [m]",
    }
    assert [trace["y"] for trace in made["validation RMSE"]["data"]] == [[0.5]]


def test_nothing_to_plot_gives_nothing(make_row, compare_rows) -> None:
    assert "latency" not in costs(compare_rows(make_row("dense", ms=None)))
    assert "MACs" not in costs(compare_rows(make_row("dense", macs=None)))
    assert figures.token_counts([], Colours()) is None
    assert figures.training_curves({}, Colours()) == {}


def test_token_counts_are_a_stair_in_the_models_colour(maps) -> None:
    colours = Colours({"dense": 0})
    (trace,) = figures.token_counts([("slim", maps)], colours)["data"]
    assert (trace["x"], trace["y"], trace["name"], trace["meta"]["series"]) == ([0, 1], [5, 4], "slim", 1)


def test_training_shows_what_was_logged(comparison) -> None:
    curve = Curve(loss=((1, 2.0), (2, 1.5)), lr=((1, 0.1),), epoch_loss=((2, 1.75),), score=())
    made = figures.training_curves({"dense": curve}, Colours())
    assert list(made) == ["loss", "rate"], "no validation, no plot of it"
    steps, epochs = made["loss"]["data"]
    assert (steps["y"], epochs["y"]) == ([2.0, 1.5], [1.75])


def test_a_training_of_one_logged_point_is_a_point(comparison) -> None:
    long = Curve(loss=((1, 2.0), (2, 1.5)), lr=((1, 0.1), (2, 0.1)), epoch_loss=(), score=())
    short = Curve(loss=(), lr=((4, 0.1),), epoch_loss=((4, 1.75),), score=())
    made = figures.training_curves({"long": long, "short": short, "none": Curve((), (), (), ())}, Colours())
    assert [(t["name"], t["mode"], t["y"]) for t in made["loss"]["data"] if "opacity" not in t] == [
        ("long", "lines", [2.0, 1.5]),
        ("short", "lines+markers", [1.75]),
    ]
    assert [t["mode"] for t in made["rate"]["data"]] == ["lines", "lines+markers"]
    assert [one["name"] for one in made["rate"]["legend"]] == ["long", "short"], "no switch for what is not drawn"


def test_calibration_is_drawn_by_runtime(comparison, evidence) -> None:
    made = figures.calibration(comparison, evidence, Colours())
    assert list(made) == ["torch", "openvino"]
    figure, by_model = made["torch"]
    assert list(by_model) == ["dense", "slim"]
    # dense: three answers at 0.9 of which two are right, one right at 0.5.
    assert by_model["dense"].ece == pytest.approx((3 * abs(2 / 3 - 0.9) + abs(1 - 0.5)) / 4)
    assert figure["data"][1]["customdata"] == [1, 3]


def test_names_are_not_read_as_markup(make_row, compare_rows) -> None:
    figure = costs(compare_rows(make_row("dense"), make_row("<b>x</b>%{y}")))["latency"]
    assert points(figure)[1]["name"] == "&lt;b&gt;x&lt;/b&gt;%{y}"
    assert "<b>" not in points(figure)[1]["hovertemplate"] and "%{y}" not in points(figure)[1]["hovertemplate"]
