from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leanvit.anatomy import Ops, open_model
from leanvit.anatomy.parts.tokens import take_tokens, unmerge
from leanvit.errors import BadInput, Refused
from leanvit.recipe.registry import make_method
from leanvit.recipe.structure import check_structure
from leanvit.recipe.text import parse_with
from leanvit.tokens.evit.method import EViT, KeepRateSchedule, default_blocks, keep_rate_at, reorganize
from leanvit.tokens.tome import ToMe
from matrix import every
from tokens.reduction import VARIANTS, explicit, gradients, images, lengths_in_mlps, operators, reduced

TWO = EViT(keep_rate=0.6, blocks=(1, 2))  # 16 patches: 10 + fused, then 7 + fused


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("evit", [EViT(keep_rate=1.0), EViT(keep_rate=(1, 1.0, 1, 1)), EViT(keep_rate=0.99, tokens=16)])
def test_off_is_exact(tiny, variant: str, evit: EViT) -> None:
    model = tiny(**VARIANTS[variant])
    want = model(images())
    assert torch.equal(reduced(model, evit)(images()), want)


def test_rate_one_puts_nothing_in(tiny) -> None:
    model = reduced(tiny(), EViT(keep_rate=1))
    assert not any(list(block.steps()) for block in model.blocks) and not model.reduces_tokens


def test_the_state_dict_does_not_change(tiny) -> None:
    model = tiny()
    before = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in reduced(model, TWO).state_dict().items()} == before


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fuse", [True, False])
def test_tokens_leave_before_the_mlp(tiny, variant: str, fuse: bool) -> None:
    model = reduced(tiny(**VARIANTS[variant]), EViT(keep_rate=0.6, blocks=(1, 2), fuse=fuse))
    first = 10 + fuse
    second = math.ceil(0.6 * first) + fuse
    want = [model.num_prefix_tokens + n for n in (16, first, second, second)]
    assert lengths_in_mlps(model, images()) == want
    assert list(model.trace(images())[1].tokens) == want


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_score_row_alone_equals_the_full_map(tiny, variant: str) -> None:
    model = reduced(tiny(**VARIANTS[variant]), TWO)
    fused, seen = model.trace(images(), tap=frozenset("*"))
    full, mapped = explicit(model).trace(images(), tap=frozenset("*"))
    assert torch.equal(seen.taps["blocks.1.topk"], mapped.taps["blocks.1.topk"])
    torch.testing.assert_close(fused, full, rtol=1e-5, atol=1e-5)


