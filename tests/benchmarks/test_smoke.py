"""The benchmarks of a reference run from end to end on digits, so that they never rot, and go on where they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), "--smoke", "--seeds", "1", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_reference_runs_writes_rows_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "reference.json"
    first = run("reference_runs.py", out, "--only", "evit", "--only", "evit + int8")
    assert [row["method"] for row in first["rows"]] == ["dense", "evit", "evit + int8"]
    evit, rounded = first["rows"][1:]
    assert evit["macs_ratio"] < 1 and evit["params"] == first["rows"][0]["params"]
    assert evit["patch_tokens"][-1] < evit["patch_tokens"][0]
    assert rounded["speed"]["openvino int8"]["speedup_vs"].keys() == {"dense int8", "dense f32"}
    assert any("within 1 point" in trend["claim"] for trend in first["trends"])
    again = run("reference_runs.py", out, "--only", "evit", "--only", "evit + int8", "--only", "int8")
    assert again["rows"][:3] == first["rows"], "rows that were there are not made again"
    assert again["rows"][3]["method"] == "int8" and len(again["commands"]) == 2


def test_torch_pruning_meets_the_macs(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    found = run("nvit_vs_torch_pruning.py", tmp_path / "pruning.json")
    rows = {row["method"]: row for row in found["rows"] if row["at"] == "macs"}
    assert {f"torch-pruning, {name}" for name in ("uniform", "bottleneck", "isomorphic", "global")} <= rows.keys()
    uniform, small = rows["torch-pruning, uniform"], rows["dense smaller, from scratch"]
    assert abs(uniform["cost_over_wanted"] - 1) < 0.15 and uniform["macs_ratio"] < 1  # widths of two: a staircase
    assert rows["torch-pruning, bottleneck"]["widths"]["embed"] == 24 > uniform["widths"]["embed"]
    assert uniform["export_ok"] and not uniform["reload_ok"] and small["reload_ok"]
    assert small["trained_images"] == 256


def test_composed_claims_follow_from_its_rows(tmp_path: Path) -> None:
    found = run("composed_deit_small.py", tmp_path / "composed.json")
    by_part = {row["part"]: row for row in found["rows"]}
    assert found["ratio_vs_dense_int8"] == by_part["speed"]["speedup_vs"]["dense int8"][0]
    assert found["accuracy_drop_points"] == -by_part["accuracy"]["change_points"]
    assert by_part["speed"]["sketch"]["macs_ratio"] < 1
