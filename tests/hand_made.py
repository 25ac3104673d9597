"""Comparisons and token maps made by hand: what a page is made of, without a model."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leanvit.measure import Change, Comparison, Interval, Row
from leanvit.measure.latency import Spread
from leanvit.runs.commands import Command
from leanvit.runs.evidence import Answers, Evidence
from leanvit.runs.logs import Curve
from leanvit.runs.record import Measurement, RunRecord
from leanvit.runs.saving import TargetRow
from leanvit.runs.token_maps import Picture, Reduction, TokenMaps

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def row(
    name: str, *, runtime: str = "torch", top1: float = 90.0, ms: float | None = 10.0, macs: int | None = 5_000_000
) -> Row:
    samples = () if ms is None else (ms / 1e3, 1.1 * ms / 1e3, 0.9 * ms / 1e3)
    first = name == "dense"
    return Row(
        name=name,
        runtime=runtime,
        precision="f32",
        params=None if macs is None else 1_000_000,
        macs_per_image=macs,
        weights_bytes=None,
        disk_bytes=2**21,
        scores=(Interval(top1, top1 - 3, top1 + 2, 100, "percent"),),
        change_points=None
        if first
        else Change(top1 - 90, top1 - 93, top1 - 88, 100, "points", lost=3, gained=1, p_value=0.625),
        agreement_percent=None if first else Interval(97.0, 92.0, 99.0, 100, "percent"),
        latency_ms=None if ms is None else Spread(ms, 0.95 * ms, 1.05 * ms),
        images_per_s=None if ms is None else 8000 / ms,
        speedup_vs_baseline=None,
        peak_memory_bytes=None,
        samples_s=samples,
        notes=(),
    )


def compared(*rows: Row) -> Comparison:
    return Comparison("dense", 4, (1, 8, 8), 8, 3, rows, {"cpu": "A Processor", "threads": 2})


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return row


@pytest.fixture
def compare_rows() -> Callable[..., Comparison]:
    return compared


@pytest.fixture
def comparison() -> Comparison:
    """Dense and slim in two runtimes: slim is twice as fast in the first, four times in the second."""
    return compared(
        row("dense"),
        row("slim", top1=89.0, ms=5.0, macs=3_000_000),
        row("dense (openvino)", runtime="openvino", ms=4.0, macs=None),
        row("slim (openvino)", runtime="openvino", top1=88.0, ms=1.0, macs=None),
    )


@pytest.fixture
def maps() -> TokenMaps:
    """Four patches, two blocks; the first fuses or merges two of them."""
    owners = ((1, 2, 2, 3),)
    return TokenMaps("slim", (2, 2), 1, (5, 4), (Reduction(0, "evit", 4, owners),), (Picture("a.png", 0, 1, PIXEL),))


@pytest.fixture
def evidence(comparison) -> Evidence:
    """Four images of classes 0, 0, 1, 1. Dense errs on the last; slim on the second (sure of it) and on the third."""
    dense = Answers(np.array([0, 0, 1, 0], np.int32), np.array([0.9, 0.9, 0.5, 0.9], np.float32))
    slim = Answers(np.array([0, 1, 0, 1], np.int32), np.array([0.8, 0.7, 0.6, 0.55], np.float32))
    return Evidence(
        data="digits",
        of=hashlib.sha256(comparison.to_json().encode()).hexdigest(),
        keys=("a", "b", "c", "d"),
        targets=np.array([0, 0, 1, 1], np.int32),
        answers={row.name: slim if "slim" in row.name else dense for row in comparison.rows},
    )


@pytest.fixture
def record(comparison, maps, evidence) -> RunRecord:
    command = Command("measure", "leanvit measure runs/slim", "2026-01-02T03:04:05+00:00", 1.5, {"torch": "2.9"}, "")
    return RunRecord(
        folder=Path("runs/slim"),
        name="evit",
        model="vit_tiny_patch16_224",
        model_args={"depth": 2},
        classes=("zero", "one"),
        data="digits",
        asked=(TargetRow("evit", {"keep_rate": 0.7}, {"tokens": [5, 4]}),),
        commands=(command,),
        measurements=(Measurement("measure.json", comparison, command.command, evidence, {"b": PIXEL}),),
        tokens=maps,
        curve=Curve(loss=((1, 2.0), (2, 1.5)), lr=((1, 0.1),), epoch_loss=((2, 1.75),), score=((2, 50.0),)),
        made_with={"timm": "1.0"},
    )
