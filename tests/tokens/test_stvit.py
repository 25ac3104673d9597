"""STViT on plain ViTs: token counts, a plain transcription, what is carried over, what is refused, one life."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from leanvit.anatomy import close_model, open_model
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, compress, load, save
from leanvit.recipe.registry import make_method
from leanvit.tokens.evit import EViT
from leanvit.tokens.stvit import STViT
from leanvit.tokens.stvit.semantic import adaptive_max, adaptive_mean, cells, owners
from leanvit.tokens.tome import ToMe
from tokens.reduction import VARIANTS, gradients, images, lengths_in_mlps, reduced
from training.tiny_training import make_data, make_preprocess
from zoo import build

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ALL = {
    **VARIANTS,
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "map": {"global_pool": "map"},
}


@pytest.mark.parametrize("variant", ALL)
def test_no_generation_is_exact(tiny, variant: str) -> None:
    model = tiny(**ALL[variant])
    want = model(images())
    assert torch.equal(reduced(model, STViT(after=4))(images()), want)


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("prefix", ["drop", "keep"])
def test_semantic_tokens_run_through_the_rest(tiny, variant: str, prefix: str) -> None:
    """4x4 patches in windows of 2x2, one token each: 4 semantic tokens from block 1 on."""
    model = reduced(tiny(**ALL[variant]), method := STViT(samples=1, prefix=prefix))
    kept = model.num_prefix_tokens if prefix == "keep" else 0
    first = model.num_prefix_tokens
    y, state = model.trace(images())
    assert lengths_in_mlps(model, images()) == [16 + first, *[4 + kept] * 3] == list(state.tokens)
    assert method.achieved(model, {}) == {"patch_tokens": [16, 4, 4, 4]}
    assert method.check(model, {"after": 1, "window": [2, 2], "samples": 1}) == []
    assert method.check(model, {"after": 1, "window": [2, 2], "samples": 2})[0] == (
        "block 1: requested 16 semantic tokens, has 4"
    )
    assert y.shape == (3, 7) and y.isfinite().all() and state.num_prefix == kept and not state.extra
    assert ("class_token" in model.traits()) == (prefix == "keep" and model.cls_token is not None)


def test_the_arithmetic_is_the_papers(tiny) -> None:
    """Once more in plain PyTorch, one image: pooled queries, one norm, centres on queries only, the mean at the end."""
    dense = tiny(init_values=0.5, norm_layer=torch.nn.LayerNorm)
    lean = reduced(copy.deepcopy(dense), STViT(samples=1))
    image = images(1)
    x = dense.patch_embed(image)
    x = torch.cat([dense.cls_token, x], dim=1) + dense.pos_embed
    x = dense.blocks[0](x)
    grid = x[:, 1:].unflatten(1, (4, 4))
    s = torch.stack([grid[:, r : r + 2, c : c + 2].amax((1, 2)) for r in (0, 2) for c in (0, 2)], dim=1)
    s = _block(dense.blocks[1], s, x)
    centres = lean.blocks[2].centres
    s = _block(dense.blocks[2], s + centres, torch.cat([s, x], dim=1))
    s = dense.blocks[3](s)
    want = dense.head(dense.norm(s).mean(dim=1))
    assert 0 < centres.std() < 0.05
    torch.testing.assert_close(lean(image), want, **CLOSE)


def _block(block: Any, x: Tensor, y: Tensor) -> Tensor:
    """A timm block whose queries are `x` and whose keys and values are `y`."""
    attn = block.attn
    weight, bias = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    q, k, v = (
        F.linear(block.norm1(t), w, b).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        for t, w, b in zip((x, y, y), weight, bias, strict=True)
    )
    out = ((q @ k.transpose(-2, -1) * attn.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + block.ls1(attn.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x)))


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("prefix", ["drop", "keep"])
def test_the_control_averages_and_runs_the_models_own_blocks(tiny, variant: str, prefix: str) -> None:
    dense = open_model(tiny(**ALL[variant]))
    method = STViT(samples=1, prefix=prefix, generation="average")
    lean = reduced(copy.deepcopy(dense), method)
    before = dense.state_dict()
    assert all(torch.equal(p, before[key]) for key, p in lean.state_dict().items()) and len(before) == len(
        lean.state_dict()
    )
    x, state = dense.run(*dense.embed(images(), dense.start(images())), 0, 1)
    first, kept = dense.num_prefix_tokens, dense.num_prefix_tokens if prefix == "keep" else 0
    means = F.avg_pool2d(x[:, first:].transpose(1, 2).unflatten(2, (4, 4)), 2).flatten(2).transpose(1, 2)
    want, _ = dense.run(torch.cat([x[:, :kept], means], dim=1), state.with_(num_prefix=kept), 1)
    got, after = lean.run(*lean.embed(images(), lean.start(images())))
    torch.testing.assert_close(got, want, **CLOSE)
    assert lean.trace(images())[1].tokens == (16 + first, *[4 + kept] * 3) and after.num_prefix == kept
    assert method.check(lean, {"after": 1, "window": [2, 2], "samples": 1}) == []
    assert ("class_token" in lean.traits()) == (prefix == "keep" and dense.cls_token is not None)


def test_gated_and_sub_normed_attention(tiny) -> None:
    """The gate is the queries', whatever they look at: kept class tokens are those of the dense block."""
    for name in ("vit_tiny_patch16_224:gated", "beit3_base_patch16_224", "aimv2_large_patch14_224"):
        dense = open_model(build(name))
        x, state = dense.embed(images(), dense.start(images()))
        lean = reduced(build(name), STViT(samples=1, after=0, prefix="keep"))
        want, got = dense.run(x, state, 0, 1)[0], lean.run(x, state, 0, 1)[0]
        prefix = dense.num_prefix_tokens
        assert got.shape[1] == prefix + 4
        torch.testing.assert_close(got[:, :prefix], want[:, :prefix], **CLOSE)


