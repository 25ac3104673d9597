from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leanvit.anatomy import open_model
from leanvit.anatomy.arithmetic.score import Phases, proportional
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.recipe import Plan, Root, compress, create, load, save
from leanvit.recipe.history import shape
from leanvit.recipe.learning import Data
from leanvit.tokens.diffrate.cost import Costs, uniform
from leanvit.tokens.diffrate.merging import match, merge, merged_sizes
from leanvit.tokens.diffrate.method import DiffRate
from leanvit.tokens.diffrate.search import Rate, lists_of, masked_softmax, rates, searching, settled
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, recover
from tokens.reduction import VARIANTS, explicit, images, lengths_in_mlps, operators, reduced
from training.tiny_training import make_data, make_preprocess

LISTS = {"prune": (17, 15, 12, 8), "merge": (17, 12, 12, 5)}
SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "in_chans": 1, "num_classes": 4}
# DeiT-S at 2.9 GMACs, as published with its counter: patch embedding of 197 tokens, MLPs of four times the width
DEIT_S = (
    (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3),
    (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3),
)


def data(images: int = 64) -> Data:
    return Data(make_data(images), make_preprocess(), batch_size=16)


# --- the algorithm ---------------------------------------------------------------


def test_tokens_merge_into_plain_means_of_the_most_similar() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    x = torch.stack([east, east, north, 3 * east + north, 2 * north, -north]).unsqueeze(0)
    matching = match(x, 3)
    assert matching.target.tolist() == [[1, 2, 1]], "never into the class token, though it is as similar as token 1"
    want = torch.stack([east, (east + 3 * east + north - north) / 3, (north + 2 * north) / 2])
    torch.testing.assert_close(merge(x, matching), want.unsqueeze(0))


def test_sizes_are_conserved_where_tokens_are_alike_and_stay_above_zero() -> None:
    alike = torch.ones(1, 6, 4)
    assert merged_sizes(torch.ones(1, 6), match(alike, 3)).sum() == pytest.approx(6)
    apart = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    assert (merged_sizes(torch.ones(1, 4), match(apart, 2)) > 0).all()


def test_a_merge_by_product_is_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 9, 5)
    matching = match(x, 4)
    want = merge(x, matching)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(merge(x, matching), want)


def test_the_cost_of_a_published_schedule() -> None:
    each = [(float(factor * 384**power),) * 12 for factor, power in ((4, 2), (2, 1), (8, 2))]
    costs = Costs(197, 0, *each, fixed=197 * 384 * 768 + 384 * 1000.0)
    assert costs.dense / 1e9 == pytest.approx(4.5992, abs=5e-5)
    assert costs.macs(*DEIT_S) / 1e9 == pytest.approx(2.9053, abs=5e-5)


@pytest.mark.parametrize("variant", ["plain", "registers"])
def test_costs_are_what_is_counted(tiny, variant: str) -> None:
    model = tiny(**VARIANTS[variant])
    costs = Costs.of(open_model(copy.deepcopy(model)))
    lean = reduced(copy.deepcopy(model), DiffRate(**LISTS))
    assert costs.dense == count(open_model(model), (3, 32, 32)).macs
    counted = count(lean, (3, 32, 32)).macs
    assert counted == pytest.approx(costs.macs(*LISTS.values()), rel=0.02) and counted < 0.9 * costs.dense


# --- rates -----------------------------------------------------------------------


def test_a_rate_starts_at_the_mean_of_its_candidates() -> None:
    rate = Rate(18, 4)
    assert rate.candidates.tolist() == [18, 14, 10, 6, 2] and rate.count == 11 and rate.kept() == 11
    assert Rate(17, 4).count == math.ceil((17 + 13 + 9 + 5 + 1) / 5) + 1
    assert Rate(18, 19).count == 19, "one candidate: all tokens stay"


def test_survival_adds_up_to_the_mean() -> None:
    rate = Rate(30, 4)
    with torch.no_grad():
        rate.logits.normal_()
    survival = rate.survival().detach()
    assert survival[1:].sum() == pytest.approx(float(rate.expected().detach()) - 1, rel=1e-5)
    assert survival[0] == pytest.approx(1)


