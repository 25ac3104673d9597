from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from leanvit.errors import BadInput, CheckpointError
from leanvit.measure import Change, Comparison, Interval, Row, Spread


def row(name: str, **columns) -> Row:
    values = {
        "runtime": "torch",
        "precision": "f32",
        "params": 22_050_664,
        "macs_per_image": 4_598_882_304,
        "weights_bytes": 88_202_656,
        "disk_bytes": None,
        "scores": (Interval(79.5, 78.1, 80.9, 3000, "percent"),),
        "change_points": None,
        "agreement_percent": None,
        "latency_ms": Spread(40.0, 39.0, 42.0),
        "images_per_s": 200.0,
        "speedup_vs_baseline": None,
        "peak_memory_bytes": 30 * 2**20,
        "samples_s": (0.039, 0.04, 0.042),
        "notes": (),
    }
    return Row(name=name, **(values | columns))


@pytest.fixture
def comparison() -> Comparison:
    lean = row(
        "lean [int8]",
        runtime="openvino",
        params=None,
        macs_per_image=None,
        change_points=Change(-0.5, -1.1, 0.1, 3000, "points", 40, 25, 0.08),
        agreement_percent=Interval(97.1, 96.4, 97.7, 3000, "percent"),
        samples_s=(0.013, 0.02, 0.021),
        notes=("int8: a note",),
    )
    return Comparison("dense", 3000, (3, 224, 224), 8, 3, (row("dense"), lean), {"cpu": "a CPU", "threads": 2})


def test_json_round_trip(comparison: Comparison) -> None:
    text = comparison.to_json()
    assert Comparison.from_json(text) == comparison
    assert Comparison.from_json(text.encode()).to_json() == text


