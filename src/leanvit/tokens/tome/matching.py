"""Bipartite soft matching of tokens and their merging (arXiv 2210.09461, section 3), on tensors alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.anatomy.parts.tokens import complement, new_indices, take_tokens


@dataclass(frozen=True)
class Matching:
    """Which tokens merge into which. Tokens at even positions send, tokens at odd positions receive.

    The new sequence is: the protected tokens, the senders without a merge, the receivers.
    """

    order: Tensor  # (B, N - r) int64, the old position of each token of the new sequence
    source: Tensor  # (B, r) int64, old positions of the tokens that are merged away
    target: Tensor  # (B, r) int64, place in the new sequence of the receiver of each
    receivers: int  # how many there are, at the end of the new sequence

    def indices(self) -> Tensor:
        """(B, N) int64: where each old token is in the new sequence."""
        indices = new_indices(self.order, self.order.shape[1] + self.source.shape[1])
        return indices.scatter(1, self.source, self.target)


def match(metric: Tensor, r: int, *, even: int = 0, odd: int = 0, keep_order: bool = True) -> Matching:
    """Bipartite soft matching (paper, section 3): each even token proposes to its most similar odd one.

    Args:
        metric: (B, N, d) what similarity (cosine) is measured on.
        r: merges, 0 to (N - even - odd) // 2.
        even, odd: protected tokens at the first even and at the first odd positions.
        keep_order: senders without a merge keep their order; else they come by falling similarity.

    Returns:
        The r best edges. A receiver may get several.
    """
    batch, tokens = metric.shape[:2]
    unit = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp(min=1e-12)
    similarity = unit[:, 2 * even :: 2] @ unit[:, 2 * odd + 1 :: 2].transpose(1, 2)  # (B, senders, receivers)
    best = similarity.amax(dim=-1)
    if keep_order:
        merged = best.topk(r, dim=1).indices  # (B, r)
        alone = complement(merged, best.shape[1])
    else:
        ranked = best.argsort(dim=1, descending=True)
        merged, alone = ranked[:, :r], ranked[:, r:]
    # the receiver of the r merged ones only: an argmax over all rows would cost more than the maximum itself
    target = take_tokens(similarity, merged).argmax(dim=-1)
    fixed = torch.arange(tokens, device=metric.device).expand(batch, -1)
    front = _interleaved(fixed, even, odd)
    order = torch.cat([*front, 2 * (alone + even), fixed[:, 2 * odd + 1 :: 2]], dim=1)
    receivers = similarity.shape[2]
    return Matching(order, 2 * (merged + even), target + (tokens - r - receivers), receivers)


def _interleaved(indices: Tensor, even: int, odd: int) -> list[Tensor]:
    """The protected indices in their order, as slices of (B, N)."""
    if abs(even - odd - 0.5) < 1:  # 0, 2, ... and 1, 3, ... with no gap: the prefix of a sequence
        return [indices[:, : even + odd]]
    return [indices[:, : 2 * even : 2], indices[:, 1 : 2 * odd : 2]]


def shares(matching: Matching, size: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the merge, and the sizes after it.

    size (B, N) -> share (B, r), what part of its new token each merged one makes up; size (B, N - r).
    """
    given = size.gather(1, matching.source)
    after = size.gather(1, matching.order).scatter_add(1, matching.target, given)
    return given / after.gather(1, matching.target), after


def merge(x: Tensor, matching: Matching, share: Tensor) -> Tensor:
    """The weighted means, (B, N, C) -> (B, N - r, C): receiver + sum of share · (merged - receiver).

    Only the r rows that change are touched. An exported graph gets a product with the (receivers, r) matrix of shares
    instead of the indexed sum, which runtimes do slowly or not at all; results agree to rounding.
    """
    out, moved = take_tokens(x, matching.order), take_tokens(x, matching.source)
    share = share.to(x.dtype)
    if torch.compiler.is_exporting():
        return _merge_by_product(out, moved, matching, share)
    first = torch.arange(out.shape[0], device=x.device).unsqueeze(1) * out.shape[1]
    rows = (matching.target + first).flatten()
    flat, moved = out.flatten(0, 1), moved.flatten(0, 1)
    change = (moved - flat.index_select(0, rows)) * share.flatten().unsqueeze(-1)
    flat.index_add_(0, rows, change)  # in place: `out` is a fresh copy
    return out


def _merge_by_product(out: Tensor, moved: Tensor, matching: Matching, share: Tensor) -> Tensor:
    alone = out.shape[1] - matching.receivers
    number = torch.arange(alone, out.shape[1], device=out.device).unsqueeze(1)  # (R, 1)
    given = torch.where(matching.target.unsqueeze(1) == number, share.unsqueeze(1), 0.0)  # (B, R, r)
    kept = 1 - given.sum(dim=-1, keepdim=True)
    return torch.cat([out[:, :alone], out[:, alone:] * kept + given @ moved], dim=1)


def summed_keys(keys: Tensor) -> Tensor:
    """Keys summed over the heads, (B, H, N, d) -> (B, N, d): the cosine of sums is that of means.

    Head by head: a reduction over the strided view of q, k, v takes twice as long.
    """
    if torch.compiler.is_exporting():
        return keys.transpose(1, 2).sum(dim=2)  # where the keys lie in the graph
    first, *others = keys.unbind(1)
    for head in others:
        first = first + head
    return first
