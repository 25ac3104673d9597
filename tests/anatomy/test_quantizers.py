"""Uniform quantizers: grids, ranges, integer weights; and the two op sets that use them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanvit.anatomy.arithmetic.quant_ops import ObserverOps, QuantOps
from leanvit.anatomy.arithmetic.quantizers import (
    RANGES,
    ActQuantizer,
    SignedActQuantizer,
    WeightQuantizer,
    affine_params,
    quantize_weight,
    range_rule,
    rounding_error,
)
from leanvit.errors import BadInput

bounds = st.floats(-50, 50, width=32)
bits = st.integers(2, 8)


@settings(max_examples=60, deadline=None)
@given(low=bounds, high=bounds, bits=bits)
def test_affine_grid_holds_zero_and_covers_the_range(low: float, high: float, bits: int) -> None:
    low, high = min(low, high), max(low, high)
    q = ActQuantizer(bits)
    q.set_range(low, high)
    x = torch.linspace(low, high, 301)
    y = q(x)
    assert q(torch.zeros(1)).item() == 0.0
    assert len(y.unique()) <= 2**bits
    # half a step of rounding and, at the ends, half a step by which the rounded zero point moves the range
    assert (y - x).abs().max() <= 1.01 * q.scale + 1e-6


def test_affine_rounds_ties_to_even_and_clamps() -> None:
    q = ActQuantizer(8)
    q.set_range(0.0, 255.0)
    assert q(torch.tensor([0.5, 1.5, 2.5, 300.0, -3.0])).tolist() == [0.0, 2.0, 2.0, 255.0, 0.0]


def test_signed_grid_is_symmetric_with_zero_point_zero() -> None:
    q = SignedActQuantizer(8)
    q.set_range(-1.0, 12.7)
    assert q.zero_point.item() == 0
    assert q.scale.item() == pytest.approx(0.1)
    assert q(torch.tensor([0.26, -0.26, 20.0])).tolist() == pytest.approx([0.3, -0.3, 12.7])


def test_gradient_passes_inside_the_range_only() -> None:
    q = ActQuantizer(8)
    q.set_range(-1.0, 1.0)
    x = torch.tensor([0.3, 5.0, -5.0], requires_grad=True)
    q(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 0.0]


def test_weight_scales_are_per_channel_and_nothing_clips() -> None:
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-3], [1.0], [30.0], [0.0], [2.0]]
    )
    q = WeightQuantizer((5, 7))
    q.set_weight(w)
    assert q.values.dtype == torch.int8
    assert q.values.abs().amax(dim=1).tolist() == [127, 127, 127, 0, 127]
    assert ((q() - w).abs() <= q.scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("bits", range(2, 8))
def test_more_bits_less_error(bits: int) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))

    def weight_error(b: int) -> float:
        values, scale = quantize_weight(x, b)
        return float((values * scale[:, None] - x).square().mean())

    assert weight_error(bits + 1) < weight_error(bits)
    assert rounding_error(x, -3.0, 3.0, bits + 1) < rounding_error(x, -3.0, 3.0, bits)


def test_rules_on_a_sample_with_one_outlier() -> None:
    x = torch.randn(20000, generator=torch.Generator().manual_seed(2))
    x[0] = 300.0
    low, high = float(x.min()), float(x.max())
    ranges = {name: rule(x, low, high, 8) for name, rule in RANGES.items()}
    assert ranges["minmax"] == (low, 300.0)
    assert ranges["percentile"][1] < 6
    errors = {name: rounding_error(x[1:], *r, 8) for name, r in ranges.items()}
    assert errors["percentile"] < errors["minmax"]
    assert rounding_error(x, *ranges["mse"], 8) <= rounding_error(x, low, high, 8)


@pytest.mark.parametrize("given_bits", [1, 9, True, 4.0])
def test_bits_out_of_range_are_refused(given_bits: object) -> None:
    with pytest.raises(BadInput, match=r"bits is .*2 to 8"):
        ActQuantizer(given_bits)  # type: ignore[arg-type]


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="percentile"):
        range_rule("percentil")


def test_nan_weight_is_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        WeightQuantizer((1, 2)).set_weight(torch.tensor([[float("nan"), 1.0]]))


def test_a_tensor_of_zeros_has_a_usable_scale() -> None:
    assert affine_params(0.0, 0.0, 8)[0] > 0


def test_observer_sees_extremes_that_its_sample_may_miss() -> None:
    observer = ObserverOps(per_call=50)
    linear = nn.Linear(10, 4)
    x = torch.zeros(100, 10)
    x[3, 3], x[4, 4] = 9.0, -7.0
    assert torch.equal(observer.linear("here", linear, x), linear(x))
    seen = observer.seen["here", "input"]
    assert (seen.low, seen.high) == (-7.0, 9.0)
    assert len(seen.sample()) == 50
    assert observer.kinds == {"here": "linear"}


def test_quant_ops_touch_their_sites_only() -> None:
    linear = nn.Linear(6, 3)
    q = {"input": ActQuantizer(4), "weight": WeightQuantizer((3, 6), 4)}
    q["input"].set_range(-2, 2)  # type: ignore[operator]
    q["weight"].set_weight(linear.weight)  # type: ignore[operator]
    ops = QuantOps({"blocks.0.fc": q})
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ops.linear("blocks.1.fc", linear, x), linear(x))
    rounded = ops.linear("blocks.0.fc", linear, x)
    want = q["input"](x) @ q["weight"]().T + linear.bias
    torch.testing.assert_close(rounded, want)
    assert not torch.equal(rounded, linear(x))
    assert ops.names() == ["blocks.0.fc"] and ops.fused
    assert "sites.blocks/0/fc.weight.values" in ops.state_dict()


def test_products_switch_the_fused_kernel_off() -> None:
    ops = QuantOps({"blocks.0.attn.matmul1": {"a": SignedActQuantizer(), "b": SignedActQuantizer()}})
    assert not ops.fused


def test_shapes_are_known_without_values() -> None:
    q = ActQuantizer(8).to("meta")
    assert q(torch.empty(3, 5, device="meta")).shape == (3, 5)
