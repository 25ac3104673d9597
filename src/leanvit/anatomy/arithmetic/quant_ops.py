"""Op sets of quantization: one that observes the operands of every product, one that rounds them.

A *site* is a convolution, a linear or a product of attention. Its operands are `input` and `weight`, or `a` and `b` for
a product. Everything else (norms, softmax, activation functions, the residual stream) keeps the default arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops

OPERANDS = {"conv": ("input", "weight"), "linear": ("input", "weight"), "matmul": ("a", "b")}


@dataclass
class Seen:
    """What an observer knows of one operand: exact extremes and a sample of values."""

    low: float = float("inf")
    high: float = float("-inf")
    samples: list[Tensor] = field(default_factory=list)

    def sample(self) -> Tensor:
        return torch.cat(self.samples)


class ObserverOps(Ops):
    """Runs as the default set does and records the activations that enter each site.

    `seen` maps (site, operand) to `Seen`; `kinds` maps site to kind, in the order in which the text ran them. At most
    `per_call` values are sampled from each call, at random positions keyed by the site (a regular stride would fall on
    the same channels again and again).
    """

    def __init__(self, *, products: bool = True, per_call: int = 16384) -> None:
        self.fused = not products
        self.per_call = per_call
        self.kinds: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.seen: dict[tuple[str, str], Seen] = {}

    def conv(self, site: str, module: nn.Module, x: Any) -> Any:
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            self._with_weight(site, "conv", module, x)
        return module(x)

    def linear(self, site: str, module: nn.Module, x: Any, bias: Tensor | None = None) -> Any:
        if type(module) is nn.Linear:
            self._with_weight(site, "linear", module, x)
        return super().linear(site, module, x, bias)

    def matmul(self, site: str, a: Any, b: Any) -> Any:
        self.kinds[site] = "matmul"
        self._record(site, "a", a)
        self._record(site, "b", b)
        return a @ b

    def _with_weight(self, site: str, kind: str, module: nn.Module, x: Tensor) -> None:
        self.kinds[site], self.modules[site] = kind, module
        self._record(site, "input", x)

    def _record(self, site: str, operand: str, x: Tensor) -> None:
        seen = self.seen.setdefault((site, operand), Seen())
        flat = x.detach().flatten().float()
        low, high = flat.aminmax()
        seen.low, seen.high = min(seen.low, float(low)), max(seen.high, float(high))
        if flat.numel() > self.per_call:
            keyed = torch.Generator().manual_seed(crc32(f"{site} {operand} {len(seen.samples)}".encode()))
            indices = torch.randint(flat.numel(), (self.per_call,), generator=keyed)
            flat = flat[indices.to(flat.device)]
        seen.samples.append(flat.cpu())


class QuantOps(Ops, nn.Module):
    """Rounds the operands of the sites that it has quantizers for, then multiplies in float: fake quantization.

    `quantizers`: site -> operand -> module. An activation quantizer is called with the tensor, a weight quantizer
    without argument. Their tensors are in the model's state dict under `ops.sites.<site with / for .>.<operand>.`.
    """

    float_weights = False
    precision = "int8 simulated"  # integers held in floats: the values are int8's, the speed is not
    rows_apart = True

    def __init__(self, quantizers: Mapping[str, Mapping[str, nn.Module]]) -> None:
        nn.Module.__init__(self)
        self.sites = nn.ModuleDict({_key(site): nn.ModuleDict(dict(q)) for site, q in quantizers.items()})
        self.fused = not any("a" in q for q in quantizers.values())

    def at(self, site: str) -> Any:
        """The quantizers of a site by operand, None where the site stays float."""
        key = _key(site)
        return self.sites[key] if key in self.sites else None  # noqa: SIM401 (ModuleDict has no get)

    def names(self) -> list[str]:
        """Quantized sites."""
        return [key.replace("/", ".") for key in self.sites]

    def conv(self, site: str, module: nn.Module, x: Any) -> Any:
        q = self.at(site)
        if q is None:
            return module(x)
        c = cast(nn.Conv2d, module)
        return F.conv2d(q["input"](x), q["weight"](), c.bias, c.stride, c.padding, c.dilation, c.groups)

    def linear(self, site: str, module: nn.Module, x: Any, bias: Tensor | None = None) -> Any:
        q = self.at(site)
        if q is None:
            return super().linear(site, module, x, bias)
        return F.linear(q["input"](x), q["weight"](), cast(nn.Linear, module).bias if bias is None else bias)

    def matmul(self, site: str, a: Any, b: Any) -> Any:
        q = self.at(site)
        return a @ b if q is None else q["a"](a) @ q["b"](b)


def _key(site: str) -> str:
    return site.replace(".", "/")  # a child's name cannot hold a dot