def test_a_mask_is_hard_and_its_gradient_is_that_of_survival() -> None:
    rate, weights = Rate(12, 3), torch.randn(13)
    with torch.no_grad():
        rate.logits.normal_()
    mask = rate.mask(11)
    assert mask.tolist() == [1.0] * rate.count + [0.0] * (11 - rate.count) + [1.0] * 2
    ours, survival = (torch.autograd.grad((t * weights).sum(), rate.logits)[0] for t in (mask, rate.survival()))
    assert torch.equal(ours, survival)


def test_a_warm_start_is_where_it_should_be() -> None:
    rate = Rate(64, 4)
    for wanted in (65, 60, 33, 5):
        rate.start_at(wanted)
        assert abs(float(rate.expected().detach()) - wanted) < 0.6


def test_the_gradient_of_the_cost_is_that_of_its_relaxed_formula() -> None:
    """Where pruning is what binds, the derivative by each count is the finite difference of the exact formula."""
    costs = Costs(17, 0, (48.0,) * 3, (8.0,) * 3, (128.0,) * 3, 100.0)
    prune, merge_ = [15.0, 12.0, 9.0], [99.0] * 3
    counts = [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in prune]
    others = [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in merge_]
    costs.macs(counts, others).backward()
    for i in range(3):
        more, less = ([n + by * (j == i) for j, n in enumerate(prune)] for by in (1e-4, -1e-4))
        difference = (costs.macs(more, merge_) - costs.macs(less, merge_)) / 2e-4
        assert counts[i].grad.item() == pytest.approx(difference, rel=1e-5)
        assert others[i].grad == counts[i].grad, "both get it, whichever is the smallest"


def test_masked_attention_is_attention_over_what_is_there() -> None:
    scores, mask = torch.randn(2, 3, 6, 6), torch.tensor([[1.0, 1, 1, 0, 1, 0], [1.0, 1, 0, 0, 1, 1]])
    weights = masked_softmax(scores, mask)
    for b in range(2):
        there = mask[b].bool()
        want = scores[b][:, there][:, :, there].softmax(dim=-1)
        torch.testing.assert_close(weights[b][:, there][:, :, there], want, rtol=1e-4, atol=1e-5)
        assert (weights[b][:, there][:, :, ~there] < 1e-5).all()
        alone = weights[b][:, ~there].diagonal(offset=0, dim1=1, dim2=2)
        assert weights[b].sum(-1).allclose(torch.ones(3, 6)) and alone.numel()


