"""The opened Swin is timm's: outputs, gradients, keys, features, export, and closed again."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from timm.models._features import FeatureGetterNet
from torch import nn
from twins import same, same_draws, same_gradients, twins

from leanvit.anatomy import OpenSwin, Step, close_model, open_model
from leanvit.anatomy.arithmetic.ops import TORCH, Ops
from leanvit.anatomy.surgery.widths import set_attention_widths, set_mlp_width, set_stage_width
from leanvit.errors import BadInput, Refused
from zoo import SMALL_SWIN, ZOO_SWIN, build_swin, images

NAMES = sorted(ZOO_SWIN)
TRAINED = [name for name in NAMES if "headless" not in name]
V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"


def pair(name: str, **kwargs) -> tuple[nn.Module, OpenSwin]:
    return twins(build_swin(name, **kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_output_is_equal_bit_for_bit_on_both_attention_paths(name):
    model, opened = pair(name)
    x = images(model)
    assert set(opened.state_dict()) == set(model.state_dict())
    same(model(x), opened(x))
    try:
        set_fused_attn(True, experimental=True)
        model, opened = pair(name)
    finally:
        set_fused_attn(True)
    assert all(block.attn.fused is name.startswith("swin_") for block in opened.blocks)
    same(model(x), opened(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(name, dtype):
    model = build_swin(name).to(dtype)
    opened = open_model(copy.deepcopy(model))
    same(model(images(model)), opened(images(model)))
    moved = pair(name)[1].to(dtype)  # cast after it was opened: constants follow
    torch.testing.assert_close(moved(images(model)), model(images(model)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if "any_size" in name])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (10, 14)])
def test_any_image_size(name, size):
    model, opened = pair(name)
    x = torch.randn(2, model.patch_embed.proj.in_channels, *size)
    same(model(x), opened(x))
    with pytest.raises(BadInput, match=r"images are 33x32: .*multiples of the patch size 2x2"):
        opened(torch.zeros(1, x.shape[1], 33, 32))


def test_a_wrong_size_names_both():
    with pytest.raises(BadInput, match=r"images are 40x32, the model takes 32x32"):
        open_model(build_swin(V1))(torch.zeros(1, 3, 40, 32))


@pytest.mark.parametrize("name", [V1, "swinv2_small_window8_256:padded", "swin_s3_small_224:regularised"])
def test_gradients_equal_with_and_without_checkpointing(name):
    model, opened = pair(name, drop_path_rate=0.0, attn_drop_rate=0.0, proj_drop_rate=0.0, drop_rate=0.0)
    assert same_gradients(model, opened) == {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["swin_s3_small_224:regularised", "swinv2_base_window12to16_192to256"])
def test_regularisation_draws_the_same_numbers(name):
    model, opened = pair(name)
    same_draws(model, opened, images(model, batch=6))


# --- timm's feature interface ------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_features_and_head(name):
    model, opened = pair(name)
    features = model.forward_features(images(model))
    assert features.ndim == 4 and features.shape[-1] == 48
    same(features, opened.forward_features(images(model)))
    same(model.forward_head(features), opened.forward_head(features))
    same(model.forward_head(features, pre_logits=True), opened.forward_head(features, pre_logits=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": True, "indices": [0, -1]}, {"indices": [1], "stop_early": True}, {"intermediates_only": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["swin_small_patch4_window7_224:padded", V2])
def test_forward_intermediates(name, options):
    model, opened = pair(name)
    x = images(model)
    same(model.forward_intermediates(x, **options), opened.forward_intermediates(x, **options))
    with pytest.raises(BadInput, match="output_fmt is 'NLC'; accepted: 'NCHW'"):
        opened.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", [V1, V2])
def test_feature_getter_net(name):
    model, opened = pair(name)
    want, got = (FeatureGetterNet(net, out_indices=[0, 1]) for net in (model, opened))
    assert len(opened.layers) == 2 and len(opened.blocks) == 4
    same(want(images(model)), got(images(model)))
    assert want.feature_info.channels() == got.feature_info.channels() == [12, 24]


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize("arguments", [(0,), (5,), (5, "avgmax"), (0, "")])
def test_reset_classifier(name, arguments):
    model, opened = pair(name)
    model.reset_classifier(*arguments)
    opened.reset_classifier(*arguments)
    opened.load_state_dict(model.state_dict())
    same(model(images(model)), opened(images(model)))
    assert opened.num_classes == arguments[0] and opened.get_classifier() is opened.head.fc


def test_bad_pools_are_named():
    opened = open_model(build_swin(V1))
    with pytest.raises(BadInput, match="global_pool is 'token'; this model accepts '', 'avg'"):
        opened.reset_classifier(3, "token")
    with pytest.raises(BadInput, match="global_pool is '' with 3 classes"):
        opened.reset_classifier(3, "")
    assert opened.num_classes == 7


@pytest.mark.parametrize("name", [V1, V2])
def test_what_optimisers_ask(name):
    model, opened = pair(name)
    assert opened.no_weight_decay() == model.no_weight_decay()
    for coarse in (False, True):
        assert opened.group_matcher(coarse) == {"stem": r"^patch_embed", **opened.group_matcher(coarse)}
        assert opened.group_matcher(coarse)["blocks"] == model.group_matcher(coarse)["blocks"]
    shared = ("num_features", "feature_info", "output_fmt", "num_layers", "embed_dim", "head_hidden_size", "in_chans")
    assert all(getattr(opened, key) == getattr(model, key) for key in shared)


# --- closing -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_closing_gives_the_timm_model_back(name):
    model = build_swin(name)
    opened = open_model(model)
    assert {id(p) for p in opened.parameters()} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        for p in opened.parameters():
            p.mul_(0.9)
    opened.reset_classifier(4)
    opened.set_grad_checkpointing()
    x = images(model)
    want = opened(x)
    closed = close_model(opened)
    assert closed is model and closed.layers[0].grad_checkpointing
    same(closed(x), want)


@pytest.mark.parametrize(("name", "width"), [(V1, 5), (V2, 8)])
def test_closing_after_stages_and_widths_changed(name, width):
    opened = open_model(build_swin(name))
    opened.prune_intermediate_layers([0, 1])
    block = opened.blocks[3]
    set_attention_widths(block.attn, heads=3, qk_dim=width, v_dim=width)
    set_mlp_width(block.mlp, 17)
    with torch.no_grad():
        for p in opened.parameters():
            p.add_(0.1)
    want = opened(images(opened))
    assert want.shape == (2, 8, 8, 24)
    closed = close_model(opened)
    assert closed.layers[1].blocks[1].attn.num_heads == 3
    same(closed(images(opened)), want)


def test_closing_refuses_what_timm_would_not_run():
    opened = open_model(build_swin(V1))
    opened.blocks[1].attn.terms = (lambda phases, state: phases,)
    with pytest.raises(Refused, match=r"layers\.0\.blocks\.1\.attn holds score terms"):
        close_model(opened)
    opened = open_model(build_swin(V1))
    opened.blocks[1].attn.shift = (0, 0)
    with pytest.raises(Refused, match="other windows"):
        close_model(opened)
    opened = open_model(build_swin(V2))
    set_attention_widths(opened.blocks[0].attn, heads=2, qk_dim=5, v_dim=5)
    with pytest.raises(Refused, match=r"2 heads of 5; timm's Swin V2 knows 12 in all"):
        close_model(opened)


# --- export and compile ------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin_small_patch4_window7_224:padded", V2])
def test_export_with_a_dynamic_batch(name):
    _, opened = pair(name)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(opened, (images(opened),), dynamic_shapes=({0: batch},), strict=False)
    x = images(opened, batch=5)
    torch.testing.assert_close(program.module()(x), opened(x), rtol=1e-4, atol=1e-5)


@pytest.mark.e2e
@pytest.mark.parametrize("name", [V1, "swinv2_tiny_window16_256:any_size"])
def test_compile_without_a_graph_break(name):
    _, opened = pair(name)
    x = images(opened)
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(opened, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(got, opened(x), rtol=1e-5, atol=1e-6)


# --- anatomy -----------------------------------------------------------------------


class Counting(Ops):
    """Notes every site."""

    def __init__(self) -> None:
        self.linears: list[str] = []

    def linear(self, site, module, x, bias=None):
        self.linears.append(site)
        return super().linear(site, module, x, bias)


@pytest.mark.parametrize("name", [V1, V2])
def test_every_linear_is_a_site(name):
    opened = open_model(build_swin(name))
    ops = Counting()
    opened(images(opened), ops=ops)
    named = {key for key, module in opened.named_modules() if isinstance(module, nn.Linear)}
    assert set(ops.linears) == named == set(opened.sites()) - {"patch_embed.proj"}
    assert ("layers.1.blocks.0.attn.cpb_mlp.2" in named) is (name == V2) and "layers.1.downsample.reduction" in named


class Doubling(Step):
    def forward(self, x, state):
        assert x.shape[1] == state.num_patches
        return 2 * x, state


def test_seams_and_slots_act_as_on_a_plain_vit():
    opened = open_model(build_swin(V1))
    x = images(opened)
    state = opened.start(x, tap=frozenset({"layers.1.blocks.0"}), trace=True)
    tokens, state = opened.embed(x, state)
    grids = []
    for i in range(len(opened.blocks)):
        tokens, state = opened.run(tokens, state, i, i + 1)
        grids.append(state.grid)
    assert grids == opened.grids() == [(16, 16), (16, 16), (8, 8), (8, 8), (4, 4)]
    assert opened.stage_ends() == [2, 4, 5] and state.taps["layers.1.blocks.0"].shape == (2, 64, 24)
    same(opened.classify(tokens, state)[0], opened(x))
    assert state.windows is None and state.tokens == (256, 256, 64, 64, 16)
    owner = state.owner[0].reshape(16, 16)  # which of the last 16 tokens holds each patch
    assert (owner[:4, :4] == 0).all() and (owner[12:, 12:] == 15).all() and owner[0, 4] == 1
    opened.blocks[2].between.append(Doubling())
    assert not torch.equal(opened.classify(tokens, state)[0], opened(x))


@pytest.mark.parametrize("name", [V1, V2])
def test_widths_are_per_block(name):
    opened = open_model(build_swin(name))
    set_attention_widths(opened.blocks[0].attn, heads=3, qk_dim=4, v_dim=2)
    with torch.no_grad():
        for p in opened.parameters():
            p.add_(0.05)
    assert opened.blocks[0].attn.qkv.out_features == 30 and torch.isfinite(opened(images(opened))).all()
    with pytest.raises(Refused, match="q/k width 4 and v width 2"):
        close_model(opened)


@pytest.mark.parametrize("name", [V1, V2])
def test_embedding_widths_are_per_stage(name):
    opened = open_model(build_swin(name))
    for stage, width in enumerate((14, 10, 18)):
        set_stage_width(opened, stage, width)
        for block in opened.layers[stage].blocks:
            set_attention_widths(block.attn, heads=2, qk_dim=width // 2, v_dim=width // 2)
    with torch.no_grad():
        for p in opened.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    maps = opened.forward_intermediates(images(opened), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in opened.feature_info] == [14, 10, 18]
    want = opened(images(opened))
    closed = close_model(opened)
    same(closed(images(opened)), want)
    assert closed.num_features == 18 and closed.head.fc.in_features == 18
    for stage, width, payload in ((3, 8, "stage is 3; accepted: 0 to 2"), (0, 0, "width of stage 0 is 0")):
        with pytest.raises(BadInput, match=payload):
            set_stage_width(opened, stage, width)


# --- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("twins_svt_small", {"img_size": 64}, "Twins .*local groups"),
        (V1, {**SMALL_SWIN, "global_pool": "catavgmax"}, "global_pool 'catavgmax' is not supported"),
    ],
)
def test_look_alikes_are_refused_with_the_reason(name, kwargs, reason):
    with pytest.raises(Refused, match=reason):
        open_model(timm.create_model(name, **kwargs))


def test_foreign_parts_are_named():
    model = build_swin(V1)
    model.layers[1].blocks[0].attn.add_module("lora", nn.Linear(2, 2))
    with pytest.raises(Refused, match=r"layers\.1\.blocks\.0\.attn.*lora"):
        open_model(model)
    model = build_swin(V2)
    model.layers[0].blocks[1].mlp = nn.Identity()
    with pytest.raises(Refused, match=r"layers\.0\.blocks\.1\.mlp is a Identity; supported: Mlp"):
        open_model(model)

    class Changed(type(model)):
        pass

    model = build_swin(V2)
    model.__class__ = Changed
    with pytest.raises(Refused, match="the model is a Changed, a subclass"):
        open_model(model)
    assert TORCH.fused
