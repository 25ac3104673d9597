"""Thresholds of exit rules, chosen on held-out training images: what each threshold gives and costs.

Every exit's answer is collected once; a rule is then replayed on what was seen, so a curve of many thresholds costs one
pass over the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.rules import Evidence, Memory, Rule
from leanvit.data import AnyDataset, Dataset, Preprocess, keyed, loader, require_labels
from leanvit.errors import BadInput, Refused
from leanvit.recipe.kept_units import Kept
from leanvit.recipe.learning import Data

POINTS = 64  # thresholds of a curve, at most
UNIT = 32  # batches whose answers are kept together
_EVIDENCE = ("confidence", "entropy", "answer")


def held_out(dataset: AnyDataset, share: float, seed: int) -> tuple[AnyDataset, Dataset | None]:
    """(images to train on, images to choose thresholds on), apart by the hash of the key.

    A share of 0 holds nothing out. Raises `BadInput` for a stream, which has no rows, and where a part stays empty.
    """
    if share == 0:
        return dataset, None
    if not isinstance(dataset, Dataset):
        raise BadInput("a stream has no rows to hold out for thresholds: give held_out=0 and a threshold")
    count = max(1, round(share * len(dataset)))
    if count >= len(dataset):
        raise BadInput(f"held_out={share:g} of {len(dataset)} training images leaves none to train on")
    order = np.argsort(keyed.ranks(dataset.key_hashes, "held out", seed), kind="stable")
    return dataset.take(np.sort(order[count:])), dataset.take(np.sort(order[:count]))


@dataclass(frozen=True)
class Collected:
    """What every exit, and the end, said of every image."""

    exits: tuple[Evidence, ...]
    final: Tensor  # (N,) int64, answers at the end
    targets: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for `of`."""
        named = {f"{i}.{name}": getattr(one, name) for i, one in enumerate(self.exits) for name in _EVIDENCE}
        return {**named, "final": self.final, "targets": self.targets}

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, Tensor]]) -> Collected:
        """Of images one behind the other."""
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        exits = (len(whole) - 2) // len(_EVIDENCE)
        evidence = (Evidence(*(whole[f"{i}.{name}"] for name in _EVIDENCE)) for i in range(exits))
        return cls(tuple(evidence), whole["final"], whole["targets"])


def collect_in_units(model: OpenModel, dataset: Dataset, data: Data) -> Collected:
    """`collect`, with progress, and what a killed run had collected: images whose batches are those of one pass."""
    size = UNIT * data.batch_size

    def collected(first: str) -> Kept:
        rows = range(int(first), min(int(first) + size, len(dataset)))
        return Kept(collect(model, dataset.take(rows), data.preprocess, batch_size=data.batch_size).tensors())

    firsts = [str(first) for first in range(0, len(dataset), size)]
    return Collected.of([kept.tensors for _, kept in data.units("thresholds", firsts, collected)])


@torch.no_grad()
def collect(model: OpenModel, dataset: AnyDataset, preprocess: Preprocess, *, batch_size: int) -> Collected:
    """Run images through all exits, in eval mode. Raises `BadInput` for data without labels."""
    require_labels(dataset, "the choice of thresholds")
    device, training = next(model.parameters()).device, model.training
    rows: list[list[Evidence]] = []
    finals, targets = [], []
    model.eval()
    try:
        for batch in loader(dataset, preprocess, batch_size=batch_size):
            logits, final = _all_logits(model, batch.images.to(device))
            rows.append([Evidence.of(one.cpu()) for one in logits])
            finals.append(final.argmax(dim=-1).cpu())
            targets.append(batch.targets)
    finally:
        model.train(training)
    exits = tuple(
        Evidence(*(torch.cat([getattr(row[i], name) for row in rows]) for name in _EVIDENCE))
        for i in range(len(model.exits.heads))
    )
    return Collected(exits, torch.cat(finals), torch.cat(targets))


def _all_logits(model: OpenModel, images: Tensor) -> tuple[list[Tensor], Tensor]:
    x, state = model.embed(images, model.start(images))
    found, start = [], 0
    for stop, head in zip(model.exits.layers, model.exits.heads, strict=True):
        x, state = model.run(x, state, start, stop)
        found.append(head(x, state)[0])
        start = stop
    return found, model.classify(*model.run(x, state, start))[0]