# --- in a model ------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_tokens_kept_is_exact_and_ranked_is_close(tiny, variant: str) -> None:
    model = tiny(**VARIANTS[variant])
    want = model(images())
    off = reduced(copy.deepcopy(model), DiffRate(prune=[17] * 4))
    assert torch.equal(off(images()), want) and not any(list(block.steps()) for block in off.blocks)
    ranked = open_model(model)
    rows = [{"block": i, "prune": 99, "merge": 99} for i in range(4)]
    DiffRate(prune=[99] * 4).shape(ranked, {"blocks": rows})
    torch.testing.assert_close(ranked(images()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_leave_before_the_mlp(tiny, variant: str) -> None:
    lean = reduced(tiny(**VARIANTS[variant]), DiffRate(**LISTS))
    want = [lean.num_prefix_tokens + n for n in (16, 11, 11, 4)]
    assert lengths_in_mlps(lean, images()) == want
    x, seen = lean.trace(images(), tap=frozenset("*"))
    full, mapped = explicit(lean).trace(images(), tap=frozenset("*"))
    assert torch.equal(seen.taps["blocks.1.order"], mapped.taps["blocks.1.order"])
    torch.testing.assert_close(x, full, rtol=1e-4, atol=1e-5)


def test_every_patch_is_in_a_token_or_dropped(tiny) -> None:
    lean = reduced(tiny(), DiffRate(**LISTS))
    _, state = lean.trace(images(), trace=True)
    held = torch.stack([torch.bincount(row + 1, minlength=6) for row in state.owner])
    assert (held.sum(1) == 16).all() and (held[:, 1] == 0).all(), "nobody is in the class token"
    assert (held[:, 0] >= 2).all() and (held[:, 2:] >= 1).all(), "2 are pruned in block 1; every token holds someone"


def test_pruning_alone_is_the_same_while_searching_and_deployed(tiny) -> None:
    model = open_model(tiny())
    soft = searching(model, 1)
    for step in rates(soft):
        step.merge_rate.start_at(17)
    with torch.no_grad():
        for i, n in enumerate((17, 12, 9, 6)):
            step = rates(soft)[i]
            step.prune_rate.logits.copy_(-((step.prune_rate.candidates - (n - 1)) ** 2) * 50.0)
            step.merge_rate.logits.copy_(-((step.merge_rate.candidates - 16) ** 2) * 50.0)
    pruned, kept = lists_of(rates(soft))
    assert pruned == [17, 12, 9, 6] and kept == [17] * 4
    hard = reduced(tiny(), DiffRate(prune=pruned))
    torch.testing.assert_close(soft(images()), hard(images()), rtol=1e-4, atol=1e-4)


def test_attention_is_in_proportion_to_size_only_where_tokens_merge(tiny) -> None:
    merging, pruning = reduced(tiny(), DiffRate(**LISTS)), reduced(tiny(), DiffRate(prune=LISTS["prune"]))
    off = reduced(tiny(), DiffRate(**LISTS, prop_attn=False))
    assert all(b.attn.terms == (proportional,) for b in merging.blocks)
    assert not any(b.attn.terms for model in (pruning, off) for b in model.blocks)
    assert proportional(Phases(), pruning.trace(images())[1]).bias is None


def test_the_plan_is_what_a_person_edits(tiny) -> None:
    model = open_model(tiny())
    structure = DiffRate(**LISTS).learn(model)
    assert structure["blocks"][0] == {"block": 1, "prune": 15, "merge": 12}
    with pytest.warns(UserWarning, match="a list rises"):
        DiffRate(prune=(17, 10, 12, 8)).learn(model)
    with pytest.raises(BadInput, match="prune lists 2 blocks; accepted: 4"):
        DiffRate(prune=(17, 10)).learn(model)
    for row, why in (
        ({"block": 9, "prune": 5, "merge": 5}, "block is 9; accepted: 0 to 3"),
        ({"block": 1, "prune": 0, "merge": 5}, "prune of block 1 is 0"),
        ({"block": 1, "prune": 5, "merge": 1}, "no patch token stays"),
    ):
        with pytest.raises(BadInput, match=why):
            shape(model, Plan("diffrate", LISTS, {"blocks": [row], "dense_macs": 1.0, "reached": 1.0}))


def test_without_a_class_token_it_is_refused() -> None:
    model = create(Root("vit_medium_patch16_gap_240", {**SMALL, "num_heads": 2}))
    with pytest.raises(Refused, match="class"):
        compress(model, [DiffRate(prune=[9] * 4)])


def test_two_reductions_in_one_block_are_refused() -> None:
    model = create(Root("vit_tiny_patch16_224", SMALL))
    with pytest.raises((Refused, BadInput), match="block"):
        compress(model, [EViT(blocks=(1,)), DiffRate(prune=[17, 9, 9, 9])])


# --- the search ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "amp"), [("vit_tiny_patch16_224", "fp32"), ("deit_tiny_distilled_patch16_224", "bf16")]
)
def test_a_search_meets_its_target_and_leaves_the_weights_alone(tmp_path: Path, name: str, amp: str) -> None:
    torch.manual_seed(0)
    model = create(Root(name, SMALL))
    before: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}
    lean = compress(model, [DiffRate(macs=0.7, max_steps=30, batch_size=8, lr=0.1, amp=amp)], data())
    assert lean.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in lean.state_dict().items())
    macs = count(lean, (1, 8, 8)).macs / count(model, (1, 8, 8)).macs
    assert macs == pytest.approx(0.7, rel=0.02) and lean.patch_tokens()[0] == 16
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(torch.ones(2, 1, 8, 8)), lean(torch.ones(2, 1, 8, 8)))


