"""Masks on scores: what they are, where they act, and that they live with every other method."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from backbones.small import SMALL
from leanvit.anatomy import OpenModel, Ops, close_model, open_model
from leanvit.anatomy.parts.masks import ElementMask, GaussianMixtureMask, ScoreMask, gaussian_mixture, offsets
from leanvit.backbones.gmm_mask import fuse
from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.structure import cut, structure_of
from leanvit.prune.nvit.units import layout
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Root, compress, create, load, save
from leanvit.recipe.learning import Data
from leanvit.tasks.objectives import CrossEntropy
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from leanvit.training import FitConfig, fit
from leanvit.training.optimizers import make_optimizer
from training.tiny_training import make_data, make_preprocess
from zoo import build, build_swin, images, randomise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from plain_gmm_mask import PlainGmmViT

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}


def vit(**changes: Any) -> OpenModel:
    return create(Root("vit_tiny_patch16_224", {**VIT, **changes})).eval()


def picture(side: int = 8) -> Tensor:
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(1))


def plain_mixture(sigma: Tensor, alpha: Tensor, rows: int, columns: int) -> Tensor:
    """The published formula, pair by pair, in double precision."""
    patches = [(y, x) for y in range(rows) for x in range(columns)]
    out = torch.zeros(sigma.shape[1], len(patches), len(patches), dtype=torch.float64)
    for h in range(sigma.shape[1]):
        for i, (yi, xi) in enumerate(patches):
            for j, (yj, xj) in enumerate(patches):
                squared = (yi - yj) ** 2 + (xi - xj) ** 2
                for s, a in zip(sigma[:, h].flatten().tolist(), alpha[:, h].flatten().tolist(), strict=True):
                    out[h, i, j] += a * math.exp(-squared / (2 * (s * s + 1e-5)))
    return out


class Watched(Ops):
    """Keeps what enters each softmax, by site."""

    fused = False

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def softmax(self, site: str, scores: Any) -> Any:
        self.kept[site] = scores
        return super().softmax(site, scores)


# --- the mask --------------------------------------------------------------------------


def test_it_is_the_published_mixture_on_any_grid() -> None:
    mask = GaussianMixtureMask(2, (3, 5), kernels=3)
    with torch.no_grad():
        mask.sigma.copy_(torch.linspace(-2, 6, 6).reshape(3, 2, 1, 1))
    want = plain_mixture(mask.sigma, mask.alpha, 3, 5)
    torch.testing.assert_close(mask.between((3, 5)).double(), want, rtol=1e-5, atol=1e-5)
    other = plain_mixture(mask.sigma, mask.alpha, 4, 2)
    torch.testing.assert_close(mask.between((4, 2)).double(), other, rtol=1e-5, atol=1e-5)
    assert torch.equal(want, want.transpose(1, 2)), "symmetric"


def test_far_patches_do_not_underflow() -> None:
    """The official arithmetic takes exp(-d²) to a power: 0 for 22 % of the pairs of a 14x14 grid."""
    sigma, alpha = torch.full((1, 1, 1, 1), 10.0), torch.ones(1, 1, 1, 1)
    squared = (torch.arange(14).repeat_interleave(14).unsqueeze(1) - torch.arange(14).repeat_interleave(14)) ** 2
    squared = squared + (torch.arange(14).repeat(14).unsqueeze(1) - torch.arange(14).repeat(14)) ** 2
    assert ((-squared.float()).exp() == 0).float().mean() > 0.2
    for side in (14, 24):
        mask = gaussian_mixture(sigma, alpha, (side, side))
        assert mask.isfinite().all() and mask.min() > math.exp(-(2 * (side - 1) ** 2) / 200) * 0.999
    assert torch.equal(offsets((1, 2)), torch.tensor([[0, 1], [1, 0]]))


def test_gradients_reach_sigma_and_alpha() -> None:
    mask = GaussianMixtureMask(2, (2, 2), kernels=2).double()
    with torch.no_grad():
        mask.sigma.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]).reshape(2, 2, 1, 1))
    run = lambda s, a: gaussian_mixture(s, a, (2, 2))  # noqa: E731
    assert torch.autograd.gradcheck(run, (mask.sigma, mask.alpha))


# --- in a model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224:dynamic",
        "deit_tiny_distilled_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_xp_224",
        "vit_small_patch16_18x2_224",
        "vit_dwee_patch16_reg1_gap_256",
        "vit_relpos_base_patch16_cls_224",
    ],
)
@pytest.mark.parametrize("mask", ["gmm", "elm"])
@torch.no_grad()
def test_the_identity_changes_nothing_and_prefix_tokens_are_never_masked(name: str, mask: str) -> None:
    dense: Any = open_model(build(name))
    x = images(dense)
    same = compress(dense, [GmmMask(mask=mask)])
    torch.testing.assert_close(same(x), dense(x), rtol=1e-4, atol=1e-5)
    masked, seen, before = compress(dense, [GmmMask(mask=mask, init="paper")]), Watched(), Watched()
    assert not torch.allclose(masked(x, ops=seen), dense(x, ops=before), atol=1e-3)
    prefix = dense.num_prefix_tokens
    first = next(iter(seen.kept))
    assert torch.equal(seen.kept[first][:, :, :prefix], before.kept[first][:, :, :prefix])
    assert torch.equal(seen.kept[first][..., :prefix], before.kept[first][..., :prefix])
    assert not torch.equal(seen.kept[first], before.kept[first])


@pytest.mark.parametrize("name", ["swin_small_patch4_window7_224:padded", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_in_windows_the_grid_is_the_window(name: str) -> None:
    dense: Any = open_model(build_swin(name))
    x = images(dense)
    torch.testing.assert_close(compress(dense, [GmmMask()])(x), dense(x), rtol=1e-4, atol=1e-5)
    masked = compress(dense, [GmmMask(init="paper")])
    assert {block.attn.mask.grid for block in masked.blocks} == {block.attn.window for block in masked.blocks}
    assert not torch.allclose(masked(x), dense(x), atol=1e-3)


def test_it_costs_two_numbers_a_kernel_and_head() -> None:
    dense, masked = vit(), compress(vit(), [GmmMask(num_kernels=4, blocks=(0, 2))])
    before, after = count(dense, (1, 8, 8)), count(masked, (1, 8, 8))
    assert after.params - before.params == 2 * 4 * 3 * 2
    assert after.macs <= 1.01 * before.macs
    plain = compress(vit(), [GmmMask(mask="elm")])
    assert count(plain, (1, 8, 8)).params - before.params == 3 * 16 * 16
    assert GmmMask().achieved(plain, {}) == {"mask_parameters": 3 * 16 * 16}


@torch.no_grad()
def test_a_mask_follows_the_tokens_that_are_left() -> None:
    masked = compress(vit(), [GmmMask(init="paper"), EViT(keep_rate=0.5, blocks=(0,), fuse=False)])
    seen = Watched()
    _, state = masked.trace(picture(), ops=seen)
    positions = state.positions
    assert positions is not None and positions.shape == (2, 8)
    table = masked.blocks[1].attn.mask.between((4, 4))
    free = compress(vit(), [EViT(keep_rate=0.5, blocks=(0,), fuse=False)])
    free.load_state_dict({k: v for k, v in masked.state_dict().items() if ".mask." not in k})
    for image in range(2):
        want = table[:, positions[image]][:, :, positions[image]]
        q, k = _queries_and_keys(masked, positions)
        got = seen.kept["blocks.1.attn.softmax"][image, :, 1:, 1:]
        torch.testing.assert_close(got, (q @ k.transpose(-2, -1))[image, :, 1:, 1:] * want, rtol=1e-4, atol=1e-5)


def _queries_and_keys(model: OpenModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled queries and keys of the second block."""
    x, state = model.embed(picture(), model.start(picture()))
    x, state = model.run(x, state, 0, 1)
    block = model.blocks[1]
    q, k, _ = block.attn.project(block.norm1(x), state.ops)
    return q * block.attn.scale, k