def test_scores_are_float32_under_autocast(tiny) -> None:
    model = reduced(tiny(), TWO)
    seen = []
    model.blocks[1].between[0].register_forward_pre_hook(lambda m, args: seen.append(args[1].cls_attn.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(images()).float()).all()
    assert seen == [torch.float32]


def test_logits_of_an_image_do_not_depend_on_the_batch(tiny) -> None:
    model, x = reduced(tiny(), TWO), images(5)
    alone = torch.cat([model(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(model(x), alone, rtol=1e-5, atol=1e-5)


def test_shuffled_patches_give_the_same_selection(tiny) -> None:
    """Position embeddings move with the patches, through the seam after `embed`."""
    model, order = reduced(tiny(), TWO), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    x, state = model.embed(images(), model.start(images(), tap=frozenset("*")))
    shuffled = torch.cat([x[:, :1], x[:, 1:][:, order]], dim=1)
    plain, a = model.run(x, state)
    mixed, b = model.run(shuffled, state)
    assert torch.equal(order[b.taps["blocks.1.topk"]], a.taps["blocks.1.topk"])
    torch.testing.assert_close(model.classify(mixed, b)[0], model.classify(plain, a)[0], rtol=1e-4, atol=1e-5)


def test_the_fused_token_is_the_raw_weighted_sum() -> None:
    x, scores = torch.randn(2, 8, 3), torch.rand(2, 6)
    kept = scores.topk(4).indices
    out = reorganize(x, kept, prefix=2, scores=scores)
    for b in range(2):
        rest = [j for j in range(6) if j not in kept[b].tolist()]
        want = [x[b, :2], x[b, 2 + kept[b]], sum(scores[b, j] * x[b, 2 + j] for j in rest)[None]]
        torch.testing.assert_close(out[b], torch.cat(want))


def test_a_distilled_model_keeps_both_tokens_and_the_class_token_scores(tiny) -> None:
    model = tiny("deit_tiny_distilled_patch16_224")
    lean = reduced(model, EViT(keep_rate=0.6, blocks=(1,), fuse=False))
    got, state = explicit(lean).trace(images(), tap=frozenset("*"))
    dense = explicit(open_model(copy.deepcopy(model)))
    x, _ = dense.run(*dense.embed(images(), dense.start(images())), 0, 1)
    attn = dense.blocks[1].attn
    q, k, _ = attn.split_heads(Ops(), attn.qkv(dense.blocks[1].norm1(x)))
    a = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1)[:, :, 0, 2:].mean(1)
    assert torch.equal(state.taps["blocks.1.topk"], a.topk(10).indices)
    assert state.tokens == (18, 12, 12, 12) and torch.isfinite(got).all()


def test_owner_says_kept_fused_or_dropped(tiny) -> None:
    for fuse in (True, False):
        model = reduced(tiny(), EViT(keep_rate=0.6, blocks=(1,), fuse=fuse))
        x, state = model.embed(images(), model.start(images(), trace=True, tap=frozenset("*")))
        x, state = model.run(x, state, 0, 2)
        kept = state.taps["blocks.1.topk"]
        for b in range(3):
            want = [11 if fuse else -1] * 16
            for place, patch in enumerate(kept[b].tolist()):
                want[patch] = 1 + place
            assert state.owner[b].tolist() == want
        assert torch.equal(state.taps["blocks.1.fused"], state.owner == 11)
        grid = unmerge(x, state.owner)
        assert grid.shape == (3, 16, 48)
        assert torch.equal(take_tokens(grid, kept), x[:, 1:11])
        if not fuse:
            assert (grid[state.owner < 0] == 0).all()


def test_owner_across_two_reductions(tiny) -> None:
    model = reduced(tiny(), TWO)
    _, state = model.trace(images(), trace=True, tap=frozenset("*"))
    first, kept = state.taps["blocks.1.owner"], state.taps["blocks.2.topk"]
    for b in range(3):
        place = {1 + patch: 1 + at for at, patch in enumerate(kept[b].tolist())}
        assert state.owner[b].tolist() == [place.get(t, 8) for t in first[b].tolist()]
    assert state.size is None  # evit itself weighs no token by its patches


def test_sizes_go_on_adding_up_where_another_method_counts_them(tiny) -> None:
    model = reduced(reduced(tiny(), ToMe(r=[3, 0, 0, 0])), EViT(keep_rate=0.5, blocks=(2,)))
    _, state = model.trace(images(), trace=True)
    sizes = torch.stack([torch.bincount(row, minlength=state.size.shape[1])[1:] for row in state.owner])
    assert torch.equal(state.size[:, 1:], sizes.float())


def test_no_owner_without_trace(tiny) -> None:
    assert reduced(tiny(), TWO).trace(images())[1].owner is None


def test_the_run_time_rate_acts_only_where_tokens_are_reduced(tiny) -> None:
    model = reduced(tiny(), EViT(keep_rate=0.6, blocks=(1,)))
    assert model.trace(images(), keep_rate=0.25)[1].tokens == (17, 6, 6, 6)
    dense = reduced(tiny(), EViT(keep_rate=1.0))
    assert torch.equal(model(images(), keep_rate=1.0), dense(images()))
    for bad in (0, 1.5, -0.1, True):
        with pytest.raises(BadInput, match="run-time keep_rate is"):
            model(images(), keep_rate=bad)


def test_tokens_override_the_rate(tiny) -> None:
    everywhere = reduced(tiny(), EViT(keep_rate=(1, 0.5, 1, 1), tokens=(12, 5, None, 3), fuse=False))
    assert everywhere.trace(images())[1].tokens == (13, 6, 6, 4)
    assert everywhere.trace(images(), keep_rate=0.9)[1].tokens == (13, 6, 6, 4)
    assert reduced(tiny(), EViT(tokens=4, blocks=(2,)))(images()).shape == (3, 7)
    with pytest.raises(BadInput, match=r"blocks\.1: tokens is 17, but only 16 patch tokens enter"):
        reduced(tiny(), EViT(tokens=17))(images())


@pytest.mark.parametrize("select", ["random", "lowest"])
def test_controls_select_otherwise(tiny, select: str) -> None:
    best = reduced(tiny(), EViT(keep_rate=0.5, blocks=(1,))).trace(images(), tap=frozenset("*"))[1]
    control = reduced(tiny(), EViT(keep_rate=0.5, blocks=(1,), select=select))
    got = control.trace(images(), tap=frozenset("*"))[1].taps["blocks.1.topk"]
    want = best.taps["blocks.1.topk"]
    assert got.shape == want.shape
    if select == "lowest":
        assert all(not set(g) & set(w) for g, w in zip(got.tolist(), want.tolist(), strict=True))
    else:
        assert (got == got[0]).all()
        other = reduced(tiny(), EViT(keep_rate=0.5, blocks=(1,), select=select, seed=1))
        assert not torch.equal(other.trace(images(), tap=frozenset("*"))[1].taps["blocks.1.topk"], got)


def test_gradients_survive_checkpointing(tiny) -> None:
    model = reduced(tiny(), TWO).train()
    want = gradients(model, images())
    model.set_grad_checkpointing()
    got = gradients(model, images())
    assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("fuse", every(2, [True, False]))
def test_exports_with_static_counts(tiny, fuse: bool) -> None:
    model = reduced(tiny(), EViT(keep_rate=0.6, blocks=(1, 2), fuse=fuse))
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(4),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(images(7)), model(images(7)), rtol=1e-5, atol=1e-5)
    assert "topk" in operators(exported) and not operators(exported) & {"item", "nonzero", "_local_scalar_dense"}
    fixed = torch.export.export(model, (images(1),))
    torch.testing.assert_close(fixed.module()(images(1)), model(images(1)), rtol=1e-5, atol=1e-5)


def test_the_structure_can_be_edited(tiny) -> None:
    model = open_model(tiny())
    structure = EViT(keep_rate=0.5).learn(model)
    assert structure == {"blocks": [{"block": i, "keep_rate": 0.5, "tokens": None} for i in (1, 2, 3)]}
    structure["blocks"][0]["keep_rate"] = 0.25
    EViT(keep_rate=0.5, fuse=False).shape(model, structure)
    assert model.trace(images())[1].tokens == (17, 5, 3, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"block": 4, "keep_rate": 0.5}, "block is 4; accepted: 0 to 3"),
        ({"block": 1, "keep_rate": 1.5}, "keep_rate of block 1 is 1.5"),
        ({"block": 1, "keep_rate": 0.5, "tokens": 0}, "tokens of block 1 is 0"),
    ],
)
def test_a_bad_edit_is_named(tiny, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_structure(EViT(), {"blocks": [row]})
        EViT().shape(open_model(tiny()), {"blocks": [row]})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"keep_rate": 0}, "keep_rate is 0; accepted: a number above 0, up to 1"),
        ({"keep_rate": 1.01}, "keep_rate is 1.01"),
        ({"keep_rate": "0.7"}, "keep_rate is '0.7'"),
        ({"keep_rate": [0.7, float("nan")]}, r"keep_rate is \(0.7, nan\)"),
        ({"blocks": [-1]}, r"blocks is \(-1,\)"),
        ({"blocks": [1, 1]}, "accepted: a list of different block numbers"),
        ({"blocks": 3}, "blocks is 3; accepted"),
        ({"blocks": [1], "keep_rate": [0.5, 1, 1, 1]}, "give one of the two"),
        ({"tokens": 0}, "tokens is 0; accepted: a whole number, 1 or more"),
        ({"tokens": [3, 2.5]}, r"tokens is \(3, 2.5\)"),
        ({"fuse": 1}, "fuse is 1; accepted: true or false"),
        ({"select": "atention"}, "did you mean 'attention'"),
        ({"start_epoch": -1}, "start_epoch is -1"),
        ({"keep_rate": [0.5, 0.6, 1, 1], "shrink_epochs": 3}, "a schedule steers a single rate"),
    ],
)
def test_a_bad_knob_is_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make_method("evit", knobs)


