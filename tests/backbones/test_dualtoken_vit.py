"""DualToken-ViT: the published formulas, how global tokens travel, its ablations, and what it refuses."""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from backbones.small import SMALL
from leanvit.anatomy import open_model
from leanvit.backbones.dualtoken_vit import DualTokenViT
from leanvit.backbones.dualtoken_vit.lightvit import ResidualMerge
from leanvit.backbones.dualtoken_vit.parts import Broadcast, GlobalTokens, Shrink
from leanvit.data import Preprocess, check_fits
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Root, compress, create, load, save
from leanvit.recipe.learning import Data
from leanvit.tokens.tome import ToMe
from training.tiny_training import make_data, make_preprocess
from zoo import randomise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from plain_dualtoken_vit import PlainDualTokenViT

NAME = "dualtoken_vit_small"


def built(name: str = NAME, **changes: Any) -> DualTokenViT:
    """A small model, every parameter and running statistic random."""
    model = randomise(timm.create_model(name, **{**SMALL[NAME], **changes})).eval()
    rng = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=rng))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=rng))
    return model  # type: ignore[return-value]


def picture(side: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def branches(model: DualTokenViT) -> list[Any]:
    return [block.global_branch for stage in model.stages for block in stage.blocks]


@pytest.mark.parametrize("size", [64, 128, 160])
@pytest.mark.parametrize("name", ["dualtoken_vit_small", "dualtoken_vit_small_mix"])
@torch.no_grad()
def test_it_computes_the_formulas_as_they_are_written(name: str, size: int) -> None:
    """64: steps to 2x2; 128 and 160: to 7x7, with averages where steps do not lead there."""
    model = built(name, img_size=size, token_side=2 if size == 64 else 7)
    x = picture(size)
    want = PlainDualTokenViT(model)(x)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(model.fuse()(x), want, rtol=1e-4, atol=2e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_sizes_are_those_that_were_counted_and_near_the_published_ones() -> None:
    counted = {  # parameters and GMACs: of the specification, then published
        "dualtoken_vit_tiny_mix": (5.86, 0.53, 5.8, 0.5),
        "dualtoken_vit_small_mix": (11.69, 0.99, 11.4, 1.0),
        "dualtoken_vit_small": (12.16, 1.01, 11.9, 1.1),
    }
    for name, (params, gmacs, published, published_gmacs) in counted.items():
        with torch.device("meta"):
            cost = count(timm.create_model(name), (3, 224, 224))
        assert not cost.uncounted and round(cost.params / 1e6, 2) == params
        assert abs(cost.gmacs / gmacs - 1) < 0.03 and abs(params / published - 1) < 0.05
        assert abs(cost.gmacs / published_gmacs - 1) < 0.10


@torch.no_grad()
def test_global_tokens_change_in_each_block_and_reach_the_image_by_broadcast_alone() -> None:
    model = built(depths=(2, 1, 1))
    x = picture()
    seen: list[torch.Tensor] = [model.embed(x)[1]]
    for branch in branches(model):
        branch.register_forward_hook(lambda module, given, out: seen.append(out[1]))
    want = model(x)
    assert len(seen) == 5
    assert all(a.shape != b.shape or not torch.allclose(a, b) for a, b in pairwise(seen))
    model.global_tokens.add_(1.0)
    assert not torch.allclose(model(x), want)
    for branch in branches(model):
        branch.broadcast.proj.weight.zero_()
        branch.broadcast.proj.bias.zero_()
    without = model(x)
    model.global_tokens.add_(1.0)
    assert torch.equal(model(x), without)


def test_the_learned_tokens_learn_from_the_last_stage() -> None:
    model = built()
    last: list[torch.Tensor] = []
    branches(model)[-1].register_forward_hook(lambda module, given, out: last.append(out[1]))
    model(picture())
    (gradient,) = torch.autograd.grad(last[0].square().sum(), model.global_tokens)
    assert gradient.abs().min() > 0 and gradient.shape == (1, 4, 8)


@torch.no_grad()
def test_the_share_of_what_is_gathered() -> None:
    local, tokens = torch.randn(2, 8, 8, 16), torch.randn(2, 4, 16)

    def updated(alpha: float, local: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        shrink = Shrink(16, 2, 2, step_wise=True)
        branch = GlobalTokens(16, 2, shrink, g_mlp="normal", alpha=alpha, attn_drop=0.0, proj_drop=0.0)
        return branch(local, tokens)[1]

    assert torch.equal(updated(0.0, local, tokens), updated(0.0, 2 * local, tokens))
    assert torch.equal(updated(1.0, local, tokens), updated(1.0, local, 2 * tokens))
    for changed in ((2 * local, tokens), (local, 2 * tokens)):
        assert not torch.allclose(updated(0.5, local, tokens), updated(0.5, *changed))
    attend = Broadcast(16, 2)
    x = local.flatten(1, 2)
    torch.testing.assert_close(attend(x, tokens.flip(1)), attend(x, tokens), rtol=1e-4, atol=1e-6)
    whole = attend(x, tokens)
    attend.fused_attn = not attend.fused_attn
    torch.testing.assert_close(attend(x, tokens), whole, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_ablations() -> None:
    def size(**changes: Any) -> int:
        model = built(**changes)
        assert model(picture()).shape == (2, 5)
        return sum(p.numel() for p in model.parameters())

    assert size() - size(step_wise=False) == 8 * 10  # a 3x3 depthwise convolution with bias, in the first stage
    assert size(g_mlp="normal") != size(g_mlp="mix")
    assert size(conv_encoder=False) < size() < size(conv_ratio=4.0) and size(neck_dim=48) > size()
    plain = built(global_branch=False)
    assert plain.global_tokens is None and size(global_branch=False) < size()
    assert built(neck_dim=48, num_classes=0)(picture()).shape == (2, 48)
    assert built(global_pool="", num_classes=0)(picture()).shape == (2, 2, 2, 32)


@pytest.mark.parametrize("side", [192, 224, 256, 320])
@torch.no_grad()
def test_sizes_of_images_and_levels(side: int) -> None:
    model = built(img_size=side, token_side=7)
    maps = model.forward_intermediates(picture(side), intermediates_only=True, output_fmt="NHWC")
    assert [m.shape[1:] for m in maps] == [
        (side // 8, side // 8, 8),
        (side // 16,) * 2 + (16,),
        (side // 32,) * 2 + (32,),
    ]
    assert [branch.shrink.halvings for branch in branches(model)] == {
        192: [1, 0, 0],
        224: [2, 1, 0],
        256: [2, 1, 0],
        320: [2, 1, 0],
    }[side]
    assert model(picture(32)).shape == (2, 5), "smaller than it was built for"


@torch.no_grad()
def test_merging_pads_odd_sides_with_zeros() -> None:
    merge, x, tokens = ResidualMerge(8, 16), torch.randn(1, 5, 3, 8), torch.randn(1, 4, 8)
    padded = torch.zeros(1, 6, 4, 8)
    padded[:, :5, :3] = x
    assert torch.equal(merge(x, tokens)[0], merge(padded, tokens)[0]) and merge(x, tokens)[0].shape == (1, 3, 2, 16)


def test_drop_path_spares_the_global_tokens() -> None:
    model = built(drop_path_rate=1.0 - 1e-6, depths=(1, 1, 2)).train()
    last: list[torch.Tensor] = []
    branches(model)[-1].register_forward_hook(lambda module, given, out: last.append(out[1]))
    model(picture())
    assert last[0].abs().sum(dim=(1, 2)).min() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img_size": 100}, r"img_size is 100; accepted: a side or \(H, W\), multiples of 32"),
        ({"img_size": (64, 40)}, r"img_size is \(64, 40\)"),
        ({"img_size": 224, "token_side": 5}, "token_side is 5; accepted for images of 224x224: 7$"),
        ({"img_size": 256, "token_side": 5}, "token_side is 5; accepted for images of 256x256: 1, 2, 4, 7, 8"),
        ({"img_size": (64, 96), "token_side": 2}, "accepted for images of 64x96: 7"),
        ({"dims": (8, 16)}, r"dims is \(8, 16\); accepted: a list of 3, each a whole number"),
        ({"dims": (10, 16, 32)}, "multiples of 4 and of the stage's heads"),
        ({"depths": (1, 0, 1)}, "depths is"),
        ({"num_heads": 2}, "num_heads is 2; accepted: a list of 3, each a whole number"),
        ({"ffn_ratios": (8, 4, 0)}, r"ffn_ratios is \(8, 4, 0\); accepted: a list of 3, each a number above 0"),
        ({"g_mlp": "both"}, "g_mlp is 'both'; accepted: mix or normal"),
        ({"conv_ratio": 0}, "conv_ratio is 0; accepted: a number above 0"),
        ({"fuse_alpha": 1.5}, "fuse_alpha is 1.5; accepted: a number from 0 to 1"),
        ({"neck_dim": 0}, "neck_dim is 0; accepted: a whole number, 1 or more"),
        ({"global_pool": "max"}, "global_pool is 'max'; accepted: 'avg'"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        built(**given)


def test_images_that_do_not_fit() -> None:
    with pytest.raises(BadInput, match="images are 48x64; accepted: sides that are multiples of 32"):
        built()(torch.zeros(1, 3, 48, 64))
    with pytest.warns(UserWarning, match="images of 64x128: the square grid of global tokens"):
        built(img_size=(64, 128), token_side=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(img_size=(64, 96), token_side=7)
    one = Preprocess(
        (3, 48, 48), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0, crop_mode="center"
    )
    with pytest.raises(BadInput, match="the model takes 64x64, preprocess gives 48x48"):
        check_fits(built(), one, make_data(8), convert=True)


def test_compressed_saved_and_loaded(tmp_path: Path) -> None:
    small = {**SMALL[NAME], "img_size": 32, "token_side": 1, "in_chans": 1, "num_classes": 4}
    model = create(Root(NAME, small))
    pre = make_preprocess().__class__(
        (1, 32, 32), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0, crop_mode="center"
    )
    data = Data(make_data(16), pre, batch_size=8)
    lean = compress(model, [Int8(images=8)], data)
    assert {row["bits"] for row in describe(lean)} == {8}
    save(lean, tmp_path / "run")
    x = picture(32, 1)
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    with pytest.raises(Refused, match=r"tome needs .*blocks"):
        compress(model, [ToMe()], data)
    assert open_model(built()).input_size() == (3, 64, 64)
