"""Saliency, groups, thresholds: against direct definitions."""

from __future__ import annotations

import pytest
import torch

from leanvit.prune.nvit.cost import Macs, gains
from leanvit.prune.nvit.groups import (
    all_open,
    clamped,
    closed_below,
    due,
    groups,
    least_counts,
    open_counts,
    threshold,
)
from leanvit.prune.nvit.saliency import divisors, scores, smoothed
from leanvit.prune.nvit.target import Target, reach
from leanvit.prune.nvit.units import Layout, UnitList
from prune.cutting import opened, pictures, units_of

SIZES = {"embed": 4, "head": 1, "qk": 2, "v": 2, "mlp": 8}


def scored(name: str = "vit_tiny_patch16_224") -> tuple:
    model = opened(name)
    model(pictures(model)).square().mean().backward()
    weights = dict(model.named_parameters())
    return model, weights, {key: p.grad for key, p in weights.items()}


def test_scores_are_signed_sums_squared_last() -> None:
    model, w, g = scored()
    units = units_of(model)
    found = units.split(scores(units, w, g, divisors(3)))
    p = {key: w[key].detach() * g[key] for key in w}
    at = "blocks.1"
    fc1 = (p[f"{at}.mlp.fc1.weight"].sum(1) + p[f"{at}.mlp.fc1.bias"]) ** 2
    torch.testing.assert_close(found[f"{at}.mlp"], fc1)
    qkv, bias = p[f"{at}.attn.qkv.weight"].view(3, 3, 8, 24), p[f"{at}.attn.qkv.bias"].view(3, 3, 8)
    q = qkv[0].sum((0, 2)) + bias[0].sum(0)  # not K
    torch.testing.assert_close(found[f"{at}.qk"], (q / 2) ** 2)
    v = qkv[2].sum((0, 2)) + bias[2].sum(0)
    torch.testing.assert_close(found[f"{at}.v"], (v / 2) ** 2)
    torch.testing.assert_close(found[f"{at}.head"], ((qkv.sum((0, 2, 3)) + bias.sum((0, 2))) / 12) ** 2)
    stream = p["patch_embed.proj.weight"].sum((1, 2, 3)) + p["patch_embed.proj.bias"]
    for i in range(3):
        stream = stream + p[f"blocks.{i}.attn.proj.weight"].sum(1) + p[f"blocks.{i}.attn.proj.bias"]
        stream = stream + p[f"blocks.{i}.mlp.fc2.weight"].sum(1) + p[f"blocks.{i}.mlp.fc2.bias"]
        stream = stream + p[f"blocks.{i}.attn.qkv.weight"].sum(0) + p[f"blocks.{i}.mlp.fc1.weight"].sum(0)
    torch.testing.assert_close(found["embed"], (stream / 3) ** 2)


def test_sums_that_are_not_finite_count_as_nothing() -> None:
    model, w, g = scored()
    g = {**g, "blocks.0.mlp.fc1.bias": torch.full((96,), float("nan"))}
    units = units_of(model, "mlp")
    found = units.split(scores(units, w, g, divisors(3)))
    assert not found["blocks.0.mlp"].any() and found["blocks.1.mlp"].any()


def test_the_average_takes_the_first_starts_anew_and_then_moves_slowly() -> None:
    new, average = torch.tensor([1.0]), torch.tensor([5.0])
    assert smoothed(average, new, 0) == 1
    torch.testing.assert_close(smoothed(average, new, 1), torch.tensor([0.1]))
    torch.testing.assert_close(smoothed(average, new, 2), torch.tensor([4.6]))


def test_groups_due() -> None:
    assert [due(step, 2, 100) for step in range(5)] == [1, 2, 4, 6, 8] and due(99, 2, 100) == 100