@torch.no_grad()
def test_distances_go_to_other_image_sizes_and_elements_do_not() -> None:
    wide = picture(12)
    assert compress(vit(dynamic_img_size=True), [GmmMask(init="paper")])(wide).isfinite().all()
    with pytest.raises(BadInput, match="tied to its grid of 4x4 patches and was given 6x6"):
        compress(vit(dynamic_img_size=True), [GmmMask(mask="elm")])(wide)


def test_patches_that_are_dropped_while_training_leave_with_their_places() -> None:
    model = compress(vit(patch_drop_rate=0.5), [GmmMask(init="paper")]).train()
    _, state = model.trace(picture())
    assert state.positions is not None and state.positions.shape == (2, 8)


def test_what_it_refuses() -> None:
    with pytest.raises(Refused, match=r"blocks\.0\.attn has a mask on its scores already"):
        compress(vit(), [GmmMask(blocks=(0,)), GmmMask()])
    with pytest.raises(Refused, match="holds score terms"):
        close_model(compress(vit(), [GmmMask()]))
    with pytest.raises(BadInput, match="block is 3; accepted: 0 to 2"):
        compress(vit(), [GmmMask(blocks=(3,))])
    with pytest.raises(Refused, match="gmm_mask needs transformer blocks"):
        compress(open_model(timm.create_model("gmm_pit_cifar", **SMALL["gmm_pit_cifar"])), [GmmMask()])
    with pytest.raises(Refused, match="has a mask on its scores already"):
        compress(open_model(timm.create_model("gmm_vit_cifar", **SMALL["gmm_vit_cifar"])), [GmmMask()])


def test_decay_of_the_masks_is_a_switch() -> None:
    for decays in (True, False):
        model = compress(vit(), [GmmMask(weight_decay=decays)])
        optimizer = make_optimizer(model, CrossEntropy(), FitConfig(epochs=1))
        alpha = model.blocks[0].attn.mask.alpha
        (decay,) = (g["weight_decay"] for g in optimizer.param_groups for p in g["params"] if p is alpha)
        assert decay == (0.05 if decays else 0.0)


