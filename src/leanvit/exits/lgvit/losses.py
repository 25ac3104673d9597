"""What the two stages of LGViT minimise (arXiv 2308.00255, 3.3 and 3.4).

Stage 1 trains backbone and heads end to end, stage 2 the heads alone, taught by the network's own end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy import OpenModel, State
from leanvit.data import Batch, Preprocess
from leanvit.errors import BadInput
from leanvit.exits.lgvit.heads import LOCAL, picked, stride_of
from leanvit.tasks.objectives import mean_head
from leanvit.training import Loss, Objective

STRATEGIES = ("normal", "weighted", "alternating", "alternating_weighted")


@dataclass(frozen=True)
class Seen:
    """One run of a model through all its exits."""

    logits: list[Tensor]  # of each exit, (B, classes) float32
    features: list[Tensor | None]  # of each exit, (B, n, C); None of a linear head
    final: Tensor  # (B, classes) float32, the network's own end
    tokens: Tensor  # (B, N, C) after the last block, not normalised
    states: list[State] = field(default_factory=list)  # at each exit, then after the last block


def run_all(model: OpenModel, images: Tensor, context: Mapping[str, Any], *, frozen: bool = False) -> Seen:
    """All exits of a model. `frozen`: the backbone runs without gradients."""
    logits, features, states = [], [], []
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        x, state = model.embed(images, model.start(images, **context))
    start = 0
    for stop, head in zip((*model.exits.layers, None), (*model.exits.heads, None), strict=True):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x, state = model.run(x, state, start, stop)
        states.append(state)
        if head is not None:
            given, found = head(x, state)
            logits.append(given.float())
            features.append(found)
            start = stop
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        final = mean_head(model.classify(x, state)[0]).float()
    return Seen(logits, features, final, x, states)


# --- stage 1 ---------------------------------------------------------------------


def joint_loss(exits: Sequence[Tensor], final: Tensor, layers: Sequence[int], strategy: str, step: int) -> Tensor:
    """One loss from the cross-entropies of exits and end. `layers`: blocks passed at each exit, and at the end.

    The mean of all ("normal"), or weighted by depth, Σ l CE_l / Σ l ("weighted"); alternating strategies do so at odd
    steps only and train the end alone at even ones (BERxiT, EACL 2021; steps count from 0).
    """
    if strategy.startswith("alternating") and step % 2 == 0:
        return final
    weights = torch.tensor(layers if strategy.endswith("weighted") else [1] * len(layers), device=final.device)
    return (torch.stack([*exits, final]) * weights).sum() / weights.sum()


class Joint(Objective):
    """Stage 1: cross-entropy of all exits and the end."""

    learns = "one"

    def __init__(self, strategy: str) -> None:
        super().__init__()
        self.strategy = strategy

    def extra_repr(self) -> str:
        return f"strategy={self.strategy}"

    def forward(self, model: Any, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        seen = run_all(model, batch.images, context)
        exits = [F.cross_entropy(logits, batch.targets) for logits in seen.logits]
        final = F.cross_entropy(seen.final, batch.targets)
        total = joint_loss(exits, final, (*model.exits.layers, len(model.blocks)), self.strategy, step)
        return Loss(total, {"final": final.detach(), "exits": torch.stack(exits).mean().detach()})


# --- stage 2 ---------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Of the parts of stage 2."""

    alpha: float = 0.3  # of the teacher against the labels
    heterogeneous: float = 0.01
    homogeneous: float = 0.01
    temperature: float = 2.0


@dataclass(frozen=True)
class Parts:
    """The terms of stage 2, one an exit or a pair."""

    labels: Tensor  # (exits,)
    teacher: Tensor  # (exits,)
    heterogeneous: dict[int, Tensor]  # exit -> against the last block's patches
    homogeneous: dict[int, Tensor]  # exit -> against the last head of its sort

    def total(self, weights: Weights) -> Tensor:
        """(1 - α) Σ CE + α Σ KD + β Σ het + β Σ hom: sums over exits."""
        total = (1 - weights.alpha) * self.labels.sum() + weights.alpha * self.teacher.sum()
        total = total + weights.heterogeneous * sum(self.heterogeneous.values())
        return total + weights.homogeneous * sum(self.homogeneous.values())


