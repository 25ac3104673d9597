"""Benchmarks of the architectures run from end to end at their smallest; trends and ratios follow from their rows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn


def test_small_data_goes_on_and_compares_seed_by_seed(smoke: Any) -> None:
    found = smoke("small_data", "--seeds", "1", "--pairs", "dhvt")
    whole, plain, wide = found["rows"]
    assert whole["params"] > plain["params"] and abs(wide["params"] / whole["params"] - 1) < 0.01
    assert [t["than"] for t in found["trends"]] == [plain["model"], wide["model"]]
    assert found["trends"][0]["points"] == [round(whole["top1_percent"] - plain["top1_percent"], 3)]
    assert found["trends"][0]["holds"] == (found["trends"][0]["mean"] >= 6) and found["trends"][1]["holds"] is None
    again = smoke("small_data", "--seeds", "1", "--pairs", "dhvt")
    assert again["rows"] == found["rows"], "rows that were there are not made again"


@pytest.mark.parametrize("smoke_sizes", [True, False])
def test_small_data_compares_equal_sizes(smoke_sizes: bool) -> None:
    small_data = import_module("small_data")

    def params(name: str) -> list[int]:
        made = (one.built(0, num_classes=10) for one in small_data.pair(name, smoke=smoke_sizes).arms)
        return [sum(p.numel() for p in model.parameters()) for model in made]

    t2t, plain = params("t2t_vit")
    whole, bare, wide, every = params("dct_histo")
    assert abs(plain / t2t - 1) < 0.02
    assert bare < whole and abs(wide / whole - 1) < 0.01 and every > whole


def test_the_mask_benchmark_keeps_its_rows_by_seed(smoke: Any) -> None:
    first = smoke("gmm_mask_small_data", "--side", "gmm")
    twin, gmm = first["rows"]
    assert first["changes"] == {"gmm": pytest.approx(gmm["top1_percent"][0] - twin["top1_percent"][0])}
    assert len(twin["top1_percent"]) == 1 and gmm["mean"] == gmm["top1_percent"][0]
    assert smoke("gmm_mask_small_data", "--side", "gmm")["rows"] == first["rows"], "nothing is made again"


def test_throughput_times_deployed_forms_against_one_anchor(smoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("backbone_throughput")
    monkeypatch.setitem(module.GROUPS, "about 25 M", ("efficientformerv2_s0", "dhvt_tiny_imagenet_patch16"))
    found = smoke("backbone_throughput")
    anchor, timms, ours = found["rows"]
    assert [row["by"] for row in found["rows"]] == ["timm", "timm", "leanvit"]
    assert anchor["model"] == module.ANCHOR and anchor["faster_than_anchor"] == [1, 1, 1]
    for row in (timms, ours):
        assert row["largest_difference"] < 1e-4 and row["macs"] > 1e8
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"], rel=1e-2)
    assert smoke("backbone_throughput")["rows"] == found["rows"], "a group that is there is not timed again"


def test_norms_behind_convolutions_are_folded_into_them() -> None:
    form = import_module("backbone_throughput").candidate("efficientformerv2_s0").model
    left = [name for name, m in form.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ["norm"], "the last norm stands behind a sum, not behind a convolution"
    assert torch.isfinite(form(torch.randn(1, 3, 224, 224))).all()
