from __future__ import annotations

import io
import json

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
        "top1_percent": Interval(79.5, 78.1, 80.9, 3000, "percent"),
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
        speedup_vs_baseline=Spread(2.5, 2.4, 2.6),
        samples_s=(0.013, 0.02, 0.021),
        notes=("the speed-up holds the change of runtime, torch to openvino",),
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
        (lambda d: d["rows"][1].pop("top1_percent"), "rows.1.top1_percent: Field required"),
        (lambda d: d.update(images="3000"), "images: Input should be a valid integer"),
        (lambda d: d["rows"][0]["latency_ms"].update(median=float("nan")), "finite number"),
        (lambda d: d.update(format=2), "comparison of format 2; this leanvit reads format 1"),
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
    console = Console(width=320, record=True, file=io.StringIO())
    console.print(comparison.table())
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
    assert "lean [int8]: the speed-up holds the change of runtime" in " ".join(text.split())
    assert "3000 images of 3x224x224" in text
