"""Attention scores: one pipeline with fixed phases, and the choice of its kernel.

q·kᵀ -> scale -> multiply -> model bias -> method bias -> temperature -> structural mask -> normaliser
-> weight quantizer (the op set's, where the weights meet v) -> ·v

A method supplies a term, `(phases, state) -> phases`; it never writes an attention of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.state import State

Normaliser = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Phases:
    """What the terms of one attention supply. Tensors broadcast against the scores, (B, H, N, N)."""

    multiply: Tensor | None = None
    model_bias: Tensor | None = None  # relative positions and the like
    bias: Tensor | None = None  # of methods: log of token size; of shifted windows: -100 across regions
    temperature: float = 1.0  # scores are divided by it
    mask: Tensor | None = None  # bool, True where attention is allowed
    normaliser: Normaliser | None = None  # in place of the softmax

    def with_(self, **changes: Any) -> Phases:
        return replace(self, **changes)

    def plus_bias(self, bias: Tensor) -> Phases:
        """A copy with a method bias added to those already there."""
        return replace(self, bias=bias if self.bias is None else self.bias + bias)

    def plus_multiply(self, factor: Tensor) -> Phases:
        """A copy with the scores multiplied by one more mask that multiplies."""
        return replace(self, multiply=factor if self.multiply is None else self.multiply * factor)

    def plus_mask(self, allowed: Tensor) -> Phases:
        """A copy in which only what every mask allows is allowed."""
        return replace(self, mask=allowed if self.mask is None else self.mask & allowed)

    def rows(self, rows: slice) -> Phases:
        """A copy for these query rows only; what broadcasts over the queries stays as it is."""

        def cut(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.ndim < 2 or t.shape[-2] == 1 else t[..., rows, :]

        mask = cut(self.mask)
        return self.with_(multiply=cut(self.multiply), model_bias=cut(self.model_bias), bias=cut(self.bias), mask=mask)

    def to(self, dtype: torch.dtype) -> Phases:
        """A copy whose factors and biases have the dtype of the scores: a float32 bias would promote a half model."""

        def cast(t: Tensor | None) -> Tensor | None:
            return t if t is None else t.to(dtype)

        return self.with_(multiply=cast(self.multiply), model_bias=cast(self.model_bias), bias=cast(self.bias))

    @property
    def additive(self) -> Tensor | None:
        """Both biases, the temperature and the mask as one additive tensor, for a fused kernel."""
        total = self.model_bias
        if self.bias is not None:
            total = self.bias if total is None else total + self.bias
        if total is not None and self.temperature != 1.0:
            total = total / self.temperature
        if self.mask is None:
            return total
        blocked = torch.zeros((), device=self.mask.device).masked_fill(~self.mask, float("-inf"))
        return blocked if total is None else total + blocked.to(total.dtype)

    @property
    def fusable(self) -> bool:
        return self.multiply is None and self.normaliser is None


Term = Callable[[Phases, State], Phases]
NO_PHASES = Phases()


def proportional(phases: Phases, state: State) -> Phases:
    """Term: a token counts as often as it stands for patches (proportional attention: arXiv 2210.09461, equation 1)."""
    if state.size is None:
        return phases
    return phases.plus_bias(state.size.log()[:, None, None, :])  # (B, 1, 1, N)


def scores(ops: Ops, site: str, q: Any, k: Any, scale: float, phases: Phases, *, scale_on_q: bool) -> Any:
    """The pipeline up to the structural mask: (B, H, N, d) x (B, H, M, d) -> (B, H, N, M)."""
    if scale_on_q and scale != 1:
        q = ops.scale(f"{site}.scale", q, scale)
    s = ops.matmul(f"{site}.matmul1", q, ops.rearrange(f"{site}.k_t", k, transpose_last))
    if not scale_on_q and scale != 1:
        s = ops.scale(f"{site}.scale", s, scale)
    if phases.multiply is not None:
        s = ops.mul(f"{site}.multiply", s, phases.multiply)
    if phases.model_bias is not None:
        s = ops.add(f"{site}.model_bias", s, phases.model_bias)
    if phases.bias is not None:
        s = ops.add(f"{site}.bias", s, phases.bias)
    if phases.temperature != 1.0:
        s = ops.scale(f"{site}.temperature", s, 1.0 / phases.temperature)
    if phases.mask is not None:
        s = ops.mask(f"{site}.mask", s, phases.mask)
    return s


def attend(
    ops: Ops,
    site: str,
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float,
    phases: Phases = NO_PHASES,
    fused: bool = True,
    scale_on_q: bool = True,
    dropout: nn.Module | None = None,
) -> tuple[Any, Any | None]:
    """Attention over (B, H, N, d): returns (output (B, H, N, d_v), weights (B, H, N, N) or None when fused).

    The fused kernel is taken when neither a phase nor the op set forbids it and when q and v are equally wide:
    with unequal widths PyTorch leaves its fast CPU kernel, and the explicit products are then about 3x faster.
    """
    if phases is not NO_PHASES and isinstance(q, Tensor):
        phases = phases.to(q.dtype)
    if fused and ops.fused and phases.fusable and q.shape[-1] == v.shape[-1]:
        bias = phases.additive
        if bias is not None:
            bias = bias.to(q.dtype)  # a mask alone has no dtype of its own
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        scale = scale / phases.temperature
        return ops.attention(site, q, k, v, scale=scale, bias=bias, dropout=p), None
    weights = normalise(ops, site, scores(ops, site, q, k, scale, phases, scale_on_q=scale_on_q), phases)
    if dropout is not None:
        weights = ops.drop(dropout, weights)
    return ops.matmul(f"{site}.matmul2", weights, v), weights


def normalise(ops: Ops, site: str, s: Any, phases: Phases) -> Any:
    if phases.normaliser is not None:
        return phases.normaliser(s)
    return ops.softmax(f"{site}.softmax", s)


def score_rows(q_rows: Tensor, k: Tensor, *, scale: float, phases: Phases = NO_PHASES) -> Tensor:
    """Attention weights of some query rows only, (B, H, R, d) x (B, H, N, d) -> (B, H, R, N), in float32.

    Equal to those rows of the full map before any weight quantizer; costs R·N·d instead of N·N·d, so that the map
    itself can stay inside a fused kernel. `phases` are those of these rows (`Phases.rows`).
    """
    with autocast_off(q_rows.device.type):
        one = torch.compiler.is_exporting() and q_rows.shape[2] == 1
        torch_ops = _OneRow() if one else Ops()
        s = scores(torch_ops, "rows", q_rows.float(), k.float(), scale, phases, scale_on_q=True)
        return normalise(torch_ops, "rows", s, phases)


class _OneRow(Ops):
    """One row of scores in an exported graph: multiplied and summed where the keys lie, (B, N, H, d).

    A product would make the runtime copy the keys transposed, which costs it more than the row itself.
    """

    def matmul(self, site: str, a: Tensor, b: Tensor) -> Tensor:
        heads = b.shape[1]
        products = b.permute(0, 3, 1, 2).flatten(2) * a.transpose(1, 2).flatten(2)  # (B, N, H d) x (B, 1, H d)
        return products.unflatten(2, (heads, -1)).sum(dim=-1).transpose(1, 2).unsqueeze(2)  # (B, H, 1, N)


def autocast_off(device: str) -> AbstractContextManager[object]:
    """Nothing to do where autocast is off already, or does not exist (the meta device)."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device_type=device, enabled=False)


def transpose_last(t: Tensor) -> Tensor:
    return t.transpose(-2, -1)