@dataclass(frozen=True)
class Point:
    """What one threshold gives on the held-out images."""

    threshold: float
    top1: float  # fraction
    macs: float  # mean of an image, heads included
    mean_layer: float  # blocks passed
    shares: tuple[float, ...]  # of the images, at each exit and at the end

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shares": [round(share, 6) for share in self.shares]}


def replay(seen: Collected, rule: Rule, layers: Sequence[int], macs: Sequence[int]) -> Point:
    """What a rule would have done. `layers`, `macs`: at each exit and at the end."""
    at = torch.full((len(seen),), len(seen.exits), dtype=torch.int64)
    answers, memory = seen.final.clone(), None
    inside = torch.ones(len(seen), dtype=torch.bool)
    known: Memory | None = memory
    for number, evidence in enumerate(seen.exits):
        leaves, known = rule.decide(number, evidence, known)
        leaves = leaves & inside
        at[leaves], answers[leaves] = number, evidence.answer[leaves]
        inside &= ~leaves
    shares = torch.bincount(at, minlength=len(layers)).double() / len(seen)
    return Point(
        threshold=float(rule.thresholds[0]) if rule.thresholds else 0.0,
        top1=float((answers == seen.targets).double().mean()),
        macs=float(shares @ torch.tensor(macs, dtype=torch.float64)),
        mean_layer=float(shares @ torch.tensor(layers, dtype=torch.float64)),
        shares=tuple(shares.tolist()),
    )


def curve(
    seen: Collected, kind: str, patience: int, layers: Sequence[int], macs: Sequence[int], *, points: int = POINTS
) -> list[Point]:
    """One threshold for all exits, from the one at which all leave at the first exit to the one at which none does."""
    exits = len(seen.exits)
    rules = (Rule(kind, (float(t),) * exits, patience) for t in _candidates(seen, kind, points))
    return [replay(seen, rule, layers, macs) for rule in rules]


def _candidates(seen: Collected, kind: str, points: int) -> list[float]:
    """Thresholds between which an image changes its exit: quantiles of what was seen, and both ends."""
    if kind == "patience":
        return [float(t) for t in range(1, len(seen.exits) + 2)]
    name, never = ("confidence", 1.0) if kind == "confidence" else ("entropy", 0.0)
    values = torch.cat([getattr(evidence, name) for evidence in seen.exits]).double()
    inner = torch.quantile(_thinned(values), torch.linspace(0, 1, points - 1, dtype=torch.float64)).tolist()
    found = sorted({round(v, 6) for v in (*inner, never)})
    if kind == "confidence":
        return [0.0, *(v for v in found if 0 < v <= 1)]
    beyond = round(float(values.max()) + 1e-3, 6)  # all leave at once
    return [beyond, *reversed([v for v in found if v < beyond])]


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """Quantiles of torch take 16 M values at most; every n-th of the sorted ones has the same quantiles."""
    return values if len(values) <= most else values.sort().values[:: -(-len(values) // most)]


def chosen(
    points: Sequence[Point], *, dense: int, final_top1: float, speedup: float | None, points_lost: float | None
) -> Point:
    """The threshold for a target: of a speed-up in MACs the most accurate that reaches it, of a loss the cheapest.

    Args:
        dense: MACs of the network without exits. final_top1: of the end alone, a fraction.
        speedup: dense over mean MACs. points_lost: of top-1, at most, in percentage points.

    Raises `Refused` where no threshold meets the target (the best is named).
    """
    if speedup is not None:
        fast = [p for p in points if dense / p.macs >= speedup]
        if not fast:
            best = max(dense / p.macs for p in points)
            raise Refused(f"speedup {speedup:g} was requested; if all images leave at the first exit it is {best:.2f}")
        return max(fast, key=lambda p: (p.top1, -p.macs))
    assert points_lost is not None
    good = [p for p in points if 100 * (final_top1 - p.top1) <= points_lost]
    if not good:  # one at which nobody leaves is among the points, and loses nothing
        raise Refused(f"no threshold keeps within {points_lost:g} points of the network's end")
    return min(good, key=lambda p: p.macs)
