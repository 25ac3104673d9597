"""Widths: linears of zeros, of the asked sizes; pruned units that contribute nothing leave the output as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from leanvit.anatomy import close_model, open_model
from leanvit.anatomy.parts.blocks import merge_heads
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width, set_mlp_width
from leanvit.errors import BadInput, Refused
from zoo import build, images

MLPS = ["vit_tiny_patch16_224", "vit_giant_patch14_dinov2", "aimv2_large_patch14_224", "beit3_base_patch16_224"]


def opened(name: str = "vit_tiny_patch16_224", **kwargs):
    return open_model(build(name, **kwargs))


@pytest.mark.parametrize("name", [*MLPS, "vit_tiny_patch16_224:gated", "vit_base_patch16_224:qk_norm"])
def test_new_parts_are_zeros_of_the_asked_widths(name):
    model = opened(name)
    attn, mlp = model.blocks[1].attn, model.blocks[1].mlp
    set_attention_widths(attn, heads=2, qk_dim=5, v_dim=4)
    set_mlp_width(mlp, 10)
    assert attn.qkv.out_features == 2 * (5 + 5 + 4) and attn.proj.in_features == 8
    assert mlp.fc2.in_features == 10
    linears = [m for part in (attn, mlp) for m in part.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) >= 4 and not any(p.any() for linear in linears for p in linear.parameters())
    with torch.no_grad():
        for part in (attn, mlp):
            for p in part.parameters():
                p.normal_(generator=torch.Generator().manual_seed(0))
    x = images(model)
    y = model(x)
    assert torch.isfinite(y).all()
    for block in model.blocks:
        block.attn.fused = False
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_removing_dead_units_changes_nothing():
    model = opened()
    x = images(model)
    whole = copy.deepcopy(model)
    block = model.blocks[1]
    attn, mlp, scale = block.attn, block.mlp, block.attn.scale
    old_qkv, old_proj, old_fc1, old_fc2 = (copy.deepcopy(m) for m in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))

    def cut(rows: torch.Tensor) -> torch.Tensor:  # head 1 dies; of q/k the dims 0 and 5, of v the dim 2
        q, k, v = rows.unflatten(0, (3, 3, 8))[:, [0, 2]]
        qk, vd = [1, 2, 3, 4, 6, 7], [0, 1, 3, 4, 5, 6, 7]
        return torch.cat([q[:, qk].flatten(0, 1), k[:, qk].flatten(0, 1), v[:, vd].flatten(0, 1)])

    dead = whole.blocks[1]
    kill = torch.zeros(3, 3, 8, dtype=torch.bool)
    kill[:, 1], kill[:2, :, [0, 5]], kill[2, :, 2] = True, True, True
    dead.attn.qkv.weight[kill.flatten()] = 0
    dead.attn.qkv.bias[kill.flatten()] = 0
    dead.mlp.fc2.weight[:, 90:] = 0
    want = whole(x)

    set_attention_widths(attn, heads=2, qk_dim=6, v_dim=7)
    set_mlp_width(mlp, 90)
    attn.qkv.weight.copy_(cut(old_qkv.weight))
    attn.qkv.bias.copy_(cut(old_qkv.bias))
    attn.proj.weight.copy_(old_proj.weight.unflatten(1, (3, 8))[:, [0, 2]][..., [0, 1, 3, 4, 5, 6, 7]].flatten(1))
    attn.proj.bias.copy_(old_proj.bias)
    mlp.fc1.weight.copy_(old_fc1.weight[:90])
    mlp.fc1.bias.copy_(old_fc1.bias[:90])
    mlp.fc2.weight.copy_(old_fc2.weight[:, :90])
    mlp.fc2.bias.copy_(old_fc2.bias)
    assert attn.scale == scale
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", *MLPS])
def test_embed_width(name):
    model = opened(name)
    set_embed_width(model, 20)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    y = model(images(model))
    assert y.shape == (2, 7) and torch.isfinite(y).all() and y.std() > 0
    assert model.embed_dim == model.num_features == 20
    closed = close_model(model)
    assert torch.equal(closed(images(closed)), y) and closed.embed_dim == 20


def test_closing_a_pruned_model_keeps_the_stored_scale():
    model = opened()
    for block in model.blocks:
        set_attention_widths(block.attn, heads=2, qk_dim=4, v_dim=4)
        set_mlp_width(block.mlp, 30)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4, generator=torch.Generator().manual_seed(0))
    x = images(model)
    want = model(x)
    closed = close_model(model)
    torch.testing.assert_close(closed(x), want, rtol=1e-5, atol=1e-6)


def test_closing_unequal_widths_is_refused():
    model = opened()
    set_attention_widths(model.blocks[2].attn, v_dim=4)
    with pytest.raises(Refused, match=r"blocks\.2\.attn has q/k width 8 and v width 4"):
        close_model(model)


@pytest.mark.parametrize("width", ["heads", "qk_dim", "v_dim"])
@pytest.mark.parametrize("value", [0, -3])
def test_attention_widths_below_one_are_refused_by_name(width, value):
    attn = opened().blocks[0].attn
    with pytest.raises(BadInput, match=rf"blocks\.0\.attn: {width} is {value}"):
        set_attention_widths(attn, **{width: value})
    assert attn.qkv.weight.any()


def test_other_widths_below_one_are_refused_by_name():
    model = opened()
    with pytest.raises(BadInput, match=r"blocks\.0\.mlp: hidden width is 0"):
        set_mlp_width(model.blocks[0].mlp, 0)
    with pytest.raises(BadInput, match="embed width is 0"):
        set_embed_width(model, 0)


def test_merging_heads_undoes_splitting_them():
    attn = opened().blocks[0].attn
    x = torch.arange(2 * 5 * 72.0).reshape(2, 5, 72)
    q, k, v = attn.split_heads(opened().ops, x)
    assert torch.equal(torch.cat([merge_heads(t) for t in (q, k, v)], -1), x)
