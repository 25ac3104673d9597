from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanvit.anatomy import State
from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.parts.windows import PADDINGS, WindowAttention
from leanvit.errors import BadInput, Refused


@pytest.mark.parametrize("grid", [(8, 8), (9, 5), (3, 2)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 1)])
def test_reverse_undoes_partition(grid, shift):
    windows = Windows(grid, (4, 4), shift)
    x = torch.randn(2, grid[0] * grid[1], 3)
    cut = windows.partition(x)
    assert cut.shape == (2 * windows.number, 16, 3)
    assert torch.equal(windows.reverse(cut), x)
    assert int(windows.inside(x.device).sum()) == grid[0] * grid[1]


def test_a_window_holds_neighbours_and_a_shift_moves_the_cut():
    x = torch.arange(16.0).reshape(1, 16, 1)
    assert Windows((4, 4), (2, 2)).partition(x)[1, :, 0].tolist() == [2, 3, 6, 7]
    assert Windows((4, 4), (2, 2), (1, 1)).partition(x)[0, :, 0].tolist() == [5, 6, 9, 10]
    assert Windows((4, 4), (2, 2), (1, 1)).partition(x)[3, :, 0].tolist() == [15, 12, 3, 0]


def test_strangers_are_those_that_only_the_shift_brought_together():
    mask = Windows((4, 4), (2, 2), (1, 1)).shift_mask(torch.device("cpu"), torch.float32)
    assert mask.shape == (4, 4, 4) and not mask[0].any()
    assert torch.equal(mask[3], -100 * (1 - torch.eye(4)))  # the four corners of the image
    assert mask[1, 0].tolist() == [0, -100, 0, -100]  # last and first column


def attention(padding: str, shift=(0, 0)) -> WindowAttention:
    torch.manual_seed(0)
    parts = {"qkv": nn.Linear(6, 18), "proj": nn.Linear(6, 6), "heads": 2, "qk_dim": 3, "v_dim": 3, "scale": 3**-0.5}
    return WindowAttention(name="attn", window=(4, 4), shift=shift, padding=padding, **parts)


def by_hand(attn: WindowAttention, x: torch.Tensor, padding: str) -> torch.Tensor:
    """One window of 4x4 around a 3x2 grid, written out."""
    full = F.pad(x.unflatten(1, (3, 2)), (0, 0, 0, 2, 0, 1)).flatten(1, 2)
    real = F.pad(torch.ones(1, 3, 2, 1), (0, 0, 0, 2, 0, 1)).flatten().bool()
    qkv = attn.qkv(full)
    if padding == "projections":
        qkv = qkv * real[:, None]
    q, k, v = qkv.unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * attn.scale
    if padding == "masked":
        scores = scores.masked_fill(~real, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return attn.proj(out[:, real])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
def test_each_padding_is_what_its_name_says(padding, fused):
    attn = attention(padding)
    attn.fused = fused
    x = torch.randn(2, 6, 6)
    got, state = attn(x, State(ops=TORCH, grid=(3, 2), num_prefix=0))
    torch.testing.assert_close(got, by_hand(attn, x, padding), rtol=1e-5, atol=1e-6)
    assert state.windows is None
    others = [by_hand(attn, x, other) for other in PADDINGS if other != padding]
    assert all((got - other).abs().max() > 1e-3 for other in others)


def test_without_padding_all_paddings_agree():
    x, state = torch.randn(2, 64, 6), State(ops=TORCH, grid=(8, 8), num_prefix=0)
    first, *others = (attention(padding, (2, 2))(x, state)[0] for padding in PADDINGS)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-6)


def test_keys_come_with_their_windows():
    _, state = attention("tokens")(torch.randn(2, 64, 6), State(TORCH, (8, 8), 0), frozenset({"keys"}))
    assert state.keys.shape == (8, 2, 16, 3) and state.windows == Windows((8, 8), (4, 4), images=2)


def test_bad_use_is_named():
    with pytest.raises(BadInput, match=r"unknown padding 'mask'.*masked"):
        attention("mask")
    with pytest.raises(Refused, match="needs the full grid of 8x8 tokens and no others; it was given 63"):
        attention("tokens")(torch.randn(1, 63, 6), State(TORCH, (8, 8), 0))
    with pytest.raises(Refused, match="no class token"):
        attention("tokens")(torch.randn(1, 64, 6), State(TORCH, (8, 8), 0), frozenset({"cls_attn"}))
