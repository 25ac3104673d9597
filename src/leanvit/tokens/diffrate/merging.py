"""Merging of DiffRate (arXiv 2305.17997, section 3.2), on tensors alone: the least important tokens into the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_SIZE = 1e-6  # of a token: a sum of sizes times negative similarities would have no logarithm


@dataclass(frozen=True)
class Matching:
    """Which tokens merge into which: of a sequence in order of importance the tail, into what comes before it."""

    kept: int  # tokens that stay, at the front (prefix included)
    target: Tensor  # (B, N - kept) int64: the place that each of the others merges into
    similarity: Tensor  # (B, N - kept) cosine between the two


def match(x: Tensor, kept: int, *, prefix: int = 1) -> Matching:
    """The most similar of the first `kept` tokens, never of the prefix, for each token after them (paper, section 3.2).

    Args:
        x: (B, N, C) tokens after attention, in order of importance. kept: above `prefix`, up to N.
    """
    unit = F.normalize(x.detach().float(), dim=-1, eps=1e-12)
    similarity = unit[:, kept:] @ unit[:, prefix:kept].transpose(1, 2)  # (B, N - kept, kept - prefix)
    best, target = similarity.max(dim=-1)
    return Matching(kept, target + prefix, best)


def merge(x: Tensor, matching: Matching) -> Tensor:
    """Plain means of each token that stays and all that merge into it: (B, N, C) -> (B, kept, C)."""
    out, moved = x[:, : matching.kept], x[:, matching.kept :]
    if torch.compiler.is_exporting():  # a product: runtimes add by index slowly, or not at all
        number = torch.arange(matching.kept, device=x.device).unsqueeze(1)
        given = (matching.target.unsqueeze(1) == number).to(x.dtype)  # (B, kept, N - kept)
        return (out + given @ moved) / (1 + given.sum(dim=-1, keepdim=True))
    ones = torch.ones_like(matching.similarity, dtype=x.dtype)
    counts = torch.ones_like(out[..., 0]).scatter_add(1, matching.target, ones)
    sums = out.scatter_add(1, matching.target.unsqueeze(-1).expand_as(moved), moved)
    return sums / counts.unsqueeze(-1)


def merged_sizes(size: Tensor, matching: Matching) -> Tensor:
    """(B, N) -> (B, kept): what merges brings its size times its similarity."""
    given = size[:, matching.kept :] * matching.similarity
    return size[:, : matching.kept].scatter_add(1, matching.target, given).clamp(min=LEAST_SIZE)
