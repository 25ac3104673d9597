"""Norms over channels of which some are gone.

When channels that a norm sees are cut out of a model, its statistics change: the masked model averages over the zeros
too. `PhantomNorm` goes on counting them, so that the shrunk model computes what the masked one did.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from leanvit.anatomy.families.swin_parts import UnitNorm
from leanvit.errors import Refused

CENTRED = (nn.LayerNorm,)
UNCENTRED = (nn.RMSNorm, RmsNorm)


class PhantomNorm(nn.Module):
    """Layer norm (or RMS norm) of (..., width) whose statistics are those of `over` channels, the others being zero.

    mean = sum(x) / over, var = (sum((x - mean)²) + (over - width) mean²) / over.
    """

    def __init__(self, width: int, over: int, *, eps: float, centred: bool, parts: set[str], **placed: Any) -> None:
        """`parts`: which of weight and bias there are."""
        super().__init__()
        self.width, self.over, self.eps, self.centred = width, over, eps, centred
        self.weight = nn.Parameter(torch.ones(width, **placed)) if "weight" in parts else None
        self.bias = nn.Parameter(torch.zeros(width, **placed)) if "bias" in parts else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        missing: Tensor | float = 0.0
        if self.centred:
            mean = wide.sum(dim=-1, keepdim=True) / self.over
            wide = wide - mean
            missing = (self.over - self.width) * mean.square()
        spread = (wide.square().sum(dim=-1, keepdim=True) + missing) / self.over
        out = (wide * torch.rsqrt(spread + self.eps)).to(x.dtype)
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{self.width} of {self.over}, eps={self.eps}, centred={self.centred}"


def phantom_of(norm: nn.Module, width: int) -> nn.Module:
    """A new norm over `width` channels that counts those that `norm` had as zeros.

    Raises `Refused` for a norm whose statistics are not known here.
    """
    weight: Any = getattr(norm, "weight", None)
    placed = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    over, centred = statistics(norm)
    parts = {name for name, _ in norm.named_parameters(recurse=False)}
    new = PhantomNorm(width, over, eps=_eps(norm), centred=centred, parts=parts, **placed)
    return new.train(norm.training)


def statistics(norm: nn.Module) -> tuple[int, bool]:
    """(channels that a norm's statistics are of, whether it subtracts the mean). Raises `Refused` for other norms."""
    if isinstance(norm, PhantomNorm):
        return norm.over, norm.centred
    if not isinstance(norm, CENTRED + UNCENTRED):
        known = ", ".join(sorted({kind.__name__ for kind in (*CENTRED, *UNCENTRED)}))
        raise Refused(f"no exact norm for a {type(norm).__name__}; known: {known}")
    return int(norm.normalized_shape[0]), isinstance(norm, CENTRED)


def plain_kind(norm: PhantomNorm) -> type[nn.Module]:
    """The class of the norm that a phantom one stands for."""
    return nn.LayerNorm if norm.centred else nn.RMSNorm


def loses_channels(norm: nn.Module, width: int) -> bool:
    """Whether a norm, cut to `width` channels, would take its statistics of fewer than before."""
    return not isinstance(norm, nn.Identity | UnitNorm) and statistics(norm)[0] != width


def _eps(norm: Any) -> float:
    return float(torch.finfo(torch.float32).eps if norm.eps is None else norm.eps)
