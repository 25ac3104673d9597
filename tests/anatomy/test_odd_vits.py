"""Rotary, relative-bias, parallel and attention-pooled transformers: the opened model is the timm model."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from test_plain_vit import FEATURE_OPTIONS, pair
from twins import same, same_draws, same_gradients

from leanvit.anatomy import OpenModel, close_model, open_model
from leanvit.anatomy.arithmetic.quant_ops import ObserverOps
from leanvit.anatomy.parts.blocks import Heads
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width
from leanvit.errors import BadInput, Refused
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from zoo import ODD, SMALL, ZOO, build, images, randomise

NAMES = sorted(ODD)
PATCH_DROP = [name for name in NAMES if name.endswith((":regularised", ":patch_drop"))]


def explicit(model: torch.nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    if isinstance(model, OpenModel):
        scored = [module for module in model.modules() if isinstance(module, Heads)]
        for heads in (*scored, *(attn for block in model.blocks for attn in block.attentions())):
            heads.fused = False


@pytest.mark.parametrize("name", NAMES)
def test_output_features_and_keys_are_equal_bit_for_bit(name):
    model, opened = pair(name)
    x = images(model)
    assert set(opened.state_dict()) == set(model.state_dict())
    same(model(x), opened(x))
    tokens = model.forward_features(x)
    same(tokens, opened.forward_features(x))
    same(model.forward_head(tokens, pre_logits=True), opened.forward_head(tokens, pre_logits=True))
    options = dict(FEATURE_OPTIONS[NAMES.index(name) % len(FEATURE_OPTIONS)])
    if not model.num_prefix_tokens:  # timm's vit_relpos would fail
        options.pop("return_prefix_tokens", None)
    same(model.forward_intermediates(x, **options), opened.forward_intermediates(x, **options))
    explicit(model)
    explicit(opened)
    same(model(x), opened(x))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_what_it_is(name):
    model = build(name).to(torch.bfloat16)
    opened = open_model(copy.deepcopy(model))
    same(model(images(model)), opened(images(model)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_with_and_without_checkpointing(name):
    model, opened = pair(name)
    same_gradients(model, opened, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", PATCH_DROP)
def test_patch_dropout_takes_the_positions_along(name):
    model, opened = pair(name)
    same_draws(model, opened, images(model, batch=6))


@pytest.mark.parametrize("name", NAMES)
def test_closing_gives_the_timm_model_back(name):
    model = build(name)
    opened = open_model(model)
    assert {id(p) for p in opened.parameters()} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        for p in opened.parameters():
            p.mul_(0.9)
    if opened.num_classes:
        opened.reset_classifier(4)
    x = images(model)
    want = opened.eval()(x)
    closed = close_model(opened)
    assert closed is model and set(closed.state_dict()) == set(opened.state_dict())
    same(closed(x), want)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
@pytest.mark.parametrize("name", ["eva02_small_patch14_224:dynamic", "vit_so400m_patch14_siglip_224"])
def test_dynamic_sizes(name, size):
    model, opened = pair(name)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    same(model(x), opened(x))


EXPORTED = ["eva02_base_patch14_224", "vit_small_patch16_rope_mixed_224", "vit_pe_core_tiny_patch16_384",
            "vit_small_patch16_18x2_224", "beit_base_patch16_224", "vit_dpwee_patch16_reg1_gap_256"]  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_export_and_compile_on_reduced_tokens(name):
    _, opened = pair(name, depth=2)
    ToMe(r=3).shape(opened, {"blocks": [{"block": 0, "r": 3}]})
    x = images(opened)
    want = opened(x)
    program = torch.export.export(opened, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), want, rtol=1e-4, atol=1e-5)
    if name == EXPORTED[0]:
        torch._dynamo.reset()
        with torch.no_grad():
            got = torch.compile(opened, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_zoo_is_wide():
    assert len({name.partition(":")[0] for name in ODD}) >= 35
    assert len({name.partition(":")[0] for name in {**ZOO, **ODD}}) >= 65


@pytest.mark.parametrize(
    "kwargs",
    [
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"reg_tokens": 2, "dynamic_img_size": True},
        {"reg_tokens": 2, "no_embed_class": True, "pos_drop_rate": 0.5},
    ],
    ids=str,
)
def test_no_table_of_positions(kwargs):
    model = randomise(timm.create_model("vit_tiny_patch16_224", **{**SMALL, "pos_embed": "none", **kwargs})).eval()
    opened = open_model(copy.deepcopy(model))
    x = images(model)
    same(model(x), opened(x))
    outputs = []
    for net in (model, opened):
        torch.manual_seed(5)
        outputs.append(net.train()(x))
    same(*outputs)


# --- positions of the tokens that stay ------------------------------------------------

PLACED = ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224", "vit_small_patch16_dinov3",
          "vit_relpos_base_patch16_cls_224", "beit_base_patch16_224:shared", "vit_base_patch16_sapiens2"]  # fmt: skip


def without_patch(opened: OpenModel, x: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """The last block's tokens when only some patches enter the first block, with their true places."""
    tokens, state = opened.embed(x, opened.start(x))
    index = torch.tensor(kept).expand(len(x), -1)
    prefix = state.num_prefix
    tokens = torch.cat([tokens[:, :prefix], tokens[:, [prefix + i for i in kept]]], dim=1)
    return opened.run(tokens, state.taken(index))[0]