def test_groups_are_chunks_by_rank_and_the_best_stays() -> None:
    units = Layout((UnitList("blocks.0.mlp", "mlp", 0, 5), UnitList("blocks.1.mlp", "mlp", 1, 4)), ())
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.1, 0.1, 0.2, 0.1])
    ranked = groups(units, values, all_open(units), {"mlp": 2})
    assert [(g.units, g.members.tolist(), g.last) for g in ranked] == [
        ("blocks.0.mlp", [1, 3], False),
        ("blocks.0.mlp", [4, 2], False),
        ("blocks.0.mlp", [0], True),
        ("blocks.1.mlp", [0, 1], False),
        ("blocks.1.mlp", [3, 2], True),
    ]
    assert [round(g.score, 6) for g in ranked] == [3, 7, 5, 0.2, 0.3]
    assert threshold(ranked, 2) == pytest.approx(0.3) and threshold(ranked, 99) == 7
    gates = closed_below(units, ranked, all_open(units), threshold(ranked, 99))
    assert open_counts(units, gates) == {"blocks.0.mlp": 1, "blocks.1.mlp": 2} == least_counts(units, {"mlp": 2})


def test_closed_units_sort_before_open_ones_of_the_same_score() -> None:
    """Else a list whose scores are all zero could lose its last open units to closed ones."""
    units = Layout((UnitList("blocks.0.mlp", "mlp", 0, 4),), ())
    gates = torch.tensor([True, False, True, False])
    ranked = groups(units, torch.zeros(4), gates, {"mlp": 2})
    assert [g.members.tolist() for g in ranked] == [[1, 3], [0, 2]]


def test_group_sizes_fit_the_lists() -> None:
    units = units_of(opened("vit_tiny_patch16_224"))  # 24 channels, 3 heads of 8, 96 hidden
    assert clamped({"embed": 16, "head": 2, "qk": 8, "v": 8, "mlp": 16}, units) == {
        "embed": 12,
        "head": 1,
        "qk": 4,
        "v": 4,
        "mlp": 16,
    }


def test_gains_are_shares_of_the_dense_model_and_nothing_at_the_floors() -> None:
    model = opened("vit_tiny_patch16_224")
    units, macs = units_of(model), Macs.of(model)
    dims, dense = units.dims(), macs.total({})
    found = units.split(gains(units, macs, dims, dense))
    assert not found["blocks.0.qk"].any()  # 8 dims are the floor
    less = macs.total({"blocks.0.mlp": dims["blocks.0.mlp"] - 1})
    assert found["blocks.0.mlp"][0] == pytest.approx((dense - less) / dense)
    rows = macs.traffic.rows["blocks.0.mlp.fc1"]
    assert dense - less == 2 * rows * 24
    assert found["embed"][0] > 10 * found["blocks.0.mlp"][0]


@pytest.mark.parametrize("goal", [0.9, 0.55, 0.2])
def test_the_last_step_meets_the_target_within_a_percent(goal: float) -> None:
    model = opened("vit_tiny_patch16_224")
    units = units_of(model)
    target = Target("macs", goal, Macs.of(model), units, clamped(SIZES, units), 0.0)
    values = torch.rand(units.total, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gates = reach(target, values, all_open(units), goal)
    assert goal * 0.99 <= target.reached(gates) <= goal


@pytest.mark.parametrize("goal", [0.8, 0.55])
def test_a_latency_is_met_by_whole_groups_where_they_are_fine_enough(goal: float) -> None:
    model = opened("vit_tiny_patch16_224", embed_dim=48, depth=4)
    units = units_of(model)
    sizes = {"embed": 16, "head": 1, "qk": 4, "v": 4, "mlp": 4}
    values = torch.rand(units.total, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units.split(values)["embed"].sub_(1)  # first in turn, and a group of them is more than the goal takes
    widths = {}
    for kind in ("macs", "latency"):
        target = Target(kind, goal, Macs.of(model), units, sizes, 0.0)
        gates = reach(target, values, all_open(units), goal)
        assert goal * 0.99 <= target.reached(gates) <= goal
        widths[kind] = open_counts(units, gates)
    uneven = {kind: [u.name for u in units.lists if n[u.name] % sizes[u.kind]] for kind, n in widths.items()}
    assert uneven["macs"] and not uneven["latency"]


def test_single_units_close_for_a_latency_that_no_group_meets() -> None:
    model = opened("vit_tiny_patch16_224")
    units = units_of(model, "embed", "mlp")
    target = Target("latency", 0.9, Macs.of(model), units, {"embed": 12, "mlp": 48}, 0.0)
    values = torch.rand(units.total, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gates = reach(target, values, all_open(units), 0.9)
    assert 0.9 * 0.99 <= target.reached(gates) <= 0.9
    assert any(open_counts(units, gates)[u.name] % target.sizes[u.kind] for u in units.lists)
