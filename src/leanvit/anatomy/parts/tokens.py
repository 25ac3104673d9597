"""Bookkeeping of token reduction: taking tokens, what is left over, and which token holds each patch.

Pure tensor functions, shared by every method that removes or merges tokens. Shapes are static whenever the counts are
Python integers, so that what is built from them exports.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens by index, (B, N, ...) with (B, K) int64 -> (B, K, ...); differentiable in `x`.

    One row gather over the flattened batch: whole rows are copied, which eager kernels and exported runtimes both do
    at memory speed (an index expanded over the channels is several times slower).
    """
    batch, tokens = x.shape[:2]
    first = torch.arange(batch, device=x.device).unsqueeze(1) * tokens  # (B, 1)
    rows = x.flatten(0, 1).index_select(0, (index + first).flatten())
    return rows.unflatten(0, (batch, index.shape[1]))


def with_prefix(index: Tensor, prefix: int) -> Tensor:
    """Indices among the patch tokens (B, K) to indices in the sequence, prefix tokens first: (B, prefix + K)."""
    if prefix == 0:
        return index
    front = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([front, index + prefix], dim=1)


def complement(index: Tensor, size: int) -> Tensor:
    """What `index` leaves of range(size), ascending: (B, K) int64, distinct in each row -> (B, size - K) int64."""
    left = size - index.shape[1]
    if torch.compiler.is_exporting():  # runtimes know no stable sort, and are fastest at float keys: here all distinct
        place = torch.arange(size, dtype=torch.float32, device=index.device).expand(index.shape[0], -1)
        return (
            place.scatter_add(1, index, torch.full_like(index, size, dtype=torch.float32))
            .topk(left, dim=1, largest=False, sorted=True)
            .indices
        )
    taken = torch.zeros(index.shape[0], size, dtype=torch.int8, device=index.device).scatter(1, index, 1)
    return taken.sort(dim=1, stable=True).indices[:, :left]


def new_indices(index: Tensor, size: int, *, rest: int = -1) -> Tensor:
    """Where each of `size` old tokens goes when `index` (B, K) lists who comes 0th, 1st, ...: (B, size) int64.

    `rest` is the place of all others: -1 (dropped), or the token that they were fused into.
    """
    indices = torch.full((index.shape[0], size), rest, dtype=torch.int64, device=index.device)
    return indices.scatter(1, index, torch.arange(index.shape[1], device=index.device).expand_as(index))


def moved_owner(owner: Tensor, indices: Tensor) -> Tensor:
    """The owner map after a reduction: (B, P) int64 through `indices` (B, N) int64 -> (B, P). Dropped (-1) stays so."""
    return torch.where(owner < 0, owner, indices.gather(1, owner.clamp(min=0)))


def unmerge(x: Tensor, owner: Tensor) -> Tensor:
    """Back to the full grid: each patch gets the token that holds it, (B, N, C) with (B, P) -> (B, P, C).

    Patches that were dropped get zeros.
    """
    grid = take_tokens(x, owner.clamp(min=0))
    return grid.masked_fill((owner < 0).unsqueeze(-1), 0.0)
