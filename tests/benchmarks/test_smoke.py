"""The benchmarks of a trained reference run from end to end on digits, so that they never rot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanvit.errors import BadInput
from leanvit.recipe import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
TRENDS = Path(__file__).parents[2] / "benchmarks" / "trends"


@pytest.mark.e2e
def test_reference_runs_writes_rows_and_goes_on(smoke: Any) -> None:
    first = smoke("reference_runs", "--seeds", "1", "--only", "evit")
    dense, evit = first["rows"]
    assert dense["top1_percent"] > 30, "the reference has learned something"
    assert evit["macs_ratio"] < 1 and evit["params"] == dense["params"]
    assert evit["patch_tokens"] == [13] and evit["trained_images"] == 128
    assert [trend["claim"] for trend in first["trends"]] == ["after recovery: evit within 1 point of dense"]
    again = smoke("reference_runs", "--seeds", "1", "--only", "evit", "--rounds", "5")
    assert again["rows"] == first["rows"], "rows that were there are not made again"
    assert len(again["commands"]) == 2


@pytest.mark.e2e
@pytest.mark.extra("torch_pruning", of="bench")
def test_torch_pruning_meets_the_macs(smoke: Any) -> None:
    found = smoke("nvit_vs_torch_pruning", "--seeds", "1", "--at", "macs", "--variant", "uniform")
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
    found = smoke("token_methods", "--seeds", "1", "--work", str(tmp_path / "work"))
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
    found = smoke("composed_deit_small", "--seeds", "1")
    by_part = {row["part"]: row for row in found["rows"]}
    assert found["ratio_vs_dense_int8"] == by_part["speed"]["speedup_vs"]["dense int8"][0]
    assert found["accuracy_drop_points"] == -by_part["accuracy"]["change_points"]
    assert by_part["speed"]["sketch"]["macs_ratio"] < 1


def test_the_preset_of_the_composition_is_a_recipe_that_compress_reads() -> None:
    recipe = load_recipe(EXAMPLES / "composed.toml")
    assert [m.slug for m in recipe.methods] == ["nvit", "evit", "int8"] and recipe.recovery


def test_a_trend_is_a_table(smoke: Any) -> None:
    found = smoke("trends", str(TRENDS / "evit_tokens.toml"))
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["most attended", "random", "least attended", "tome"]
    assert rows["most attended"]["macs"] == rows["random"]["macs"] and rows["most attended"]["trained_images"] == 64
    assert found["title"] == "EViT's choice of tokens" and [t["than"] for t in found["trends"]] == list(rows)[1:]
    first = found["trends"][0]
    gap = rows["most attended"]["top1_percent"] - rows["random"]["top1_percent"]
    assert first["points"] == [pytest.approx(gap, abs=1e-3)] and first["holds"] == (gap >= 0)
    assert found["trends"][-1]["holds"] is None, "nothing was asked"
    assert smoke("trends", str(TRENDS / "evit_tokens.toml"))["rows"] == found["rows"], "nothing is made again"


def test_a_trend_of_models_trained_from_nothing(smoke: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    arm = """
        [[arms]]
        name = "{0} heads"
        model = "vit_tiny_patch16_224"
        kwargs = {{ patch_size = 4, embed_dim = 24, depth = 1, num_heads = {0} }}
    """
    head = 'title = "Two"\nabout = "Both."\ndata = "cifar10"\nimages = [3000, 750]\nepochs = 5\npixels = 16\n'
    path.write_text(head + arm.format(3) + arm.format(2))
    found = smoke("trends", str(path))
    assert [row["arm"] for row in found["summary"]] == ["3 heads", "2 heads"] and found["settings"]["data"] == "digits"
    assert all(one["mean"] == one["top1_percent"][0] for one in found["summary"])


def test_a_trend_with_a_name_that_nobody_knows_is_refused(smoke: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text((TRENDS / "evit_tokens.toml").read_text().replace("epochs =", "epoch ="))
    with pytest.raises(BadInput, match=r"odd\.toml: .*'epoch'"):
        smoke("trends", str(path))


@pytest.mark.e2e
def test_two_processes_read_each_sample_of_tar_shards_once(smoke: Any) -> None:
    found = smoke("tar_shards")
    (row,) = found["rows"]
    assert row["images"] == [1000, 1000] and row["read_of_set"] < 1
    assert row["resumed_images"] == 1232 and 0.6 < row["resumed_read_of_set"] / row["read_of_set"] < 0.63
