"""The benchmarks of LGViT run from end to end at their smallest; what they say follows from their figures."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from leanvit.exits.calibration import Point


@pytest.mark.e2e
def test_the_stream_holds_its_claim_beside_what_was_found(smoke: Any) -> None:
    found = smoke("lgvit_stream")
    assert found["measured_over_counted"] == pytest.approx(found["measured_speedup"] / found["counted_speedup"])
    assert (found["verdict"] == "reproduced") == (abs(found["measured_over_counted"] - 1) <= 0.15)
    assert sum(found["left_after_block"].values()) == pytest.approx(1) and found["images"] == 40
    assert found["thresholds"] and found["knobs"]["points"] == 2


def test_rules_are_held_against_blind_exiting_of_the_same_cost() -> None:
    heads = import_module("lgvit_heads")
    alone, layers = (40.0, 60.0, 80.0), (1, 2, 3)
    point = Point(threshold=0.5, top1=0.7, macs=1.0, mean_layer=2.0, shares=(0.25, 0.5, 0.25))
    assert heads.random_exits(point, alone) == 60
    ends = [replace(point, mean_layer=layer, top1=0.0) for layer in (1.1, 2.9)]
    assert heads.spread([*ends, point], alone, layers) == {"least": 10, "median": 10, "most": 10}


@pytest.mark.e2e
def test_kinds_of_heads_stand_side_by_side(smoke: Any) -> None:
    found = smoke("lgvit_heads")
    rows = {row["layout"]: row for row in found["rows"]}
    assert rows["linear"]["heads"] == ["linear"] * 2 and rows["convolution"]["heads"] == ["lph_dw"] * 2
    assert len({row["top1_percent"][-1] for row in rows.values()}) == 1, "the backbone is frozen"
    assert rows["linear"]["head_params"] < rows["convolution"]["head_params"]
    for row in rows.values():
        assert (
            row["rule"]["mean_layer"] <= 0.75 * 3 * 1.1 and row["macs_over_dense"][0] < 1 < row["macs_over_dense"][-1]
        )
        assert row["rule"]["points_lost"] == pytest.approx(
            row["top1_percent"][-1] - row["rule"]["top1_percent"], abs=1e-2
        )
    named = {trend["claim"]: trend for trend in found["trends"]}
    points = named["convolution heads above linear ones after block 1 of 3"]["points"]
    gap = rows["convolution"]["top1_percent"][0] - rows["linear"]["top1_percent"][0]
    assert points == [pytest.approx(gap, abs=1e-2)]