def test_kept_prefix_tokens_go_on_as_they_would(tiny) -> None:
    """The class token of the first generation block is what the dense block gives: its keys are all tokens."""
    dense = tiny()
    lean = reduced(copy.deepcopy(dense), STViT(samples=1, prefix="keep"))
    plain = open_model(dense)
    x, _ = plain.run(*plain.embed(images(), plain.start(images())), 0, 2)
    y, _ = lean.run(*lean.embed(images(), lean.start(images())), 0, 2)
    torch.testing.assert_close(y[:, :1], x[:, :1], **CLOSE)


def test_without_shortcut_the_attention_replaces_the_pooled_tokens(tiny) -> None:
    lean = reduced(tiny(init_values=0.5), STViT(samples=1, shortcut=False))
    with torch.no_grad():
        lean.blocks[1].ls1.gamma.zero_()
        lean.blocks[1].ls2.gamma.zero_()
    y, _ = lean.run(*lean.embed(images(), lean.start(images())), 0, 2)
    assert (y == 0).all()


def test_pooling_covers_and_overlaps_as_adaptive_pooling_does() -> None:
    assert cells(7, 3) == [(0, 3), (2, 5), (4, 7)] and cells(7, 2) == [(0, 4), (3, 7)] and cells(4, 4)[3] == (3, 4)
    x = torch.randn(2, 7, 5, 3)
    for side in range(1, 6):
        want = F.adaptive_max_pool2d(x.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)
        assert torch.equal(adaptive_max(x, side), want)
        mean = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)
        torch.testing.assert_close(adaptive_mean(x, side), mean)


def test_a_patch_belongs_to_the_token_of_its_cell(tiny) -> None:
    assert owners((2, 4), (2, 2), 1, device=torch.device("cpu")).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    lean = reduced(tiny(reg_tokens=2), STViT(samples=2, window=4, prefix="keep"))
    _, state = lean.trace(images(), trace=True)
    assert state.owner.shape == (3, 16)
    assert state.owner[0].tolist() == [3, 3, 4, 4, 3, 3, 4, 4, 5, 5, 6, 6, 5, 5, 6, 6]


def test_a_distilled_models_heads_read_the_mean(tiny) -> None:
    model = tiny("deit_tiny_distilled_patch16_224")
    lean = reduced(copy.deepcopy(model), STViT(samples=1))
    x, _ = lean.run(*lean.embed(images(), lean.start(images())))
    mean = model.norm(x).mean(1)
    torch.testing.assert_close(lean(images()), (model.head(mean) + model.head_dist(mean)) / 2, **CLOSE)
    lean.train().set_distilled_training(True)
    assert len(lean(images())) == 2
    kept = reduced(model, STViT(samples=1, prefix="keep"))
    assert kept.trace(images())[1].tokens == (18, 6, 6, 6)


@pytest.mark.parametrize(("size", "gmacs"), [("tiny", 0.522), ("small", 1.907), ("base", 7.263)])
def test_multiply_accumulates_of_the_spec(size: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"deit_{size}_patch16_224", class_token=False, global_pool="avg")
        lean = open_model(model, check=False)
        method = STViT()
        method.shape(lean, method.learn(lean))
        assert lean.trace(torch.empty(1, 3, 224, 224))[1].tokens == (*[196] * 4, *[16] * 8)
    cost = count(lean, (3, 224, 224))
    assert not cost.uncounted and cost.gmacs == pytest.approx(gmacs, rel=1e-3)


def test_gradients_reach_everything_and_survive_checkpointing(tiny) -> None:
    model = reduced(tiny(), STViT(samples=1)).train()
    want = gradients(model, images())
    assert want.keys() == dict(model.named_parameters()).keys()
    model.set_grad_checkpointing()
    got = gradients(model, images())
    assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.extra("onnxruntime", of="onnx")