def taught(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) at temperature T, divided by images and classes (published: not by images alone)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2 / student.numel()


def heterogeneous(features: Tensor, patches: Tensor) -> Tensor:
    """KL(patches || features) of softmaxes over the channels, (B, n, C) each; summed over tokens, mean over images."""
    log_own, log_last = F.log_softmax(features.float(), dim=-1), F.log_softmax(patches.float(), dim=-1)
    return F.kl_div(log_own, log_last, reduction="sum", log_target=True) / len(features)


def gram(features: Tensor) -> Tensor:
    """Products of channels over tokens, FᵀF: (B, n, C) -> (B, C, C), not normalised."""
    f = features.float()
    return f.transpose(1, 2) @ f


def stage2_parts(
    seen: Seen, kinds: Sequence[str], targets: Tensor, weights: Weights, teacher: Tensor | None = None
) -> Parts:
    """All terms of stage 2. `teacher`: logits that teach; default: the network's own, as it is deployed.

    Features are compared where they have one width: in a hierarchical net they have not, and those terms are left out.
    """
    teacher = (seen.final if teacher is None else teacher).detach()
    labels = [F.cross_entropy(logits, targets) for logits in seen.logits]
    by_teacher = [taught(logits, teacher, weights.temperature) for logits in seen.logits]
    apart: dict[int, Tensor] = {}
    alike: dict[int, Tensor] = {}
    widths = {f.shape[-1] for f in seen.features if f is not None} | {seen.tokens.shape[-1]}
    if len(widths) == 1 and len({s.grid for s in seen.states}) == 1:
        last, state = seen.tokens.detach()[:, seen.states[-1].num_prefix :], seen.states[-1]
        local = [i for i, kind in enumerate(kinds) if kind in LOCAL]
        spread = [i for i, kind in enumerate(kinds) if stride_of(kind)]
        for i in sorted({*local[:1], *local[-1:], *spread[:1], *spread[-1:]}):
            stride = stride_of(kinds[i])
            apart[i] = heterogeneous(_features(seen, i), picked(state.grid, stride)(last) if stride else last)
        for i in local[:-1]:
            alike[i] = F.mse_loss(_features(seen, i).float(), _features(seen, local[-1]).float())
        for i in spread[:-1]:
            alike[i] = F.mse_loss(gram(_features(seen, i)), gram(_features(seen, spread[-1])))
    return Parts(torch.stack(labels), torch.stack(by_teacher), apart, alike)


def _features(seen: Seen, i: int) -> Tensor:
    found = seen.features[i]
    assert found is not None
    return found


class SelfDistillation(Objective):
    """Stage 2: the network's end teaches the heads; the backbone is frozen and in eval mode, the heads train."""

    learns = "one"

    def __init__(self, kinds: Sequence[str], weights: Weights) -> None:
        super().__init__()
        self.kinds, self.weights = tuple(kinds), weights

    def extra_repr(self) -> str:
        return f"{self.kinds}, {self.weights}"

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Refuse a backbone that would learn."""
        loose = [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("exits.")]
        if loose:
            raise BadInput(f"stage 2 trains the heads alone, but {loose[0]} requires a gradient")

    def forward(self, model: Any, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        model.exits.train()  # batch statistics; all else stays in eval mode (train_mode="eval")
        parts = stage2_parts(self.run(model, batch, context), self.kinds, batch.targets, self.weights)
        shown = {"labels": parts.labels.mean().detach(), "teacher": parts.teacher.mean().detach()}
        for name, terms in (("heterogeneous", parts.heterogeneous), ("homogeneous", parts.homogeneous)):
            if terms:
                shown[name] = torch.stack(list(terms.values())).mean().detach()
        return Loss(parts.total(self.weights), shown)

    def run(self, model: Any, batch: Batch, context: Mapping[str, Any]) -> Seen:
        return run_all(model, batch.images, context, frozen=True)


def kinds_of(model: OpenModel) -> list[str]:
    """Kinds of the heads of a model."""
    return [head.kind for head in model.exits.heads]