def test_what_does_not_fit_the_model_is_named(tiny) -> None:
    with pytest.raises(BadInput, match="keep_rate lists 3 blocks; accepted: one value, or 4"):
        reduced(tiny(), EViT(keep_rate=(0.5, 0.5, 0.5)))
    with pytest.raises(BadInput, match="block is 4; accepted: 0 to 3"):
        reduced(tiny(), EViT(blocks=(1, 4)))
    with pytest.raises(Refused, match="class token"):
        reduced(tiny(class_token=False, global_pool="avg"), EViT())
    with pytest.raises(Refused, match=r"blocks\.1 already reduces tokens by evit"):
        reduced(tiny(), TWO, TWO)


def test_default_blocks_are_the_quarters() -> None:
    assert default_blocks(12) == (3, 6, 9) and default_blocks(24) == (6, 12, 18) and default_blocks(2) == (0, 1)
    assert parse_with("evit:keep_rate=0.5,blocks=[1,2],fuse=false") == EViT(keep_rate=0.5, blocks=(1, 2), fuse=False)


def test_the_schedule() -> None:
    knobs = {"steps_per_epoch": 10, "base": 0.6, "start_epoch": 2, "shrink_epochs": 4}
    assert [keep_rate_at(t, **knobs) for t in (0, 19, 20)] == [1.0, 1.0, 1.0]
    assert keep_rate_at(40, **knobs) == pytest.approx(0.8)
    assert [keep_rate_at(t, **knobs) for t in (60, 600)] == [0.6, 0.6]
    rates = [keep_rate_at(t, **knobs) for t in range(70)]
    assert rates == sorted(rates, reverse=True)
    assert keep_rate_at(0, steps_per_epoch=5, base=0.5) == 0.5


def test_the_schedule_steers_the_run_and_needs_no_memory(tiny) -> None:
    (callback,) = EViT(keep_rate=0.5, start_epoch=1, shrink_epochs=2).callbacks(open_model(tiny()))
    assert callback == KeepRateSchedule(0.5, start_epoch=1, shrink_epochs=2)
    run = SimpleNamespace(step=8, steps_per_epoch=4, context={"task": 1})
    callback.before_forward(run)
    assert run.context == {"task": 1, "keep_rate": pytest.approx(0.75)}
    assert EViT().callbacks(open_model(tiny())) == []


def test_achieved_is_counted_in_a_run(tiny) -> None:
    evit, tome = EViT(keep_rate=0.5, blocks=(1,)), ToMe(r=[0, 0, 3, 0])
    model = reduced(reduced(tiny(), evit), tome)
    assert evit.achieved(model, {}) == {"patch_tokens": [16, 9, 6, 6]} == tome.achieved(model, {})
