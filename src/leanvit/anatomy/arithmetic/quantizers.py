"""Uniform quantizers: what rounds one tensor, and how its range is chosen. Generic in bits, 2 to 8.

An activation is unsigned and affine, x ~ (u - zero_point) * scale with u in [0, 2^bits - 1], or signed and symmetric
where the kernel knows no zero point; a weight is signed and symmetric with one scale for each output channel,
w ~ i * scale with |i| <= 2^(bits-1) - 1 (Jacob et al. 2018, eq. 1; Nagel et al. 2021, section 2). Rounding is to
nearest, ties to even, as in the runtimes that execute it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from leanvit.errors import BadInput, unknown
from leanvit.knobs import check

Bits = Annotated[int, Ge(2), Le(8)]

MIN_SCALE = 1e-8  # a tensor of zeros still needs a scale to divide by


class ActQuantizer(nn.Module):
    """Per-tensor affine unsigned fake quantizer: float tensor of any shape -> the same shape, on 2^bits values.

    Buffers: `scale` float32 (), `zero_point` int32 (). Gradients pass straight through inside the range.
    """

    scale: Tensor
    zero_point: Tensor
    scheme = "affine unsigned"
    granularity = "tensor"
    signed = False

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits: int = check("bits", bits, Bits)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def set_range(self, low: float, high: float) -> None:
        """Choose scale and zero point so that [low, high], widened to hold zero, is covered."""
        scale, zero_point = (symmetric_params if self.signed else affine_params)(low, high, self.bits)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *grid(self.bits, self.signed))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {self.scheme}"


class SignedActQuantizer(ActQuantizer):
    """Per-tensor symmetric signed fake quantizer: its zero point is 0."""

    scheme = "symmetric signed"
    signed = True


class WeightQuantizer(nn.Module):
    """A weight kept as integers: buffers `values` int8 (out, ...) and `scale` float32 (out,).

    Calling it gives the weight back as float32. The module that the weight came from does not hold it any more.
    """

    values: Tensor
    scale: Tensor
    scheme = "symmetric signed"
    granularity = "output channel"

    def __init__(self, shape: tuple[int, ...], bits: int = 8) -> None:
        super().__init__()
        self.bits: int = check("bits", bits, Bits)
        self.register_buffer("values", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(shape[0]))

    def set_weight(self, weight: Tensor) -> None:
        """Round a float weight (out, ...) by the smallest scales that do not clip. Raises `BadInput` on NaN or inf."""
        if not torch.isfinite(weight).all():
            raise BadInput("a weight to quantize holds NaN or infinite values")
        values, scale = quantize_weight(weight, self.bits)
        self.values.copy_(values)
        self.scale.copy_(scale)

    def forward(self) -> Tensor:
        return self.values.to(self.scale.dtype) * self.scale.view(-1, *[1] * (self.values.dim() - 1))

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, bits={self.bits}, {self.scheme}"


def grid(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of an activation's grid."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def affine_params(low: float, high: float, bits: int) -> tuple[float, int]:
    """(scale, zero point) of an unsigned grid that covers [low, high] and holds zero exactly."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    top = 2**bits - 1
    scale = max((high - low) / top, MIN_SCALE)
    return scale, min(max(round(-low / scale), 0), top)


def symmetric_params(low: float, high: float, bits: int) -> tuple[float, int]:
    """(scale, 0) of a signed grid that covers [-m, m], m the larger of |low| and |high|."""
    return max(max(abs(float(low)), abs(float(high))) / (2 ** (bits - 1) - 1), MIN_SCALE), 0


def quantize_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(integers int8 (out, ...), scale float32 (out,)) of a weight (out, ...), symmetric, no clipping."""
    top = 2 ** (bits - 1) - 1
    weight = weight.detach().float()
    scale = (weight.flatten(1).abs().amax(dim=1) / top).clamp_min(MIN_SCALE)  # (out,)
    values = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-top, top)
    return values.to(torch.int8), scale


# --- ranges from observed values ----------------------------------------------------


def minmax_range(samples: Tensor, low: float, high: float, bits: int) -> tuple[float, float]:
    """Everything that was seen."""
    return low, high


def percentile_range(
    samples: Tensor, low: float, high: float, bits: int, *, percent: float = 99.99
) -> tuple[float, float]:
    """Between the two percentiles of the sample, which leave out (100 - percent)/2 at each end."""
    tail = (1 - percent / 100) / 2
    ordered = samples.float().sort().values
    last = ordered.numel() - 1
    return float(ordered[round(tail * last)]), float(ordered[round((1 - tail) * last)])


def mse_range(samples: Tensor, low: float, high: float, bits: int, steps: int = 40) -> tuple[float, float]:
    """The range, shrunk from the observed one, that rounds the sample with the least squared error.

    Both ends are shrunk together, then each alone from there.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    shrinks = [1 - 0.8 * i / steps for i in range(steps)]

    def best(candidates: list[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=lambda r: rounding_error(samples, r[0], r[1], bits))

    low, high = best([(low * s, high * s) for s in shrinks])
    low, high = best([(low * s, high) for s in shrinks])
    return best([(low, high * s) for s in shrinks])


def rounding_error(samples: Tensor, low: float, high: float, bits: int) -> float:
    """Mean squared error of rounding float32 samples on the grid of [low, high]."""
    scale, zero_point = affine_params(low, high, bits)
    rounded = torch.fake_quantize_per_tensor_affine(samples, scale, zero_point, 0, 2**bits - 1)
    return float((rounded - samples).square().mean())


RangeRule = Callable[[Tensor, float, float, int], tuple[float, float]]
RANGES: dict[str, RangeRule] = {"minmax": minmax_range, "percentile": percentile_range, "mse": mse_range}


def range_rule(name: str) -> RangeRule:
    """A rule by its name. Raises `BadInput` with the nearest names."""
    if not isinstance(name, str) or name not in RANGES:
        raise unknown("calibration", name, RANGES)
    return RANGES[name]


# --- shapes of PyTorch's own kernel -------------------------------------------------

_KERNEL = "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"


def _shapes(
    x: Tensor, scale: Tensor, zero_point: Tensor, enabled: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


# PyTorch has no shape function for its fake quantization, which torch.export needs to keep the batch free.
if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_KERNEL}", "Meta"):
    _LIBRARY = torch.library.Library("aten", "IMPL", "Meta")
    _LIBRARY.impl(_KERNEL, _shapes)