def edited(comparison: Comparison, edit) -> str:
    data = json.loads(comparison.to_json())
    edit(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(extra=1), "extra: Unexpected keyword"),
        (lambda d: d["rows"][0].update(extra=1), "rows.0.extra: Unexpected keyword"),
        (lambda d: d["rows"][1]["change_points"].update(extra=1), "extra: Unexpected keyword"),
        (lambda d: d["rows"][1].pop("scores"), "rows.1.scores: Field required"),
        (lambda d: d.update(images="3000"), "images: Input should be a valid integer"),
        (lambda d: d["rows"][0]["latency_ms"].update(median=float("nan")), "finite number"),
        (lambda d: d.update(format=3), "comparison of format 3; this leanvit reads formats 1 and 2"),
        (lambda d: d.pop("format"), "no JSON object with a format number"),
        (lambda d: d.update(baseline="other"), "baseline 'other'"),
        (lambda d: d["rows"].append(d["rows"][0]), "distinct names"),
    ],
)
def test_reading_is_strict(comparison: Comparison, edit, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Comparison.from_json(edited(comparison, edit))


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", "[" * 100_000, b"\xff\xfe\x00"])
def test_foreign_text_is_refused(text) -> None:
    with pytest.raises(CheckpointError, match="no JSON object"):
        Comparison.from_json(text)


def test_rows_by_name_and_ratios_of_rounds(comparison: Comparison) -> None:
    assert comparison.row("dense") is comparison.rows[0]
    with pytest.raises(BadInput, match="unknown row 'dens': did you mean 'dense'"):
        comparison.row("dens")
    assert comparison.ratio("dense", "lean [int8]").median == pytest.approx(2.0)  # of 3, 2 and 2


def test_table_names_units_and_leaves_out_empty_columns(comparison: Comparison) -> None:
    whole = replace(comparison, rows=(*comparison.rows, row("dense (openvino)", runtime="openvino")))
    console = Console(width=320, record=True, file=io.StringIO())
    console.print(whole.table())
    text = console.export_text()
    headings = (
        "top-1 [%]",
        "change [points]",
        "agreement [%]",
        "params [M]",
        "MACs [G/image]",
        "latency [ms/batch of 8]",
        "throughput [images/s]",
        "speed-up [x dense]",
        "peak memory [MiB]",
    )
    for heading in headings:
        assert heading in text
    assert "on disk" not in text  # no row has it
    assert "lean [int8]" in text and "-0.50" in text and "(-1.10 … +0.10)" in text
    assert "lean [int8]: int8: a note" in text
    assert "change of runtime: dense, openvino f32 instead of torch f32: 1.00x" in text
    assert "3000 images of 3x224x224" in text


# --- one speed-up, within one runtime -----------------------------------------------------------------------------


def timed(name: str, runtime: str, ms: float, precision: str = "f32", **columns) -> Row:
    own = {"latency_ms": Spread(ms, ms, ms), "samples_s": (ms / 1e3,) * 3}
    return row(name, runtime=runtime, precision=precision, **(own | columns))


def of_rows(*rows: Row) -> Comparison:
    return Comparison("dense", 3000, (3, 224, 224), 8, 3, rows, {"cpu": "a CPU", "threads": 2})


@pytest.mark.parametrize(
    ("name", "runtime", "precision", "reference", "factor"),
    [
        ("lean", "torch", "f32", "dense", 2),
        ("lean", "torch", "int8 simulated", "dense", 2),  # the precision is part of what is compared, and named
        ("lean (openvino)", "openvino", "int8", "dense (openvino)", 0.8),
        ("lean (openvino-bf16)", "openvino-bf16", "int8+bf16", "dense (openvino-bf16)", 0.6),
        ("lean (onnx)", "onnx", "f32", None, None),
        ("lean", None, None, None, None),
    ],
)
def test_a_speedup_is_within_one_runtime(name, runtime, precision, reference, factor) -> None:
    there = timed("dense (openvino)", "openvino", 4.0), timed("dense (openvino-bf16)", "openvino-bf16", 3.0)
    found = of_rows(timed("dense", "torch", 10.0), *there, timed(name, runtime, 5.0, precision))
    own = found.row(name)
    assert getattr(found.reference(own), "name", None) == reference
    assert getattr(own.speedup_vs_baseline, "median", None) == (factor and pytest.approx(factor))
    assert found.without_reference() == ([] if reference else [runtime or "unknown runtime"])


def test_a_model_at_two_precisions_in_a_runtime_is_compared_with_its_like() -> None:
    found = of_rows(
        timed("dense", "torch", 10.0),
        timed("dense (openvino)", "openvino", 4.0),
        timed("lean (openvino)", "openvino", 2.0),
        timed("dense int8 (openvino)", "openvino", 1.0, "int8", model="dense"),
        timed("lean int8 (openvino)", "openvino", 0.25, "int8", model="lean"),
    )
    assert [getattr(one.speedup_vs_baseline, "median", None) for one in found.rows] == [None, None, 2.0, None, 4.0]
    assert list(found.by_runtime()) == ["torch", "openvino f32", "openvino int8"]
    gains = [str(one)[:50] for one in found.runtime_changes()]
    assert gains == [
        "dense, openvino f32 instead of torch f32: 2.50x (2",
        "dense, openvino int8 instead of torch f32: 10.00x ",
    ]


def test_a_file_of_an_earlier_version_is_shown_by_the_rule() -> None:
    """Then a row had no model, another runtime's speed-up was against torch's baseline, and a note said so."""
    found = of_rows(
        timed("dense", "torch", 10.0),
        timed("lean", "torch", 5.0),
        timed("dense (openvino)", "openvino", 4.0),
        timed("lean (openvino)", "openvino", 1.0),
        timed("lean (openvino-bf16)", "openvino", 1.0, "bf16"),
    )
    content = json.loads(found.to_json())
    for one in content["rows"]:
        del one["model"]
        one["runtime"] = one["runtime"].removesuffix("-bf16")
        if "(" in one["name"]:
            one["speedup_vs_baseline"] = {"median": 10.0, "q25": 10.0, "q75": 10.0}
            one["notes"] = ["the speed-up holds the change of runtime, torch to openvino"]
    read = Comparison.from_json(json.dumps(content))
    assert read == found and Comparison.from_json(read.to_json()) == read
    assert [one.model for one in read.rows] == ["dense", "lean", "dense", "lean", "lean"]
    speedups = [one.speedup_vs_baseline and one.speedup_vs_baseline.median for one in read.rows]
    assert speedups == [None, 2.0, None, 4.0, None]
    assert [str(change) for change in read.runtime_changes()] == [
        "dense, openvino f32 instead of torch f32: 2.50x (2.50 … 2.50)"
    ]


def test_a_comparison_prints_itself_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    change = Change(-0.5, -1.1, 0.1, 3000, "points", 40, 25, 0.08)
    found = of_rows(
        timed("dense", "torch", 10.0),
        timed("evit-select-lowest + int8", "torch", 50.0, "int8 simulated", change_points=change),
        timed("dense (openvino)", "openvino", 4.0),
        timed("evit-select-lowest + int8 (openvino)", "openvino", 1.0, "int8", change_points=change),
        timed("tome (onnx)", "onnx", 3.0, change_points=change),
    )
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["model", "top-1", "[%]", "change", "[points]", "latency", "[ms]", "speed-up"]
    by_start = [" ".join(line.split()) for line in lines]
    for expected in (
        "in openvino",
        "evit-select-lowest + 79.50 -0.50 (-1.1 … +0.1) 1 4.00x",
        "tome 79.50 -0.50 (-1.1 … +0.1) 3 –",
        "no speed-up in onnx: dense was not timed there; measure it in onnx too",
        "evit-select-lowest + int8 (openvino): int8 against f32",
        "change of runtime: dense, openvino f32 instead of torch f32: 2.50x (2.50 … 2.50)",
    ):
        assert expected in by_start, expected
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(found)
    assert console.export_text().splitlines()[1].split() == lines[0].split()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["rows"][0].update(params=10**30), "rows.0.params: a figure beyond 1e"),
        (lambda d: d["rows"][1].update(macs_per_image=-1), "rows.1.macs_per_image: below 0"),
        (lambda d: d["rows"][1]["scores"][0].update(value=1e9), "rows.1.scores: not between 0 and 100"),
        (lambda d: d["rows"][1].update(samples_s=[0.0, 1.0, 1.0]), "rows.1.samples_s: not above 0"),
        (lambda d: d["rows"][1].update(samples_s=[1.0]), r"samples_s of \[1, 3\] rounds"),
        (lambda d: d["rows"][0]["latency_ms"].update(median=-1.0), "rows.0.latency_ms: not above 0"),
        (lambda d: d.update(images=0), "images: not a positive number"),
        (lambda d: d.update(input_size=[3, 8]), "input_size: not channels"),
    ],
)
def test_figures_that_no_measurement_gives_are_named(comparison: Comparison, edit, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Comparison.from_json(edited(comparison, edit))