def test_a_life_of_a_run(tiny, tmp_path: Path) -> None:
    """Compressed, trained by distillation, int8, saved, loaded bit for bit, exported with static shapes."""
    data, preprocess = make_data(24), make_preprocess()
    model = tiny(img_size=8, patch_size=2, in_chans=1, num_classes=4, depth=3)
    lean = compress(
        model,
        [STViT(samples=1), Int8(images=8)],
        Data(data, preprocess),
        recovery=Recovery(epochs=1, batch_size=12, settings={"warmup_epochs": 0}),
    )
    x = torch.randn(2, *preprocess.input_size, generator=torch.Generator().manual_seed(3))
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    float_model = compress(model, [STViT(samples=1)])
    assert not torch.equal(float_model.blocks[2].centres, lean.blocks[2].centres)  # it was trained
    for runtime in ("onnx", "openvino"):
        export(float_model, tmp_path / runtime, to=runtime, preprocess=preprocess, batch=2)
        got = torch.as_tensor(load_artefact(tmp_path / runtime)(x))
        torch.testing.assert_close(got, float_model(x), rtol=1e-3, atol=1e-4)


def test_what_cannot_follow_is_refused_by_name(tiny) -> None:
    model = tiny()
    for methods, why in (
        ([EViT(keep_rate=0.5, blocks=(0,)), STViT()], "stvit needs the full grid of patches, which evit takes away"),
        ([STViT(), ToMe(r=1)], "tome needs transformer blocks that tokens of patches run through"),
        ([STViT(), STViT()], "stvit needs the full grid"),
    ):
        with pytest.raises(Refused, match=why):
            compress(model, methods)
    lean = compress(model, [STViT(samples=1)])
    with pytest.raises(Refused, match="stvit put other blocks in"):
        close_model(lean)
    with pytest.raises(Refused, match="no full grid"):
        lean.forward_intermediates(images(), [2])
    assert lean.forward_intermediates(images(), [0], intermediates_only=True)[0].shape == (3, 48, 4, 4)
    with pytest.raises(BadInput, match="global_pool is 'token'"):
        lean.reset_classifier(3, "token")
    with pytest.raises(Refused, match="transformer blocks that tokens of patches run through"):
        compress(lean, [STViT()])


@pytest.mark.parametrize(
    ("name", "kwargs", "why"),
    [
        ("eva02_tiny_patch14_224", {}, "needs a plain vision transformer or a Swin, this model is OpenEva"),
        ("vit_relpos_small_patch16_224", {}, "OpenRelViT"),
        ("vit_base_patch16_rpn_224", {}, "PostNormBlock: stvit generates in pre-norm blocks"),
        ("vit_small_patch16_18x2_224", {}, "ManyBlock: stvit generates"),
    ],
)
def test_what_it_cannot_work_on_is_refused_with_a_reason(tiny, name: str, kwargs: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        reduced(tiny(name, **kwargs), STViT(samples=1))


def test_patch_dropout_is_taken_out(tiny) -> None:
    lean = reduced(tiny(patch_drop_rate=0.5), STViT(samples=1)).train()
    assert lean.trace(images())[1].tokens[0] == 17, "the whole grid, in training too"


def test_other_image_sizes(tiny) -> None:
    lean = reduced(tiny(dynamic_img_size=True), STViT(samples=1, use_global=False))
    assert lean.trace(images(size=64))[1].tokens == (65, 16, 16, 16)
    with pytest.raises(BadInput, match="images have 5x5 patches, which windows of 2x2"):
        lean(images(size=40))
    centred = reduced(tiny(dynamic_img_size=True), STViT(samples=1))
    with pytest.raises(BadInput, match="4 global centres, the image gives 16 semantic tokens"):
        centred(images(size=64))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"after": -1}, "after is -1; accepted: a whole number, 0 or more, or null"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 4, "window": 3}, "samples is 4; accepted: 1 to 3"),
        ({"prefix": "kept"}, "did you mean 'keep'"),
        ({"prefix": "keep", "shortcut": False}, "give one of the two"),
        ({"generation": "mean"}, "generation is 'mean'"),
        ({"use_global": 1}, "use_global is 1; accepted: true or false, or null"),
    ],
)
def test_a_bad_knob_is_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make_method("stvit", knobs)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"after": 3}, "after is 3; accepted: 0 to 2.*or 4 for none"),
        ({"after": 5}, "after is 5"),
        ({"window": 3}, "window is 3x3; accepted: sides that divide the grid of 4x4"),
        ({"samples": 3}, "samples is 3; accepted: a whole number from 1 to 2"),
    ],
)
def test_what_does_not_fit_the_model_is_named(tiny, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        reduced(tiny(), STViT(**knobs))
