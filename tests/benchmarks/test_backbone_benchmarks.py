"""Benchmarks of DHVT and DualToken-ViT run from end to end at their smallest; trends follow from their rows."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


def test_small_data_goes_on_and_compares_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    out = tmp_path / "small_data.json"
    monkeypatch.setattr(sys, "argv", ["small_data.py", "--smoke", "--seeds", "1", "--only", "dhvt", "--out", str(out)])
    module = import_module("small_data")
    module.main()
    found = json.loads(out.read_text())
    whole, plain, wide = found["rows"]
    assert whole["params"] > plain["params"] and abs(wide["params"] / whole["params"] - 1) < 0.01
    assert [t["than"] for t in found["trends"]] == [plain["model"], wide["model"]]
    assert found["trends"][0]["points"] == [round(whole["top1_percent"] - plain["top1_percent"], 3)]
    assert found["trends"][0]["holds"] == (found["trends"][0]["mean"] >= 6) and found["trends"][1]["holds"] is None
    module.main()
    assert json.loads(out.read_text())["rows"] == found["rows"], "rows that were there are not made again"
