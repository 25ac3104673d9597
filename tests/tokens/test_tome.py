from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanvit.anatomy import Phases, State, open_model
from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import take_tokens, unmerge
from leanvit.errors import BadInput, Refused
from leanvit.recipe.registry import make_method
from leanvit.recipe.structure import check_structure
from leanvit.recipe.text import parse_with
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome.matching import match, merge, shares
from leanvit.tokens.tome.method import ToMe, schedule
from matrix import every
from tokens.reduction import VARIANTS, explicit, gradients, images, lengths_in_mlps, operators, reduced

GAP = {"class_token": False, "global_pool": "avg"}
MODELS = {**VARIANTS, "no_class_token": GAP}


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(3, 25),
    prefix=st.integers(0, 5),
    r=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_a_merge_conserves_size_and_weighted_sum_and_protects(tokens: int, prefix: int, r: int, seed: int) -> None:
    tokens += prefix
    r = min(r, (tokens - prefix) // 2)
    generator = torch.Generator().manual_seed(seed)
    x, metric = torch.randn(2, tokens, 3, generator=generator), torch.randn(2, tokens, 4, generator=generator)
    size = 1 + torch.rand(2, tokens, generator=generator)
    matching = match(metric, r, even=(prefix + 1) // 2, odd=prefix // 2, keep_order=prefix > 0)
    share, after = shares(matching, size)
    merged, indices = merge(x, matching, share), matching.indices()
    assert merged.shape == (2, tokens - r, 3)
    torch.testing.assert_close(after.sum(1), size.sum(1))
    torch.testing.assert_close((merged * after[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-4, atol=1e-5)
    assert torch.equal(merged[:, :prefix], x[:, :prefix])
    assert torch.equal(after[:, :prefix], size[:, :prefix])
    assert (indices.sort(1).values.diff(dim=1) <= 1).all() and indices.amax() == tokens - r - 1  # every place is taken
    for b in range(2):  # each new token is the mean of what went into it
        for new in range(tokens - r):
            inside = indices[b] == new
            want = (x[b, inside] * size[b, inside, None]).sum(0) / size[b, inside].sum()
            torch.testing.assert_close(merged[b, new], want, rtol=1e-4, atol=1e-5)


def test_the_most_similar_pairs_merge() -> None:
    metric = torch.eye(8).roll(0)[None].clone()
    metric[0, 4] = metric[0, 3] * 5 + 0.1 * metric[0, 4]  # cosine, not dot product
    metric[0, 6] = metric[0, 1] + 0.5 * metric[0, 6]
    matching = match(metric, 2, even=1)
    assert matching.source[0].tolist() == [4, 6]
    indices = matching.indices()[0]
    assert indices[4] == indices[3] and indices[6] == indices[1]


def test_many_may_merge_into_one() -> None:
    metric = torch.tensor([[[0.0, 1], [1, 0], [1, 0.1], [-1, -1], [1, 0.2], [-1, 0]]])
    x, size = torch.arange(6.0).view(1, 6, 1), torch.tensor([[1.0, 1, 2, 1, 3, 1]])
    matching = match(metric, 2, even=1)
    share, after = shares(matching, size)
    out = merge(x, matching, share)
    assert out[0, :, 0].tolist() == pytest.approx([0, (1 + 2 * 2 + 3 * 4) / 6, 3, 5])
    assert after[0].tolist() == [1, 6, 1, 1]


def test_the_exported_kernel_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, metric = torch.randn(3, 20, 5), torch.randn(3, 20, 4)
    matching = match(metric, 7, even=1, odd=1)
    share, _ = shares(matching, 1 + torch.rand(3, 20))
    eager = merge(x, matching, share)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(merge(x, matching, share), eager, rtol=1e-5, atol=1e-6)


def test_schedules() -> None:
    assert schedule(8, 3) == [8, 8, 8]
    assert schedule((8, -1.0), 5) == [16, 12, 8, 4, 0]
    assert schedule((8, 1.0), 5) == [0, 4, 8, 12, 16]
    assert schedule((3, 4), 4) == [3, 4, 0, 0]
    assert schedule((5, 0.5), 1) == [2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tome", [ToMe(r=0), ToMe(r=(0, 0.5)), ToMe(r=[0, 0])])
def test_off_is_exact(tiny, model: str, tome: ToMe) -> None:
    dense = tiny(**MODELS[model])
    want = dense(images())
    lean = reduced(dense, tome)
    assert torch.equal(lean(images()), want)
    assert not any(list(b.steps()) or b.attn.terms for b in lean.blocks)


@pytest.mark.parametrize("model", MODELS)
def test_tokens_leave_before_the_mlp_and_patches_are_conserved(tiny, model: str) -> None:
    lean = reduced(tiny(**MODELS[model]), ToMe(r=5))
    p = lean.num_prefix_tokens
    n, want = 16, []
    for _ in range(4):
        n -= min(5, n // 2)
        want.append(p + n)
    assert lengths_in_mlps(lean, images()) == want
    logits, state = lean.trace(images(), trace=True)
    assert torch.isfinite(logits).all() and list(state.tokens) == want
    assert (state.size[:, :p] == 1).all() and (state.size[:, p:].sum(1) == 16).all()
    held = torch.stack([torch.bincount(row, minlength=p + n) for row in state.owner])
    assert torch.equal(held[:, p:].float(), state.size[:, p:]) and (held[:, :p] == 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_fused_kernel_with_sizes_equals_the_explicit_products(tiny, model: str) -> None:
    lean = reduced(tiny(**MODELS[model]), ToMe(r=5))
    fused = lean(images())
    torch.testing.assert_close(explicit(lean)(images()), fused, rtol=1e-5, atol=1e-5)


def test_proportional_attention_equals_repeated_keys() -> None:
    """A token of size s counts as s equal tokens do."""
    q, k, v = torch.randn(3, 1, 1, 4, 8).unbind(0)
    size = torch.tensor([[1.0, 2, 3, 1]])
    state = State(ops=TORCH, grid=(2, 2), num_prefix=0, size=size)
    bias = proportional(Phases(), state).bias
    times = size[0].long()
    got = TORCH.attention("a", q, k, v, scale=0.3, bias=bias, dropout=0.0)
    want = TORCH.attention(
        "a", q, k.repeat_interleave(times, 2), v.repeat_interleave(times, 2), scale=0.3, bias=None, dropout=0.0
    )
    torch.testing.assert_close(got, want)


def test_proportional_attention_can_be_off(tiny) -> None:
    on, off = (reduced(tiny(), ToMe(r=5, prop_attn=p)) for p in (True, False))
    assert not torch.allclose(on(images()), off(images()), atol=1e-4)
    assert all(b.attn.terms == (proportional,) for b in on.blocks) and not any(b.attn.terms for b in off.blocks)


def test_mean_pooling_weighs_by_size(tiny) -> None:
    lean = reduced(tiny(**GAP), ToMe(r=5))
    x, state = lean.run(*lean.embed(images(), lean.start(images())))
    tokens = lean.norm(x)
    mean = (tokens * state.size[..., None]).sum(1) / 16
    torch.testing.assert_close(lean(images()), lean.head(lean.fc_norm(mean)), rtol=1e-5, atol=1e-5)


def test_equal_tokens_merge_without_a_change(tiny) -> None:
    """On an image of equal patches (no positions) merging loses nothing: sizes carry all that is lost."""
    model = tiny(**GAP)
    torch.nn.init.zeros_(model.pos_embed)
    flat = torch.ones(1, 3, 32, 32)
    want = model(flat)
    torch.testing.assert_close(reduced(model, ToMe(r=5))(flat), want, rtol=1e-4, atol=1e-5)


def test_logits_of_an_image_do_not_depend_on_the_batch(tiny) -> None:
    lean, x = reduced(tiny(), ToMe(r=4)), images(5)
    alone = torch.cat([lean(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(lean(x), alone, rtol=1e-5, atol=1e-5)


def test_owner_and_unmerge(tiny) -> None:
    lean = reduced(tiny(), ToMe(r=[4, 3]))
    x, state = lean.embed(images(), lean.start(images(), trace=True, tap=frozenset("*")))
    x, state = lean.run(x, state, 0, 2)
    assert torch.equal(state.taps["blocks.1.owner"], state.owner) and state.taps["blocks.0.merged"].shape == (3, 4)
    grid = unmerge(x, state.owner)
    assert torch.equal(grid, take_tokens(x, state.owner)) and grid.shape == (3, 16, 48)
    assert all(len(set(row)) == 9 for row in state.owner.tolist())
    assert lean.trace(images())[1].owner is None


def test_gradients_survive_checkpointing(tiny) -> None:
    lean = reduced(tiny(), ToMe(r=4)).train()
    want = gradients(lean, images())
    lean.set_grad_checkpointing()
    got = gradients(lean, images())
    assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want)


def test_the_gradient_is_that_of_the_weighted_mean() -> None:
    x = torch.randn(2, 12, 3, dtype=torch.float64, requires_grad=True)
    matching = match(torch.randn(2, 12, 4), 4, even=1)
    share, _ = shares(matching, 1 + torch.rand(2, 12, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: merge(t, matching, share), x)


@pytest.mark.parametrize("model", every(3, ["plain", "registers", "no_class_token"]))
def test_exports_with_static_counts(tiny, model: str) -> None:
    lean = reduced(tiny(**MODELS[model]), ToMe(r=4))
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(lean, (images(4),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(images(7)), lean(images(7)), rtol=1e-4, atol=1e-5)
    found = operators(exported)
    assert "topk" in found or "argsort" in found or "sort" in found
    assert not found & {"item", "nonzero", "_local_scalar_dense", "index_add", "index_add_", "scatter_reduce"}
    fixed = torch.export.export(lean, (images(1),))
    torch.testing.assert_close(fixed.module()(images(1)), lean(images(1)), rtol=1e-4, atol=1e-5)


def test_composes_with_evit_in_other_blocks(tiny) -> None:
    lean = reduced(tiny(), ToMe(r=[4]), EViT(keep_rate=0.5, blocks=(2,)))
    _, state = lean.trace(images(), trace=True)
    assert state.tokens == (13, 13, 8, 8) and (state.size[:, 1:].sum(1) == 16).all()
    held = torch.stack([torch.bincount(row, minlength=8) for row in state.owner])
    assert torch.equal(held[:, 1:].float(), state.size[:, 1:])


def test_the_structure_can_be_edited(tiny) -> None:
    model = open_model(tiny())
    assert ToMe(r=[0, 3]).learn(model) == {"blocks": [{"block": 1, "r": 3}]}
    ToMe(r=[0, 3]).shape(model, {"blocks": [{"block": 2, "r": 6}, {"block": 3, "r": 0}]})
    assert model.trace(images())[1].tokens == (17, 17, 11, 11)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"r": -1}, "r is -1; accepted: a whole number, 0 or more"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": []}, r"r is \(\)"),
        ({"r": [8, 1.5]}, r"r is \(8, 1.5\); accepted: .*inflection"),
        ({"r": [1, 2, -3]}, r"r is \(1, 2, -3\)"),
        ({"r": "8"}, "r is '8'"),
        ({"prop_attn": "yes"}, "prop_attn is 'yes'; accepted: true or false"),
    ],
)
def test_a_bad_knob_is_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make_method("tome", knobs)


def test_what_does_not_fit_the_model_is_named(tiny) -> None:
    with pytest.raises(BadInput, match="r lists 5 blocks; accepted: up to 4"):
        reduced(tiny(), ToMe(r=[1] * 5))
    with pytest.raises(BadInput, match="block is 4; accepted: 0 to 3"):
        ToMe().shape(open_model(tiny()), {"blocks": [{"block": 4, "r": 1}]})
    with pytest.raises(BadInput, match="r of block 1 is -2"):
        check_structure(ToMe(), {"blocks": [{"block": 1, "r": -2}]})
    with pytest.raises(Refused, match=r"blocks\.0 already reduces tokens by tome"):
        reduced(tiny(), ToMe(r=2), ToMe(r=2))
    assert parse_with("tome:r=[8,-1.0],prop_attn=false") == ToMe(r=(8, -1.0), prop_attn=False)