# --- with other methods ----------------------------------------------------------------


def test_heads_that_are_cut_take_their_gaussians_along() -> None:
    model = compress(vit(), [GmmMask(init="paper")])
    units = layout(model)
    gates = torch.ones(units.total, dtype=torch.bool)
    for name, part in units.split(gates).items():
        if name.endswith((".head", ".mlp")):
            part[0] = False
    small = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="plain")).eval()
    assert small.blocks[0].attn.mask.sigma.shape == (5, 2, 1, 1)
    close_units(units, dict(model.named_parameters()), gates)
    torch.testing.assert_close(small(picture()), model(picture()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [pytest.param("gmm", marks=pytest.mark.extra("onnxruntime", of="onnx")), "elm"])
def test_it_trains_reduces_quantizes_saves_loads_and_exports(mask: str, tmp_path: Path) -> None:
    data = Data(make_data(16), make_preprocess(), batch_size=8)
    model = compress(create(Root("vit_tiny_patch16_224", {**VIT, "patch_size": 4})), [GmmMask(mask=mask, init="paper")])
    start = {k: v.clone() for k, v in model.state_dict().items() if ".mask." in k}
    model = fit(model, make_data(16), preprocess=make_preprocess(), config=FitConfig(epochs=2, batch_size=8)).model
    moved = {k for k, v in start.items() if not torch.equal(v, model.state_dict()[k])}
    assert moved >= {k for k in start if not k.startswith("blocks.2.")}, "the last is behind the class token's row"
    root, plan = model.history.root, model.history.plans
    more = [ToMe(r=(1, 1)), EViT(keep_rate=0.5, blocks=(2,)), Int8(images=8)]
    lean = compress(model, more if mask == "elm" else [], data)
    assert lean.history.root == root and lean.history.plans[:1] == plan
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))
    runtime = "onnx" if mask == "gmm" else "torch"
    artefact = export(lean, tmp_path / "artefact", to=runtime, preprocess=make_preprocess(), batch=2)
    got = torch.as_tensor(load_artefact(artefact)(picture()))
    torch.testing.assert_close(got, lean.eval()(picture()), rtol=1e-3, atol=1e-3)


# --- hosts -----------------------------------------------------------------------------


@torch.no_grad()
def test_fused_masks_say_the_same_until_they_are_trained_again() -> None:
    model = timm.create_model("gmm_swin_cifar", **SMALL["gmm_swin_cifar"]).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    want = model(x)
    assert torch.equal(fuse(model)(x), want) and model.state_dict().keys()
    masks = [m for m in model.modules() if isinstance(m, ScoreMask)]
    assert masks and all(mask.fixed is not None for mask in masks)
    for mask in masks:
        mask.alpha.add_(1.0)
    assert torch.equal(model(x), want), "a constant does not follow"
    assert not torch.allclose(model.train().eval()(x), want)


@pytest.mark.parametrize("host", ["vit", "swin"])
@torch.no_grad()
def test_a_host_opened_is_the_method_on_the_host_without_a_mask(host: str) -> None:
    small = SMALL[f"gmm_{host}_cifar"]
    own = open_model(timm.create_model(f"gmm_{host}_cifar", **small)).eval()
    bare = create(Root(f"gmm_{host}_cifar", {**small, "mask": "none"}))
    masked = compress(bare, [GmmMask(init="paper")]).eval()
    masked.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, *[small["img_size"]] * 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(masked(x), own(x))
    assert compress(own, [ToMe(r=2)])(x).isfinite().all()


@torch.no_grad()
def test_the_host_computes_the_published_formulas_as_they_are_written() -> None:
    model = randomise(timm.create_model("gmm_vit_cifar", **SMALL["gmm_vit_cifar"])).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), PlainGmmViT(model)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gmm_pit_cifar", "gmm_cait_cifar", "gmm_t2t_cifar"])
def test_traced_hosts_take_int8(name: str, tmp_path: Path) -> None:
    data = Data(make_data(16), make_preprocess(), batch_size=8)
    kwargs = {**SMALL[name], "img_size": 8, "in_chans": 1, "num_classes": 4}
    lean = compress(create(Root(name, kwargs)), [Int8(images=8)], data).eval()
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))


def test_wrong_arguments_of_a_host_are_named() -> None:
    for wrong, says in (
        ({"mask": "gaussian"}, "unknown mask 'gaussian'"),
        ({"num_kernels": 0}, "num_kernels is 0"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"dynamic_img_size": True}, "dynamic_img_size is True"),
    ):
        with pytest.raises(BadInput, match=says):
            timm.create_model("gmm_vit_cifar", **wrong)
    with pytest.raises(BadInput, match="patch_size is 3"):
        timm.create_model("gmm_t2t_cifar", patch_size=3)
    model = timm.create_model("elm_swin_cifar", img_size=32, window_size=4)
    assert {type(m) for m in model.modules() if isinstance(m, ScoreMask)} == {ElementMask}
    with pytest.raises(BadInput, match="tied to its grid"):
        model.set_input_size((64, 64), window_size=8)