@pytest.mark.parametrize("name", PLACED)
def test_what_a_token_sees_does_not_depend_on_the_order_of_the_others(name):
    """Shuffling the tokens together with their places shuffles the result: nothing reads the order of the sequence."""
    opened = open_model(build(name))
    x = images(opened)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2)).tolist()
    prefix = opened.num_prefix_tokens
    straight, shuffled = without_patch(opened, x, list(range(16))), without_patch(opened, x, order)
    plain, _ = opened.run(*opened.embed(x, opened.start(x)))
    torch.testing.assert_close(straight, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled[:, prefix:], straight[:, [prefix + i for i in order]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PLACED)
def test_places_that_are_lost_would_show(name):
    opened = open_model(build(name))
    x = images(opened)
    tokens, state = opened.embed(x, opened.start(x))
    prefix, order = state.num_prefix, list(reversed(range(16)))
    shuffled = torch.cat([tokens[:, :prefix], tokens[:, [prefix + i for i in order]]], dim=1)
    lost = opened.run(shuffled, state)[0]
    assert (lost - without_patch(opened, x, order)).abs().max() > 1e-2


@pytest.mark.parametrize("name", PLACED)
def test_evit_and_tome_move_the_places(name):
    opened = open_model(build(name))
    x = images(opened)
    EViT().shape(opened, {"blocks": [{"block": 0, "keep_rate": 0.5, "tokens": None}]})
    state = opened.trace(x, trace=True, tap=frozenset({"*"}))[1]
    kept, positions = state.taps["blocks.0.topk"], state.positions
    assert positions.shape == (2, 9) and torch.equal(positions[:, :8], kept)
    for row in range(2):  # the fused token is where one of the dropped ones was
        assert int(positions[row, 8]) not in kept[row].tolist()

    merged = open_model(build(name))
    ToMe(r=5).shape(merged, {"blocks": [{"block": 0, "r": 5}, {"block": 1, "r": 2}]})
    state = merged.trace(x, trace=True)[1]
    assert state.positions.shape == (2, 9)
    for row in range(2):  # each token is where one of its own patches is
        for token, place in enumerate(state.positions[row].tolist()):
            assert int(state.owner[row, place]) == token + state.num_prefix


# --- attention pooling ----------------------------------------------------------------


def test_a_pool_counts_a_merged_token_as_often_as_it_stands_for_patches():
    opened = open_model(build("vit_base_patch16_siglip_224"))
    tokens, state = opened.run(*opened.embed(images(opened), opened.start(images(opened))))
    tokens[:, 1] = tokens[:, 0]
    want, _ = opened.classify(tokens, state)
    size = torch.ones(2, 15)
    size[:, 0] = 2
    got, _ = opened.classify(torch.cat([tokens[:, :1], tokens[:, 2:]], dim=1), state.with_(size=size))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    light, _ = opened.classify(torch.cat([tokens[:, :1], tokens[:, 2:]], dim=1), state)
    assert (light - want).abs().max() > 1e-4


def test_int8_reaches_the_pool_and_the_separate_projections():
    seen = ObserverOps()
    opened = open_model(build("vit_pe_core_tiny_patch16_384"))
    opened(images(opened), ops=seen)
    assert {"attn_pool.q", "attn_pool.kv", "attn_pool.proj", "attn_pool.mlp.fc2", "attn_pool.matmul1"} <= set(
        seen.kinds
    )
    assert {site for site, kind in seen.kinds.items() if kind != "matmul"} == set(opened.sites())
    apart = open_model(build("eva02_base_patch14_224"))
    apart(images(apart), ops=(seen := ObserverOps()))
    assert {"blocks.0.attn.q_proj", "blocks.2.mlp.fc1_g"} <= set(seen.kinds)
    assert {site for site, kind in seen.kinds.items() if kind != "matmul"} == set(apart.sites())


def test_another_pool_drops_the_attention_pool():
    model, opened = pair("vit_so150m_patch16_reg4_map_256")
    for net in (model, opened):
        net.reset_classifier(5, global_pool="avg")
    opened.load_state_dict(model.state_dict())
    same(model(images(model)), opened(images(model)))
    with pytest.raises(BadInput, match="global_pool is 'map'; this model accepts '', 'avg'"):
        opened.reset_classifier(5, global_pool="map")


def test_widths_of_rotary_attention_are_refused_by_name():
    opened = open_model(build("eva02_tiny_patch14_224"))
    with pytest.raises(Refused, match=r"blocks\.0\.attn: widths"):
        set_attention_widths(opened.blocks[0].attn, heads=1)
    with pytest.raises(Refused, match="embedding width"):
        set_embed_width(opened, 8)