@pytest.mark.parametrize("patch_drop_rate", [0.0, 0.5])  # of the dense model's training: not while searching
def test_only_rates_have_gradients_and_those_that_mask_tokens_have_them(patch_drop_rate: float) -> None:
    torch.manual_seed(0)
    soft = searching(create(Root("vit_tiny_patch16_224", {**SMALL, "patch_drop_rate": patch_drop_rate})), 1)
    with torch.no_grad():
        for i, step in enumerate(rates(soft)):  # each block prunes and merges some
            step.prune_rate.start_at(15 - 3 * i)
            step.merge_rate.start_at(13 - 3 * i)
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    torch.nn.functional.cross_entropy(soft.train()(x), y).backward()
    assert {n for n, p in soft.named_parameters() if p.requires_grad} == {
        f"blocks.{i}.between.0.{kind}_rate.logits" for i in range(4) for kind in ("prune", "merge")
    }
    for step in rates(soft)[1:3]:  # masks of the last block reach no class token any more
        assert all(rate.logits.grad.abs().sum() > 0 for rate in (step.prune_rate, step.merge_rate))
    last = rates(soft)[3].prune_rate.logits.grad
    assert last is None or not last.any()


def test_a_search_can_start_from_lists() -> None:
    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL))
    costs = Costs.of(model)
    lists = uniform(costs, 0.7, "merge")
    soft = rates(searching(model, 1))
    for step, pruned, kept in zip(soft, *lists, strict=True):
        step.prune_rate.start_at(pruned)
        step.merge_rate.start_at(kept)
    assert costs.macs(*settled(soft, costs, 0.7)) / costs.dense == pytest.approx(0.7, rel=0.02)
    warm = DiffRate(macs=0.7, prune=lists[0], merge=lists[1], max_steps=1, batch_size=8, lr=1e-6, min_lr=0)
    found = compress(model, [warm], data(16)).history.plans[0].structure
    assert all(abs(r["merge"] - lists[1][r["block"]]) <= 1 for r in found["blocks"])


def test_what_cannot_be_reached_is_refused_before_any_work() -> None:
    model = create(Root("vit_tiny_patch16_224", SMALL))
    for how in ("learned", "prune", "merge"):
        with pytest.raises(
            Refused, match=r"macs 0\.1 cannot be reached: .* the least that token reduction leaves 0\.[34]"
        ):
            compress(model, [DiffRate(macs=0.1, search=how, batch_size=8)], data(8))


@pytest.mark.parametrize("how", ["prune", "merge"])
def test_uniform_schedules_meet_the_target(how: str) -> None:
    model = create(Root("vit_tiny_patch16_224", SMALL))
    lean = compress(model, [DiffRate(macs=0.7, search=how)])
    macs = count(lean, (1, 8, 8)).macs / count(model, (1, 8, 8)).macs
    assert macs == pytest.approx(0.7, rel=0.03)
    assert (lean.trace(torch.ones(1, 1, 8, 8))[1].size is not None) == (how == "merge")


def test_what_a_later_method_takes_is_no_miss() -> None:
    lean = compress(create(Root("vit_tiny_patch16_224", SMALL)), [DiffRate(macs=0.7, search="prune")])
    (plan,) = lean.history.plans
    more, less = (DiffRate(macs=share, search="prune") for share in (0.9, 0.5))
    assert "macs 0.9 was requested" in more.check(lean, dict(plan.structure))[-1]
    lean.history = replace(lean.history, plans=(plan, replace(plan, slug="nvit")))
    assert more.check(lean, dict(plan.structure)) == []
    assert "macs 0.5 was requested" in less.check(lean, dict(plan.structure))[-1]


@pytest.mark.e2e
def test_it_is_recovered_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL))
    lean = compress(model, [DiffRate(macs=0.7, search="merge")])
    recover(lean, model, make_data(16), preprocess=make_preprocess(), config=FitConfig(epochs=1, batch_size=8))
    lean.eval()
    x = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(lean, (x,))
    assert not operators(exported) & {"item", "nonzero", "index_add", "scatter_reduce"}
    export(lean, tmp_path / "artefact", to="openvino", preprocess=make_preprocess(), batch=2)
    torch.testing.assert_close(torch.as_tensor(load_artefact(tmp_path / "artefact")(x)), lean(x), rtol=1e-3, atol=1e-4)
