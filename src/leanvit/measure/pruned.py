"""What zeros of sparse tensors (`leanvit.anatomy.sparse`) leave of parameters and MACs: the *kept* ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.sparse import sparse_tensors
from leanvit.measure.formulas import OPERANDS, tensors_in


def parameters(model: nn.Module) -> int:
    """Elements of parameters, shared ones once, and of weights kept as int8 (buffers of two and more dimensions)."""
    return sum(t.numel() for t in _weights(model))


def kept_parameters(model: nn.Module) -> int | None:
    """`parameters` without the zeros of sparse tensors; None where none is sparse, or their values are not there."""
    sparse = {id(t) for t in sparse_tensors(model).values()}
    if not sparse or any(t.is_meta for t in _weights(model)):
        return None
    return sum(int(t.count_nonzero()) if id(t) in sparse else t.numel() for t in _weights(model))


class Zeros:
    """Knows a sparse weight among the operands of a product, also a view of it, or what was computed of weights alone
    (a cast, integers times their scale)."""

    def __init__(self, model: nn.Module) -> None:
        found = {id(t): t for t in sparse_tensors(model).values() if t.numel()}
        self._sparse = _Memory(found.values())
        self._weights = _Memory((*model.parameters(), *model.buffers()) if found else ())
        self.are_known = bool(found) and not any(t.is_meta for t in found.values())  # there are some, with values

    def kept(self, op: str, args: tuple[Any, ...], macs: int) -> int:
        """MACs of one call without those by zeros of a sparse operand; all of them where it has none.

        Every entry of a weight meets as many rows as any other one: (non-zero entries) x rows.
        """
        if self.are_known:
            for operand in (args[place] for place in OPERANDS.get(op, ())):
                if operand in self._sparse:
                    return macs * int(operand.count_nonzero()) // operand.numel()
        return macs

    def follow(self, given: Any, out: Any) -> None:
        """Remember what an operator that is no product made of sparse weights and of other weights alone."""
        if not self.are_known:
            return
        tensors = list(tensors_in(given))
        known = [t in self._sparse for t in tensors]
        if any(known) and all(k or t in self._weights for k, t in zip(known, tensors, strict=True)):
            self._sparse.add(t for t in tensors_in(out) if t not in self._sparse)


class _Memory:
    """Where tensors lie. It holds them, so that no address is used twice."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held: list[Tensor] = []
        self._ranges: list[tuple[int, int]] = []
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            if _has_memory(t):
                self._held.append(t)
                self._ranges.append((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()))

    def __contains__(self, tensor: object) -> bool:
        """Whether a tensor begins in one of them: it, or a view of it."""
        if not self._ranges or not isinstance(tensor, Tensor) or not _has_memory(tensor):
            return False
        place = tensor.data_ptr()
        return any(start <= place < end for start, end in self._ranges)


def _weights(model: nn.Module) -> tuple[Tensor, ...]:
    integers = (b for b in model.buffers() if b.dtype == torch.int8 and b.dim() > 1)
    return (*model.parameters(), *integers)


def _has_memory(tensor: Tensor) -> bool:
    return not tensor.is_meta and not tensor.is_nested and tensor.layout is torch.strided and tensor.numel() > 0
