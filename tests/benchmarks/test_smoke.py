"""The benchmarks of a trained reference run from end to end on digits, so that they never rot."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from leanvit.recipe import load_recipe

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`smoke("reference_runs", "--only", "evit")`: what a script writes with --smoke; again: into the same file."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(script: str, *options: str) -> dict[str, Any]:
        out = tmp_path / f"{script}.json"
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--smoke", "--seeds", "1", "--out", str(out), *options])
        import_module(script).main()
        return json.loads(out.read_text())

    return run


@pytest.mark.e2e
def test_reference_runs_writes_rows_and_goes_on(smoke: Any) -> None:
    first = smoke("reference_runs", "--only", "evit")
    dense, evit = first["rows"]
    assert dense["top1_percent"] > 30, "the reference has learned something"
    assert evit["macs_ratio"] < 1 and evit["params"] == dense["params"]
    assert evit["patch_tokens"] == [13] and evit["trained_images"] == 128
    assert [trend["claim"] for trend in first["trends"]] == ["after recovery: evit within 1 point of dense"]
    again = smoke("reference_runs", "--only", "evit", "--rounds", "5")
    assert again["rows"] == first["rows"], "rows that were there are not made again"
    assert len(again["commands"]) == 2


@pytest.mark.e2e
@pytest.mark.extra("torch_pruning", of="bench")
def test_torch_pruning_meets_the_macs(smoke: Any) -> None:
    found = smoke("nvit_vs_torch_pruning", "--at", "macs", "--variant", "uniform")
    rows = {row["method"]: row for row in found["rows"] if row["at"] == "macs"}
    if "nvit" in rows:
        assert rows["nvit"]["trained_images"] == rows["nvit"]["pruning_images"] + 128
        assert rows["nvit"]["reload_ok"] and rows["nvit"]["export_ok"]
    uniform, small = rows["torch-pruning, uniform"], rows["dense smaller, from scratch"]
    assert 0.85 < uniform["cost_over_wanted"] < 1.15, "widths of two channels: a staircase"
    assert uniform["widths"]["embed"] < 24 and uniform["macs_ratio"] < 1
    assert uniform["export_ok"] and not uniform["reload_ok"] and small["reload_ok"]
    assert small["trained_images"] == 256


def test_token_methods_hold_a_row_for_each_method_and_seed(smoke: Any, tmp_path: Path) -> None:
    found = smoke("token_methods", "--work", str(tmp_path / "work"))
    assert [row["method"] for row in found["rows"]] == [
        "baseline",
        "evit",
        "tome",
        "evit-select-random",
        "evit-select-lowest",
    ]
    assert {trend["claim"] for trend in found["trends"]} == {
        "EViT above random tokens",
        "EViT above the least attended tokens",
    }
    assert all(0.5 < row["macs_ratio"] < 1 and row["speedup"]["torch f32"][0] > 0 for row in found["rows"][1:])


@pytest.mark.e2e
def test_composed_claims_follow_from_its_rows(smoke: Any) -> None:
    found = smoke("composed_deit_small")
    by_part = {row["part"]: row for row in found["rows"]}
    assert found["ratio_vs_dense_int8"] == by_part["speed"]["speedup_vs"]["dense int8"][0]
    assert found["accuracy_drop_points"] == -by_part["accuracy"]["change_points"]
    assert by_part["speed"]["sketch"]["macs_ratio"] < 1


def test_the_preset_of_the_composition_is_a_recipe_that_compress_reads() -> None:
    recipe = load_recipe(Path(BENCHMARKS).parent / "examples" / "composed.toml")
    assert [m.slug for m in recipe.methods] == ["nvit", "evit", "int8"] and recipe.recovery
