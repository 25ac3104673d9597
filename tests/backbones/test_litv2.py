"""LITv2 and HiLo: the layer at its ends, displaced reading, the plain transcription, folding, official names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from backbones.small import SMALL
from leanvit.backbones.litv2 import LITv2, checkpoint_filter_fn
from leanvit.backbones.litv2.model import DeformableMerging, displaced
from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.measure import count
from leanvit.models.hilo import HiLoAttention
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Data, Root, compress, create, load, save
from leanvit.training import CrossEntropy, FitConfig, fit
from leanvit.training.optimizers import make_optimizer
from leanvit.verbs.weights import load_weights
from training.tiny_training import make_data, make_preprocess
from zoo import randomise

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plain_litv2 import PlainLITv2

EXACT = {"rtol": 1e-5, "atol": 1e-6}


def small(**more: Any) -> Any:
    """Every parameter and statistic random: offsets reach beyond the map."""
    model = randomise(timm.create_model("litv2_small", **{**SMALL["litv2_small"], **more})).eval()
    rng = torch.Generator().manual_seed(2)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=rng))
    return model


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(**more: Any) -> HiLoAttention:
    return randomise(HiLoAttention(24, 6, qkv_bias=True, **more)).eval()


# --- the layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_windows_of_one_are_plain_attention_whatever_alpha_says(alpha: float) -> None:
    hilo = layer(window_size=1, alpha=alpha)
    dense = timm.layers.Attention(24, 6, qkv_bias=True).eval()
    state = {f"qkv.{p}": torch.cat([getattr(hilo.l_q, p), getattr(hilo.l_kv, p)]) for p in ("weight", "bias")}
    dense.load_state_dict({**state, **{f"proj.{p}": getattr(hilo.l_proj, p) for p in ("weight", "bias")}})
    x = noise(2, 5, 7, 24)
    torch.testing.assert_close(hilo(x).flatten(1, 2), dense(x.flatten(1, 2)), **EXACT)


def test_at_alpha_0_it_is_window_attention() -> None:
    hilo = layer(window_size=2, alpha=0)
    swin = WindowAttention(24, 6, window_size=(2, 2)).eval()
    named = {"qkv": hilo.h_qkv, "proj": hilo.h_proj}
    state = {f"{name}.{p}": getattr(part, p) for name, part in named.items() for p in ("weight", "bias")}
    swin.load_state_dict(state, strict=False)
    nn.init.zeros_(swin.relative_position_bias_table)
    x = noise(2, 4, 6, 24)
    windows = x.reshape(2, 2, 2, 3, 2, 24).transpose(2, 3).reshape(12, 4, 24)
    want = swin(windows).reshape(2, 2, 3, 2, 2, 24).transpose(2, 3).reshape(2, 4, 6, 24)
    torch.testing.assert_close(hilo(x), want, **EXACT)
    assert not any(key.startswith("l_") for key in hilo.state_dict())


def test_at_alpha_1_keys_and_values_are_of_the_windows_means() -> None:
    hilo = layer(window_size=2, alpha=1)
    x = noise(2, 4, 6, 24)
    means = x.reshape(2, 2, 2, 3, 2, 24).mean(dim=(2, 4)).flatten(1, 2)
    heads = [
        t.unflatten(-1, (6, 4)).transpose(1, 2) for t in (hilo.l_q(x.flatten(1, 2)), *hilo.l_kv(means).chunk(2, -1))
    ]
    q, k, v = heads
    want = (q @ k.mT / 2).softmax(-1) @ v
    torch.testing.assert_close(hilo(x).flatten(1, 2), hilo.l_proj(want.transpose(1, 2).flatten(2)), **EXACT)


def test_the_number_of_low_heads_is_cut_off_not_rounded() -> None:
    assert [HiLoAttention(96, 12, alpha=a).l_heads for a in (0, 0.05, 0.2, 0.9, 1)] == [0, 0, 2, 10, 12]


def test_near_heads_see_their_window_and_far_ones_all_of_it() -> None:
    hilo = layer(window_size=2, alpha=0.5)
    x = noise(1, 6, 6, 24)
    moved = x.clone()
    moved[:, 5, 5] += 1
    changed = (hilo(moved) - hilo(x)).abs().amax(dim=0) > 1e-7
    near, far = changed[..., : hilo.h_dim].any(-1), changed[..., hilo.h_dim :].any(-1)
    assert near.sum() == 4 and near[4:, 4:].all() and far.all()


def test_in_a_timm_vit_without_prefix_tokens() -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=6,
        class_token=False, global_pool="avg",
    )  # fmt: skip
    for block in vit.blocks:
        block.attn = HiLoAttention(24, 6, window_size=2, alpha=0.5, grid_size=vit.patch_embed.grid_size)
    vit(noise(2, 3, 32, 48)).sum().backward()
    assert all(p.grad is not None for p in vit.blocks.parameters())
    hilo = vit.blocks[0].attn
    with pytest.raises(BadInput, match=r"25 tokens, grid_size \(4, 6\) has 24: .*class_token=False"):
        hilo(noise(2, 25, 24))
    with pytest.raises(BadInput, match="give HiLoAttention a grid_size"):
        layer()(noise(2, 24, 24))
    with pytest.raises(Refused, match="no mask"):
        hilo(noise(2, 24, 24), attn_mask=torch.zeros(24, 24))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_heads": 5}, "num_heads is 5 for dim 24"),
        ({"alpha": 1.1}, "alpha is 1.1; accepted: a number from 0"),
        ({"alpha": True}, "alpha is True"),
        ({"window_size": 0}, "window_size is 0; accepted: a whole number, 1"),
    ],
)
def test_values_of_the_layer_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        HiLoAttention(**{"dim": 24, "num_heads": 6, **given})


# --- displaced reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_displaced_and_convolved_is_deformable_convolution(size: tuple[int, int]) -> None:
    """Offsets of up to several pixels, beyond every border; values and gradients."""
    x = noise(2, 3, *size, dtype=torch.float64).requires_grad_()
    offset = (3 * noise(2, 8, size[0] // 2, size[1] // 2, seed=2, dtype=torch.float64)).requires_grad_()
    weight = noise(5, 3, 2, 2, seed=3, dtype=torch.float64)
    ours, theirs = F.conv2d(displaced(x, offset), weight, stride=2), deform_conv2d(x, offset, weight, stride=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for t in (x, offset):
        a, b = (torch.autograd.grad(y.square().sum(), t, retain_graph=True)[0] for y in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_merging_starts_as_an_ordinary_convolution() -> None:
    model = timm.create_model("litv2_small", **SMALL["litv2_small"]).eval()
    for stage in list(model.layers)[1:]:
        merging = stage.downsample
        x = noise(2, 14, 10, merging.conv.in_channels)
        want = F.gelu(merging.norm(merging.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        torch.testing.assert_close(merging(x), want, rtol=0, atol=1e-6 * want.abs().max().item())
        exact = merging.double()
        want = F.gelu(exact.norm(exact.conv(x.double().permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        torch.testing.assert_close(exact(x.double()), want, rtol=0, atol=1e-12)


def test_places_are_exact_in_half_precision() -> None:
    x, offset = noise(1, 2, 64, 64).bfloat16(), torch.full((1, 8, 32, 32), 0.5, dtype=torch.bfloat16)
    y = displaced(x, offset)
    assert y.dtype == torch.bfloat16
    want = F.avg_pool2d(x.float(), 2, stride=1)  # half a pixel on: the mean of four
    torch.testing.assert_close(y[..., :63, :63].float(), want, rtol=0, atol=0.01)


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_is_the_papers_network_on_images_that_are_not_square(alpha: float) -> None:
    model, x = small(alpha=alpha), noise(2, 3, 64, 96)
    with torch.no_grad():
        want = PlainLITv2(model)(x)
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("deform", [True, False])
def test_folded_it_computes_the_same_with_fewer_parts(deform: bool) -> None:
    model, x = small(deform=deform), noise(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        macs, linears = count(model, (3, 64, 64)).macs, sum(isinstance(m, nn.Linear) for m in model.modules())
        torch.testing.assert_close(model.fuse()(x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        torch.testing.assert_close(model.fuse()(x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == linears - 3  # one a block with attention
    assert count(model, (3, 64, 64)).macs == macs
    assert all((m.offset is not None) == deform for m in model.modules() if isinstance(m, DeformableMerging))


def test_folding_leaves_out_offsets_that_never_learned() -> None:
    model, x = timm.create_model("litv2_small", **SMALL["litv2_small"]).eval(), noise(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(model.fuse()(x), want, rtol=1e-5, atol=1e-5)
    assert all(m.offset is None for m in model.modules() if isinstance(m, DeformableMerging))
    with pytest.raises(Refused, match=r"call eval\(\) first"):
        model.train().fuse()


def test_sides_that_are_no_multiple_of_32() -> None:
    with pytest.raises(BadInput, match="images are 72x64; accepted: sides divisible by 32"):
        small()(noise(1, 3, 72, 64))
    model = small(strict_img_size=False)
    final, maps = model.forward_intermediates(noise(1, 3, 75, 49))
    assert [tuple(m.shape[2:]) for m in maps] == [(19, 13), (10, 7), (5, 4), (3, 2)]
    assert final.shape == (1, 3, 2, 128)


def test_drop_path_rises_over_all_blocks() -> None:
    model = timm.create_model("litv2_small", drop_path_rate=0.2)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_offsets_learn_at_a_hundredth_of_the_rate() -> None:
    model = create(Root("litv2_small", SMALL["litv2_small"]))
    optimizer = make_optimizer(model, CrossEntropy(), FitConfig(lr=0.1))
    scale = {id(p): g.get("lr_scale", 1.0) for g in optimizer.param_groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(scale) == len(named)
    assert {n for n, p in named.items() if scale[id(p)] == 0.01} == {n for n in named if ".offset." in n}
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all((decays[id(p)] == 0) == (p.dim() < 2) for p in named.values())


# --- official checkpoints -------------------------------------------------------------------------------------------


def official(model: LITv2) -> dict[str, Tensor]:
    """A state dict under the names of the paper's repository."""
    found = {}
    for name, t in model.state_dict().items():
        head, _, rest = name.partition(".downsample.")
        if rest:
            rest = rest.replace("offset.", "dconv.conv_offset.") if "offset" in rest else rest
            rest = rest.replace("norm.", "norm_layer.").replace("conv.", "dconv.") if "offset" not in rest else rest
            name = f"layers.{int(head.split('.')[1]) - 1}.downsample.{rest}"
        found[name.replace(".dwconv.", ".dwconv.dwconv.")] = t
    return found


