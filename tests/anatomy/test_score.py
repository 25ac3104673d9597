"""The score pipeline: fused and explicit kernels agree phase by phase, single rows agree with the map."""

from __future__ import annotations

import copy

import pytest
import torch

from leanvit.anatomy import Ops, Phases, attend, open_model, score_rows
from zoo import build, images

B, H, N, D = 2, 3, 11, 8
SCALE = 0.21


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = (draw(B, H, N, D, seed=i) for i in (1, 2, 3))
MASK = (draw(B, 1, N, N, seed=4) > -0.5) | torch.eye(N, dtype=torch.bool)
PHASES = {
    "none": Phases(),
    "model_bias": Phases(model_bias=draw(1, H, N, N, seed=5)),
    "method_bias": Phases(bias=draw(B, 1, 1, N, seed=6)),
    "temperature": Phases(temperature=2.5),
    "mask": Phases(mask=MASK),
    "fusable": Phases(model_bias=draw(1, H, N, N, seed=5), bias=draw(B, 1, 1, N, seed=6), temperature=0.7, mask=MASK),
    "multiply": Phases(multiply=draw(B, H, N, 1, seed=7)),
    "normaliser": Phases(normaliser=lambda s: s.relu() / s.relu().sum(-1, keepdim=True).clamp(min=1e-6)),
    "all": Phases(
        multiply=draw(B, 1, N, N, seed=7), model_bias=draw(1, H, N, N, seed=5), bias=draw(B, 1, 1, N, seed=6),
        temperature=0.7, mask=MASK, normaliser=lambda s: (2 * s).softmax(-1),
    ),
}  # fmt: skip


def by_hand(q, k, v, phases: Phases, scale: float = SCALE):
    """The pipeline as the design states it, one phase a line."""
    s = (q @ k.transpose(-2, -1)) * scale
    s = s * phases.multiply if phases.multiply is not None else s
    s = s + phases.model_bias if phases.model_bias is not None else s
    s = s + phases.bias if phases.bias is not None else s
    s = s / phases.temperature
    s = s.masked_fill(~phases.mask, float("-inf")) if phases.mask is not None else s
    w = phases.normaliser(s) if phases.normaliser else s.softmax(-1)
    return w @ v, w


@pytest.mark.parametrize("scale_on_q", [True, False])
@pytest.mark.parametrize("name", PHASES)
def test_both_kernels_follow_the_phases(name, scale_on_q):
    phases = PHASES[name]
    out, weights = by_hand(Q, K, V, phases)
    explicit, w = attend(Ops(), "a", Q, K, V, scale=SCALE, phases=phases, fused=False, scale_on_q=scale_on_q)
    torch.testing.assert_close(w, weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(explicit, out, rtol=1e-5, atol=1e-6)
    fused, none = attend(Ops(), "a", Q, K, V, scale=SCALE, phases=phases, scale_on_q=scale_on_q)
    assert (none is None) == phases.fusable
    torch.testing.assert_close(fused, out, rtol=1e-5, atol=1e-6)
    if name != "none":
        assert (out - by_hand(Q, K, V, Phases())[0]).abs().max() > 1e-2, "the phase does nothing"


@pytest.mark.parametrize("rows", [[0], [2, 7]])
@pytest.mark.parametrize("name", ["none", "method_bias", "temperature"])
def test_rows_equal_those_of_the_map(name, rows):
    _, weights = by_hand(Q, K, V, PHASES[name])
    got = score_rows(Q[:, :, rows], K, scale=SCALE, phases=PHASES[name])
    torch.testing.assert_close(got, weights[:, :, rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["model_bias", "mask", "multiply", "all"])
def test_rows_equal_those_of_the_map_when_the_phases_hold_all_queries(name):
    phases = PHASES[name]
    _, weights = by_hand(Q, K, V, phases)
    got = score_rows(Q[:, :, :2], K, scale=SCALE, phases=phases.rows(slice(0, 2)))
    torch.testing.assert_close(got, weights[:, :, :2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_float32_under_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = score_rows(Q[:, :, :1].to(dtype), K.to(dtype), scale=SCALE)
    assert got.dtype == torch.float32
    want = by_hand(Q.to(dtype).float(), K.to(dtype).float(), V, Phases())[1][:, :, :1]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_an_op_set_that_forbids_fusion_sees_the_products():
    class Spy(Ops):
        fused = False

        def __init__(self):
            self.sites = []

        def matmul(self, site, a, b):
            self.sites.append(site)
            return a @ b

    spy = Spy()
    out, weights = attend(spy, "x", Q, K, V, scale=SCALE)
    assert spy.sites == ["x.matmul1", "x.matmul2"] and weights is not None
    torch.testing.assert_close(out, by_hand(Q, K, V, Phases())[0], rtol=1e-5, atol=1e-6)


def test_unequal_widths_take_the_explicit_products():
    v = draw(B, H, N, 5, seed=9)
    out, weights = attend(Ops(), "a", Q, K, v, scale=SCALE)
    assert weights is not None and out.shape == (B, H, N, 5)
    torch.testing.assert_close(out, by_hand(Q, K, v, Phases())[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_keeps_its_dtype_with_a_float32_bias(fused):
    q, k, v = Q.bfloat16(), K.bfloat16(), V.bfloat16()
    out, _ = attend(Ops(), "a", q, k, v, scale=SCALE, phases=PHASES["method_bias"], fused=fused)
    assert out.dtype == torch.bfloat16
    want = by_hand(q.float(), k.float(), v.float(), PHASES["method_bias"])[0]
    torch.testing.assert_close(out.float(), want, rtol=0.03, atol=0.03)


def test_phases_add_up():
    a, b = draw(B, 1, 1, N, seed=1), draw(B, 1, 1, N, seed=2)
    phases = Phases().plus_bias(a).plus_bias(b).plus_multiply(a).plus_multiply(b).plus_mask(a > 0).plus_mask(b > 0)
    assert torch.equal(phases.bias, a + b) and torch.equal(phases.multiply, a * b)
    assert torch.equal(phases.mask, (a > 0) & (b > 0))


def test_terms_of_a_model_see_the_state_and_reach_the_scores():
    model = build("vit_tiny_patch16_224")
    opened = open_model(copy.deepcopy(model))
    x = images(model)
    favour = torch.zeros(1, 1, 1, 17)
    favour[..., 3] = 50.0  # every query reads token 3 only
    seen = []

    def term(phases, state):
        seen.append(state.tokens)
        return phases.plus_bias(favour)

    opened.blocks[1].attn.terms = (term,)
    assert (opened(x) - model(x)).abs().max() > 1e-2
    assert seen == [(17,)]
    opened.blocks[1].attn.terms = ()
    assert torch.equal(opened(x), model(x))
