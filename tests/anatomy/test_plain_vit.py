"""The opened model is the timm model: outputs, gradients, keys, features, export, and closed again."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import set_fused_attn, use_fused_attn
from timm.models._features import FeatureGetterNet
from torch import nn
from twins import gradients, same, same_draws, same_gradients, twins

from leanvit.anatomy import Block, OpenViT, State, close_model, open_model
from leanvit.errors import BadInput
from zoo import ZOO, build, images

NAMES = sorted(ZOO)
TRAINED = [name for name in NAMES if not name.endswith(":headless")]


def pair(name: str, **kwargs) -> tuple[nn.Module, OpenViT]:
    return twins(build(name, **kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_output_is_equal_bit_for_bit_on_both_attention_paths(name):
    model, opened = pair(name)
    x = images(model)
    assert set(opened.state_dict()) == set(model.state_dict())
    same(model(x), opened(x))
    for block in model.blocks:
        block.attn.fused_attn = False
    for block in opened.blocks:
        block.attn.fused = False
    same(model(x), opened(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_opened_with_explicit_attention_stays_explicit(name):
    fused = use_fused_attn()
    try:
        set_fused_attn(False)
        model, opened = pair(name)
    finally:
        set_fused_attn(fused)
    assert not any(block.attn.fused for block in opened.blocks)
    same(model(images(model)), opened(images(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_stay_what_they_are(name, dtype):
    model = build(name).to(dtype)
    opened = open_model(copy.deepcopy(model))
    same(model(images(model)), opened(images(model)))
    assert opened(images(model)).dtype == dtype


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_equal_with_and_without_checkpointing(name):
    model, opened = pair(name)
    same_gradients(model, opened)


@pytest.mark.parametrize("name", ["vit_base_patch16_224:regularised", "deit_small_distilled_patch16_224:drop_path"])
def test_regularisation_draws_the_same_numbers(name):
    model, opened = pair(name)
    same_draws(model, opened, images(model, batch=6))


def test_distilled_training_gives_two_logits_in_train_mode_only():
    model, opened = pair("deit_tiny_distilled_patch16_224")
    x = images(model)
    for net in (model, opened):
        net.set_distilled_training(True)
    same(model.eval()(x), opened.eval()(x))
    want, got = model.train()(x), opened.train()(x)
    assert isinstance(got, tuple) and len(got) == 2
    same(want, got)


@pytest.mark.parametrize("size", [(32, 32), (48, 24), (8, 40)])
def test_dynamic_sizes_resample_the_table(size):
    model, opened = pair("vit_tiny_patch16_224:dynamic")
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    same(model(x), opened(x))


@pytest.mark.parametrize("size", [(30, 21), (33, 50)])
def test_dynamic_padding(size):
    model, opened = pair("vit_tiny_patch16_224:dynamic_pad")
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    same(model(x), opened(x))


# --- timm's feature interface ------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_features_and_head(name):
    model, opened = pair(name)
    x = images(model)
    tokens = model.forward_features(x)
    same(tokens, opened.forward_features(x))
    same(model.forward_head(tokens), opened.forward_head(tokens))
    same(model.forward_head(tokens, pre_logits=True), opened.forward_head(tokens, pre_logits=True))


FEATURE_OPTIONS = [
    {"output_fmt": "NLC"},
    {"norm": True, "return_prefix_tokens": True},
    {"indices": [0, -1], "intermediates_only": True},
    {"indices": 2, "norm": True, "output_fmt": "NLC", "return_prefix_tokens": True},
    {"indices": [1], "stop_early": True},
]


@pytest.mark.parametrize("options", FEATURE_OPTIONS, ids=str)
@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_small_patch16_224:one_channel", "deit_tiny_distilled_patch16_224",
     "vit_medium_patch16_reg4_gap_256", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224:dynamic_pad"],
)  # fmt: skip
def test_forward_intermediates(name, options):
    model, opened = pair(name)
    x = images(model)
    same(model.forward_intermediates(x, **options), opened.forward_intermediates(x, **options))


def test_forward_intermediates_as_a_dictionary():
    model, opened = pair("vit_small_patch14_reg4_dinov2")
    x = images(model)
    options = {"output_dict": True, "return_prefix_tokens": True, "indices": [0, 2]}
    want, got = model.forward_intermediates(x, **options), opened.forward_intermediates(x, **options)
    assert set(want) == set(got)
    for key in want:
        same(want[key], got[key])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_vit4"])
def test_feature_getter_net(name, norm):
    model, opened = pair(name)
    x = images(model)
    want, got = (FeatureGetterNet(net, out_indices=[0, 1], norm=norm) for net in (model, opened))
    assert len(opened.blocks) == 2
    same(want(x), got(x))
    assert want.feature_info.channels() == got.feature_info.channels()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_gap_240", "deit3_small_patch16_224"])
@pytest.mark.parametrize("options", [{}, {"prune_norm": True}, {"prune_head": False, "indices": [0]}], ids=str)
def test_prune_intermediate_layers(name, options):
    model, opened = pair(name)
    assert model.prune_intermediate_layers(**options) == opened.prune_intermediate_layers(**options)
    assert set(opened.state_dict()) == set(model.state_dict())
    same(model(images(model)), opened(images(model)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_vit4"])
@pytest.mark.parametrize("classes", [0, 5])
def test_reset_classifier(name, classes):
    model, opened = pair(name)
    model.reset_classifier(classes)
    opened.reset_classifier(classes)
    opened.load_state_dict(model.state_dict())
    same(model(images(model)), opened(images(model)))
    assert opened.num_classes == classes
    with pytest.raises(BadInput, match="global_pool is 'map'"):
        opened.reset_classifier(3, global_pool="map")


def test_reset_classifier_changes_the_pool():
    model, opened = pair("vit_tiny_patch16_224")
    for net in (model, opened):
        net.reset_classifier(5, global_pool="avg")
    opened.load_state_dict(model.state_dict())
    same(model(images(model)), opened(images(model)))


# --- closing -----------------------------------------------------------------------


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
    assert closed is model
    assert set(closed.state_dict()) == set(opened.state_dict())
    same(closed(x), want)


def test_closing_after_blocks_were_dropped():
    opened = open_model(build("vit_tiny_patch16_224"))
    opened.prune_intermediate_layers([0, 1], prune_head=False)
    x = images(opened)
    want = opened(x)
    closed = close_model(opened)
    assert len(closed.blocks) == 2
    same(closed(x), want)


def test_closing_keeps_checkpointing_and_distilled_training():
    opened = open_model(build("deit_tiny_distilled_patch16_224"))
    opened.set_grad_checkpointing()
    opened.set_distilled_training()
    closed = close_model(opened)
    assert closed.grad_checkpointing and closed.distilled_training


# --- export and compile ------------------------------------------------------------

EXPORTED = [
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_quickgelu_224", "aimv2_large_patch14_224", "vit_tiny_patch16_224:avgmax",
]  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_export(name):
    _, opened = pair(name, depth=2)
    x = images(opened)
    program = torch.export.export(opened, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), opened(x), rtol=1e-5, atol=1e-6)


def test_export_with_a_dynamic_batch():
    _, opened = pair("vit_tiny_patch16_224", depth=2)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(opened, (images(opened),), dynamic_shapes=({0: batch},), strict=False)
    x = images(opened, batch=5)
    torch.testing.assert_close(program.module()(x), opened(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPORTED)
def test_compile_without_a_graph_break(name):
    _, opened = pair(name, depth=2)
    x = images(opened)
    torch._dynamo.reset()
    compiled = torch.compile(opened, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), opened(x), rtol=1e-5, atol=1e-6)


@pytest.mark.e2e
def test_compile_with_gradients():
    _, opened = pair("deit_tiny_patch16_224", depth=2)
    x = images(opened)
    want = gradients(opened, x)
    torch._dynamo.reset()
    compiled = torch.compile(opened, backend="aot_eager", fullgraph=True)
    got = {key.removeprefix("_orig_mod."): grad for key, grad in gradients(compiled, x).items()}
    assert set(got) == set(want)
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.e2e
def test_compile_with_inductor():
    _, opened = pair("deit_tiny_patch16_224", depth=1)
    x = images(opened)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(opened)(x), opened(x), rtol=1e-4, atol=1e-5)


# --- purity ------------------------------------------------------------------------


def test_wrong_image_size_names_both_sizes():
    opened = open_model(build("vit_tiny_patch16_224"))
    with pytest.raises(BadInput, match=r"40x24.*32x32"):
        opened(torch.zeros(1, 3, 40, 24))


def test_wrong_dynamic_image_size_names_the_patch():
    opened = open_model(build("vit_tiny_patch16_224:dynamic"))
    with pytest.raises(BadInput, match=r"33x32.*8x8"):
        opened(torch.zeros(1, 3, 33, 32))


def test_a_block_called_without_a_state_raises():
    opened = open_model(build("vit_tiny_patch16_224"))
    with pytest.raises(BadInput, match=r"blocks\.0 was called without a state"):
        opened.blocks[0](torch.zeros(1, 17, 24))


def test_two_interleaved_runs_do_not_meet():
    opened = open_model(build("vit_tiny_patch16_224"))
    a, b = images(opened, seed=1), images(opened, batch=3, seed=2)
    want = [opened.trace(a, tap=frozenset({"*"})), opened.trace(b)]
    runs = [opened.embed(a, opened.start(a, tap=frozenset({"*"}))), opened.embed(b, opened.start(b))]
    for i in range(len(opened.blocks)):
        runs = [opened.run(x, state, i, i + 1) for x, state in runs]
    got = [opened.classify(x, state) for x, state in runs]
    for (logits, state), (again, other) in zip(want, got, strict=True):
        same(logits, again)
        assert state.tokens == other.tokens == (17, 17, 17)
        assert set(state.taps) == set(other.taps)
    assert set(got[0][1].taps) == {"blocks.0", "blocks.1", "blocks.2"} and not got[1][1].taps


def test_a_block_leaves_the_given_state_as_it_was():
    opened = open_model(build("vit_tiny_patch16_224"))
    x, state = opened.embed(images(opened), opened.start(images(opened)))
    before = copy.copy(state)
    _, after = opened.blocks[0](x, state)
    assert isinstance(opened.blocks[0], Block) and isinstance(after, State)
    assert state == before and after.tokens == (17,) and state.tokens == ()


def test_opening_twice_is_opening_once():
    opened = open_model(build("vit_tiny_patch16_224"))
    assert open_model(opened) is opened
