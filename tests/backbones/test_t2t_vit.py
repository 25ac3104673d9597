"""T2T-ViT: its tokenizer and positions, what it refuses, official files, methods on its blocks, and deployment."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from backbones.small import SMALL as OF_CARD
from leanvit.anatomy import close_model, open_model
from leanvit.backbones.t2t_vit import checkpoint_filter_fn
from leanvit.backbones.t2t_vit.model import sinusoid
from leanvit.backbones.t2t_vit.opened import OpenT2TViT
from leanvit.backbones.t2t_vit.tokenizer import PerformerCell
from leanvit.data import Preprocess
from leanvit.deploy import export, load_artefact
from leanvit.deploy.block_graphs import block_shapes, require_plain
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.prune.nvit import NViT
from leanvit.prune.nvit.cost import Macs, Parameters
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.structure import cut, structure_of
from leanvit.prune.nvit.units import layout
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Data, Root, compress, create, load, save
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from training.tiny_training import make_data
from zoo import randomise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from plain_t2t_vit import PlainT2TViT

SMALL = {  # 32x32 images: four patch tokens
    name: args | {"img_size": 32, "embed_dim": 32, "num_heads": 2}
    for name, args in OF_CARD.items()
    if name.startswith("t2t_vit")
}
PERFORMER, TRANSFORMER = "t2t_vit_7", "t2t_vit_t_14"
PLAIN = pytest.mark.parametrize("name", [PERFORMER, TRANSFORMER])
TRACED = ("t2t_vit_14_se", "t2t_vit_16_ghost", "t2t_vit_dense")


def built(name: str = PERFORMER, **changes: Any) -> Any:
    """A small model, every parameter random; buffers are what they are."""
    torch.manual_seed(0)
    return randomise(timm.create_model(name, **{**SMALL[name], **changes})).eval()


def picture(height: int = 32, width: int | None = None, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width or height, generator=torch.Generator().manual_seed(1))


def tokens(width: int, number: int = 40) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(2)
    return tuple(torch.randn(2, number, width, generator=rng) / 2 for _ in range(3))


# --- the formulas ---------------------------------------------------------------------------------------------------


@PLAIN
@torch.no_grad()
def test_it_computes_the_published_formulas_as_they_are_written(name: str) -> None:
    model = built(name, img_size=(48, 64))
    x = picture(48, 64)
    torch.testing.assert_close(model(x), PlainT2TViT(model)(x), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_the_performer_is_dense_attention_with_its_kernel() -> None:
    """Rows of phi(q)·phi(k), normalised, times the values: the matrix that the linear form never builds."""
    cell = PerformerCell(24, 16).eval()
    k, q, v = tokens(16)
    weights = cell._features(q, (2,)) @ cell._features(k, (1, 2)).transpose(1, 2)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    assert (weights >= 0).all()
    torch.testing.assert_close(cell.attended(k, q, v), weights @ v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cell.w @ cell.w.T, 8 * torch.eye(8), rtol=1e-4, atol=1e-5)  # orthogonal, √m long


def test_the_performer_costs_the_more_tokens_the_more_in_proportion() -> None:
    with torch.device("meta"):
        cell = PerformerCell(24, 16)

    def macs(number: int) -> int:
        return count(cell, (number, 24)).macs

    assert macs(4000) == 4 * macs(1000)


@torch.no_grad()
def test_features_stay_in_float32_and_a_stable_exponential_is_a_choice() -> None:
    cell, stable = PerformerCell(24, 16).eval(), PerformerCell(24, 16, stable_exp=True).eval()
    stable.load_state_dict(cell.state_dict())
    k, q, v = tokens(16)
    torch.testing.assert_close(stable.attended(k, q, v), cell.attended(k, q, v), rtol=1e-5, atol=1e-5)
    large = 24 * k, 24 * q, v  # |u|²/2 in the hundreds: every weight underflows
    assert cell.attended(*large).abs().max() < 1e-3 and stable.attended(*large).abs().max() > 0.1
    x = torch.randn(2, 40, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = cell.attended(k, q, v)
        assert cell(x).isfinite().all()
    assert torch.equal(seen, cell.attended(k, q, v)), "autocast reached the features"
    cell.fp32 = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(cell.attended(k, q, v).float(), seen)


def test_fixed_tables_are_in_the_state_but_are_not_trained(tmp_path: Path) -> None:
    model = built().train()
    state, trained = model.state_dict(), dict(model.named_parameters())
    fixed = {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    assert fixed == set(state) - set(trained)
    before = {key: state[key].clone() for key in fixed}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(picture()).square().sum().backward()
    optimizer.step()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(torch.equal(again[key], before[key]) for key in fixed)
    assert not torch.equal(again["cls_token"], state["cls_token"].new_zeros(1).expand_as(again["cls_token"]))


def test_the_sinusoid_counts_the_class_token_as_position_0() -> None:
    table = sinusoid(5, 6)
    assert table.shape == (1, 5, 6) and torch.equal(table[0, 0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(table[0, 3, 2:4], torch.tensor([3 / 10000 ** (1 / 3)] * 2).sin().where(
        torch.tensor([True, False]), torch.tensor([3 / 10000 ** (1 / 3)] * 2).cos()))  # fmt: skip


def test_dropout_of_the_tokenizer_belongs_to_the_model() -> None:
    model = built()
    x = picture()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PERFORMER, "t2t_vit_14_se"])
def test_images_of_another_size_are_named(name: str) -> None:
    for model in (built(name), open_model(built(name))):
        with pytest.raises(BadInput, match=r"images are (3x)?48x32, the model takes (3x)?32x32"):
            model(picture(48, 32))


def test_widths_of_a_dense_trunk_are_whole_heads() -> None:
    with pytest.raises(BadInput, match="num_heads is 2, which does not divide the width 39"):
        built("t2t_vit_dense", growth=7)


def test_features_of_a_dense_trunk_have_widths_of_their_own() -> None:
    model = built("t2t_vit_dense")
    assert [info["num_chs"] for info in model.feature_info] == [48, 64, 32, 48]  # the third is the transition
    with pytest.raises(BadInput, match="norm=True: tokens of 64 channels"):
        model.forward_intermediates(picture(), indices=[1], norm=True)
    assert model.prune_intermediate_layers([1]) == [1] and model.num_features == 64
    assert model.forward_features(picture()).shape == (2, 5, 64)


# --- official files -------------------------------------------------------------------------------------------------


def test_an_official_file_is_unwrapped_and_loads_by_timm() -> None:
    state = built().state_dict()
    given = {
        "state_dict": {"state_dict_ema": {f"module.{key}": value for key, value in state.items()}, "epoch": 9},
        "num_classes": 5,
    }
    ours = timm.create_model(PERFORMER, pretrained=True, pretrained_cfg_overlay=given, **SMALL[PERFORMER]).eval()
    assert torch.equal(ours(picture()), built()(picture()))
    headless = timm.create_model(
        PERFORMER, pretrained=True, pretrained_cfg_overlay=given, **{**SMALL[PERFORMER], "num_classes": 0}
    )
    assert torch.equal(headless.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("how", ["interpolate", "sinusoid"])
def test_positions_of_another_size_are_interpolated_or_computed(how: str) -> None:
    state = built(img_size=64).state_dict()
    model = built(img_size=96, resize_positions=how)
    table = checkpoint_filter_fn(state, model)["pos_embed"]
    assert table.shape == (1, 37, 32) and torch.equal(table[:, 0], state["pos_embed"][:, 0])
    assert torch.equal(table, sinusoid(37, 32)) == (how == "sinusoid")
    if how == "interpolate":
        grid = [t[0, 1:].T.unflatten(1, (n, n)) for t, n in ((state["pos_embed"], 4), (table, 6))]
        torch.testing.assert_close(grid[1].mean((1, 2)), grid[0].mean((1, 2)), rtol=0, atol=0.1)
    opened = open_model(model)
    assert torch.equal(checkpoint_filter_fn(state, opened)["pos_embed"], table)
    opened.load_state_dict(checkpoint_filter_fn(state, opened), strict=True)


def test_a_checkpoint_that_does_not_fit_says_why() -> None:
    with pytest.raises(ValueError, match=r"images with 3 channels, the model takes 1 \(in_chans\)"):
        checkpoint_filter_fn(built().state_dict(), built(in_chans=1))
    with pytest.raises(ValueError, match=r"it lacks tokens_to_token.attention1.attn.proj.bias.*; the model has no"):
        checkpoint_filter_fn(built().state_dict(), built(TRANSFORMER))


# --- opened ---------------------------------------------------------------------------------------------------------


def digits_of(model: Any) -> Data:
    preprocess = Preprocess((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0)
    return Data(make_data(16), preprocess, batch_size=8)


@PLAIN
def test_methods_for_blocks_run_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = create(Root(name, {**SMALL[name], "num_classes": 4}))
    assert isinstance(model, OpenT2TViT) and model.patch_tokens() == [4] * 3
    assert [shape.tokens for shape in block_shapes(require_plain(model))] == [5] * 3  # what a latency table asks
    lean = compress(model, [EViT(keep_rate=0.5, blocks=(1,)), Int8(images=8)], digits_of(model))
    assert lean.patch_tokens() == [4, 3, 3]
    bits = {row["site"]: row["bits"] for row in describe(lean) if row["operand"] != "weight"}
    whole = {site for site, n in bits.items() if n == 32}
    assert not whole and "blocks.0.attn.matmul1" in bits and "tokens_to_token.project" in bits
    assert ("tokens_to_token.attention1.attn.qkv" in bits) == (name == TRANSFORMER)
    assert not any("attention1.kqv" in site or "attention1.attn.matmul" in site for site in bits)
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))
    assert compress(model, [ToMe(r=1)]).patch_tokens() == [3, 2, 1]


@PLAIN
def test_nvit_cuts_its_blocks_and_the_stream_with_its_positions(name: str) -> None:
    model = create(Root(name, {**SMALL[name], "num_classes": 4})).eval()
    units = layout(model)
    torch.manual_seed(1)
    gates = torch.rand(units.total) < 0.7
    for _, span in units.spans():
        gates[span.start] = True  # some of each list stay
    structure = structure_of(units, gates, emb_norm="exact")
    masked = randomise(model)
    small = cut(copy.deepcopy(masked), structure)
    with torch.no_grad():
        close_units(units, masked.state_dict(), gates)
        torch.testing.assert_close(small(picture()), masked(picture()), rtol=1e-4, atol=1e-5)
    dims = {name: int(left.sum()) for name, left in units.split(gates).items()}
    assert small.embed_dim == dims["embed"] < 32 and "pos_embed" in dict(small.named_buffers())
    assert Macs.of(model).total(dims) == count(small, (3, 32, 32)).macs
    assert Parameters.of(model).total(dims) == sum(p.numel() for p in small.parameters())


def test_nvit_prunes_in_training_and_is_loaded(tmp_path: Path) -> None:
    model = create(Root(PERFORMER, {**SMALL[PERFORMER], "num_classes": 4}))
    knobs = {"macs": 0.92, "interval": 1, "max_steps": 3, "batch_size": 8, "embed_group": 4}
    lean = compress(model, [NViT(**knobs)], digits_of(model))
    assert count(lean, (3, 32, 32)).macs < count(model, (3, 32, 32)).macs
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))


@pytest.mark.parametrize("name", TRACED)
def test_the_other_trunks_are_graphs_whose_tokenizer_stays_float(name: str, tmp_path: Path) -> None:
    model = create(Root(name, {**SMALL[name], "num_classes": 4}))
    lean = compress(model, [Int8(images=8)], digits_of(model))
    sites = {row["site"]: row["bits"] for row in describe(lean)}
    assert set(sites.values()) == {8} and not any(site.startswith("tokens_to_token.att") for site in sites)
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))
    with pytest.raises(Refused, match=r"evit needs .*blocks"):
        compress(model, [EViT()], digits_of(model))


@pytest.mark.parametrize("name", [PERFORMER, TRANSFORMER, *TRACED])
def test_opened_it_trains_and_follows_autocast_bit_for_bit(name: str) -> None:
    model = built(name)
    opened = open_model(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(opened(picture()), model(picture()))
    outputs = []
    for net in (model, opened):
        net.train()
        torch.manual_seed(3)
        outputs.append(net(picture()))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    gradients = dict(opened.named_parameters())
    for key, p in model.named_parameters():
        torch.testing.assert_close(gradients[key].grad, p.grad, rtol=1e-5, atol=1e-6, msg=key)


def test_a_changed_tokenizer_is_refused() -> None:
    model = built()
    model.tokens_to_token.attention1 = nn.Identity()
    with pytest.raises(Refused, match=r"tokens_to_token.attention1 is a Identity; supported: PerformerCell"):
        open_model(model)
    closed = close_model(open_model(built()))
    with pytest.raises(Refused, match="fused for deployment"):
        open_model(closed.fuse())


# --- deployment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PERFORMER, TRANSFORMER, *TRACED])
@torch.no_grad()
def test_fused_it_says_the_same_from_fewer_operations(name: str) -> None:
    model = built(name)
    x = picture()
    want, features = model(x), model.forward_features(x)
    before = count(model, (3, 32, 32)).macs
    assert model.fuse() is model and model.fuse() is model
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.forward_features(x), features, rtol=1e-5, atol=1e-5)
    assert isinstance(model.tokens_to_token.project, nn.Conv2d)
    saved = before - count(model, (3, 32, 32)).macs
    others, width, hidden = 4, 32, model.blocks[-1].mlp.fc1.out_features  # tokens beside the class token
    last = others * (2 * width * width + 2 * width * hidden + 2 * (others + 1) * width)
    assert saved == (last if name in (PERFORMER, TRANSFORMER) else 0)
    model.reset_classifier(3, "avg")
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    with pytest.raises(BadInput, match=r"call model\.eval\(\) first"):
        built(name).train().fuse()


@pytest.mark.e2e
def test_int8_reaches_the_runtime(tmp_path: Path) -> None:
    model = create(Root(PERFORMER, {**SMALL[PERFORMER], "num_classes": 4, "depth": 2}))
    data = digits_of(model)
    lean = compress(model, [EViT(keep_rate=0.5, blocks=(1,)), Int8(images=8)], data)
    made = export(lean, tmp_path / "artefact", to="openvino", preprocess=data.preprocess, batch=2)
    assert made.check["integer_products"] == len({row["site"] for row in describe(lean) if row["bits"] == 8}) == 14
    got = torch.as_tensor(load_artefact(tmp_path / "artefact")(picture()))
    torch.testing.assert_close(got, lean(picture()), rtol=1e-2, atol=1e-2)