def test_official_files_load_by_name(tmp_path: Path) -> None:
    model, fresh, said = small(), timm.create_model("litv2_small", **SMALL["litv2_small"]).eval(), []
    torch.save({"model": official(model), "epoch": 3}, tmp_path / "litv2_s.pth")
    load_weights(fresh, tmp_path / "litv2_s.pth", name="litv2_small", log=said.append)
    x = noise(1, 3, 64, 64)
    assert torch.equal(fresh(x), model(x)) and "an official checkpoint of litv2_small" in said[0]
    built = timm.create_model(
        "litv2_small", **SMALL["litv2_small"], pretrained=True,
        pretrained_cfg_overlay={"state_dict": {"model": official(model)}, "num_classes": 5},
    )  # fmt: skip
    assert torch.equal(built.eval()(x), model(x))


@pytest.mark.parametrize("names", [official, LITv2.state_dict], ids=["official", "ours"])
def test_a_checkpoint_of_another_alpha_is_named(names: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has 4 Lo-Fi heads of 4 in the checkpoint \(alpha from 1.000 .*\(alpha=0.5\)"
    ):
        checkpoint_filter_fn(names(small(alpha=1)), small(alpha=0.5))
    torch.save(official(small(alpha=0)), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="has 0 Lo-Fi heads of 4"):
        load_weights(small(), tmp_path / "file.pth", name="litv2_small")


# --- a life ---------------------------------------------------------------------------------------------------------


def test_it_is_a_root_that_trains_is_quantized_saved_and_loaded(tmp_path: Path) -> None:
    args = {"patch_size": 1, "img_size": 8, "in_chans": 1, "num_classes": 4, "embed_dim": 8, "depths": (1, 1, 1, 1)}
    model = create(Root("litv2_small", {**args, "num_heads": (1, 1, 4, 4)}))
    fit(model, make_data(16), preprocess=make_preprocess(), config=FitConfig(epochs=1, batch_size=8))
    data = Data(make_data(16), make_preprocess(), batch_size=8)
    lean = compress(model, [Int8(images=8)], data)
    x = noise(2, 1, 8, 8)
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    assert {row["bits"] for row in describe(lean)} == {8}


def test_images_are_made_for_the_size_that_it_was_built_for() -> None:
    assert Preprocess.of(create(Root("litv2_small", SMALL["litv2_small"]))).input_size == (3, 64, 64)
