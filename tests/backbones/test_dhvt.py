"""DHVT: what makes it one (head tokens, the gated class token, no positions), what it refuses, and that it deploys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from backbones.small import SMALL
from leanvit.anatomy import close_model, open_model
from leanvit.backbones.dhvt import DHVT, checkpoint_filter_fn
from leanvit.errors import BadInput, Refused
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Root, compress, create, load, save
from leanvit.recipe.learning import Data
from leanvit.tokens.evit import EViT
from training.tiny_training import make_data, make_preprocess
from zoo import randomise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from plain_dhvt import PlainDHVT

NAME = "dhvt_tiny_cifar_patch4"


def built(**changes: Any) -> DHVT:
    """A small model, every parameter and running statistic random."""
    model = randomise(timm.create_model(NAME, **{**SMALL[NAME], **changes})).eval()
    rng = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=rng))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=rng))
    return model  # type: ignore[return-value]


def picture(side: int = 16, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("patch", [2, 4, 16])
@torch.no_grad()
def test_it_computes_the_published_formulas_as_they_are_written(patch: int) -> None:
    model = built(patch_size=patch, img_size=32)
    x = picture(32)
    torch.testing.assert_close(model(x), PlainDHVT(model)(x), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("patch", [2, 4, 16])
@torch.no_grad()
def test_fused_it_says_the_same(patch: int) -> None:
    model = built(patch_size=patch, img_size=32)
    want = model(picture(32))
    names = {type(m) for m in model.fuse().modules()}
    torch.testing.assert_close(model(picture(32)), want, rtol=1e-5, atol=1e-5)
    assert nn.BatchNorm2d not in names
    assert isinstance(model.patch_embed.post_affine, nn.Identity) == (patch != 2)  # a GELU stands before it there
    torch.testing.assert_close(model.fuse()(picture(32)), want, rtol=1e-5, atol=1e-5)  # again: nothing left to do
    with pytest.raises(BadInput, match=r"call model\.eval\(\) first"):
        built().train().fuse()


@torch.no_grad()
def test_weights_of_one_size_run_at_another() -> None:
    model = built()
    small, large = model(picture(16)), model(picture(48))
    assert small.shape == large.shape and not torch.allclose(small, large)
    wide = torch.randn(1, 3, 8, 24)
    assert model.forward_intermediates(wide, intermediates_only=True)[0].shape[-2:] == (2, 6)
    assert "pos_embed" not in dict(model.named_parameters(recurse=False))
    assert not torch.allclose(model(wide), model(wide.flip(-1)), atol=1e-3), "padding says where a patch is"


@torch.no_grad()
def test_head_tokens_join_and_leave_in_the_class_token() -> None:
    block: Any = built().blocks[0]
    attn, x = block.attn, torch.randn(2, 10, 32)
    tokens = attn.head_tokens(x)
    assert tokens.shape == (2, attn.num_heads, 32)
    moved = x.clone()
    moved[:, 0] += 1.0  # the class token is part of the mean
    assert not torch.allclose(attn.head_tokens(moved), tokens)
    together = attn.attend(torch.cat([x, tokens], dim=1))
    got = attn(x)
    torch.testing.assert_close(got[:, 1:], together[:, 1:10])
    torch.testing.assert_close(got[:, 0], together[:, 0] + together[:, 10:].mean(dim=1))
    attn.fused_attn = not attn.fused_attn
    torch.testing.assert_close(attn(x), got, rtol=1e-4, atol=1e-5)


def test_head_tokens_are_an_ablation() -> None:
    with_, without = built(), built(head_tokens=False)
    left = set(with_.state_dict()) - set(without.state_dict())
    assert {name.split(".", 3)[3].split(".")[0] for name in left} == {"ht_proj", "ht_norm", "pos_embed"}
    x = torch.randn(1, 5, 32)
    attn: Any = without.blocks[0].attn
    assert torch.equal(attn(x), attn.attend(x))
    tokens = sum(p.numel() for p in with_.parameters()) - sum(p.numel() for p in without.parameters())
    other = built(num_heads=2)
    assert sum(p.numel() for p in other.parameters()) - sum(p.numel() for p in without.parameters()) != tokens


@torch.no_grad()
def test_the_class_token_is_gated_by_the_patches_alone() -> None:
    mlp: Any = built().blocks[0].mlp
    x = torch.randn(2, 7, 32)
    twice = torch.cat([2 * x[:, :1], x[:, 1:]], dim=1)
    once, doubled = mlp(x, (2, 3)), mlp(twice, (2, 3))
    torch.testing.assert_close(doubled[:, 0], 2 * once[:, 0])
    assert torch.equal(doubled[:, 1:], once[:, 1:])
    gate = once[:, 0] / x[:, 0]
    assert gate.min() < 0 or gate.max() > 1, "no sigmoid"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch_size": 8}, "patch_size is 8; accepted: 2, 4, 16"),
        ({"img_size": 18}, r"img_size is 18; accepted: a side or \(H, W\), multiples of 4"),
        ({"img_size": (16, 18)}, r"img_size is \(16, 18\)"),
        ({"img_size": 0}, "img_size is 0"),
        ({"embed_dim": 36, "num_heads": 5}, "embed_dim is 36; accepted: multiples of 5, for heads"),
        ({"embed_dim": 36, "num_heads": 4, "patch_size": 16}, "multiples of 8, for the stem's first convolution"),
        ({"num_heads": 0}, "num_heads is 0; accepted: a whole number, 1 or more"),
        ({"norm": "ln"}, "norm is 'ln'; accepted: bn or syncbn"),
        ({"global_pool": "avg"}, "global_pool is 'avg'; accepted: 'token'"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        built(**given)


def test_an_image_that_patches_do_not_divide_is_named() -> None:
    with pytest.raises(BadInput, match="images are 18x16; accepted: sides that are multiples of 4"):
        built()(torch.zeros(1, 3, 18, 16))
    with pytest.raises(BadInput, match="18x16"):
        open_model(built())(torch.zeros(1, 3, 18, 16))


def test_synchronised_norms_have_the_same_state() -> None:
    plain, synchronised = built(), built(norm="syncbn")
    synchronised.load_state_dict(plain.state_dict())
    assert torch.equal(plain(picture()), synchronised(picture()))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules()) == 2  # the stem's, as the official code
    torch.testing.assert_close(open_model(synchronised)(picture()), plain(picture()))


def test_official_checkpoints_keep_their_names() -> None:
    state = built().state_dict()
    assert checkpoint_filter_fn(state, built()).keys() == state.keys()
    state["pos_embed"] = torch.zeros(1, 17, 32)  # of a plain ViT
    with pytest.raises(ValueError, match="the model has no pos_embed"):
        checkpoint_filter_fn(state, built())
    given = {"state_dict": {"model": built().state_dict()}, "num_classes": 5}
    ours = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=given, **SMALL[NAME]).eval()
    assert torch.equal(ours(picture()), built()(picture()))


def test_compressed_saved_and_loaded(tmp_path: Path) -> None:
    model = create(Root(NAME, {**SMALL[NAME], "img_size": 8, "in_chans": 1, "num_classes": 4}))
    data = Data(make_data(16), make_preprocess(), batch_size=8)
    lean = compress(model, [Int8(images=8)], data)
    assert {row["bits"] for row in describe(lean)} == {8}
    save(lean, tmp_path / "run")
    x = picture(8, 1)
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    with pytest.raises(Refused, match=r"evit needs .*blocks"):
        compress(model, [EViT()], data)


def test_opened_its_blocks_are_parts_of_a_graph() -> None:
    """A child called `blocks` is no block with slots: the opened model has none, and hands the child back."""
    model = built()
    opened = open_model(model)
    assert len(opened.blocks) == 0 and opened.get_submodule("blocks.0.attn") is model.blocks[0].attn
    opened.reset_classifier(9)
    assert opened(picture()).shape == (2, 9)
    closed = close_model(opened)
    assert closed is model and closed(picture()).shape == (2, 9)
    with pytest.raises(AttributeError):
        opened.get_submodule("blocks.7")
