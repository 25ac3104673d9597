"""When an image leaves a network early: rules on the logits of its exits. PyTorch models and artefacts share them.

confidence          the largest probability is above the threshold
entropy             the entropy of the probabilities (nats) is below the threshold
patience            so many exits in a row gave the same answer; the first one counts (PABEE, arXiv 2006.04152)
patient_confident   so many exits in a row had an entropy below the threshold
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, Words, check

# rule: what its threshold may be
THRESHOLDS: dict[str, Any] = {
    "confidence": Annotated[
        float, Ge(0), Le(1), Words("with the rule confidence 0 (the first exit takes all) to 1 (none leaves)")
    ],
    "entropy": Annotated[float, Ge(0), Words("with the rule entropy 0 (none leaves) or more, in nats")],
    "patience": Annotated[int, Ge(1), Words("with the rule patience a whole number of exits, 1 or more")],
    "patient_confident": Annotated[
        float, Ge(0), Words("with the rule patient_confident 0 (none leaves) or more, in nats")
    ],
}
RuleName = Annotated[str, Choice(THRESHOLDS)]


def confidence_of(logits: Tensor) -> Tensor:
    """The largest probability, (B,) float32, of logits (B, classes)."""
    return logits.float().log_softmax(dim=-1).amax(dim=-1).exp()


def entropy_of(logits: Tensor) -> Tensor:
    """Of the probabilities, (B,) float32 in nats. Probabilities that vanish add nothing."""
    log_p = logits.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def answer_of(logits: Tensor) -> Tensor:
    """The class of the largest logit, (B,) int64."""
    return logits.argmax(dim=-1)


_SEEN = {"confidence": confidence_of, "entropy": entropy_of, "answer": answer_of}
_READS = {"confidence": "confidence", "entropy": "entropy", "patience": "answer", "patient_confident": "entropy"}


@dataclass(frozen=True)
class Evidence:
    """What any rule may ask of one exit's logits."""

    confidence: Tensor  # (B,) float32, largest probability
    entropy: Tensor  # (B,) float32, nats
    answer: Tensor  # (B,) int64

    @classmethod
    def of(cls, logits: Tensor) -> Evidence:
        """From logits (B, classes)."""
        return cls(**{name: see(logits) for name, see in _SEEN.items()})


@dataclass(frozen=True)
class Memory:
    """What a patient rule knows of the images still inside."""

    last: Tensor  # (B,), what it read at the last exit
    streak: Tensor  # (B,) int64, how many exits in a row spoke for leaving

    def rows(self, index: Tensor) -> Memory:
        """Of these images only."""
        return Memory(self.last[index], self.streak[index])


@dataclass(frozen=True)
class Rule:
    """A rule with a threshold for each exit. `patience`: exits in a row, of `patient_confident`.

    Not checked here, so that thresholds that never or always fire can be had: `check_rule` is for what users give.
    """

    kind: str
    thresholds: tuple[float, ...]
    patience: int = 2

    def __call__(self, number: int, logits: Tensor, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """Which images leave at exit `number` (from 0): (B,) bool, and what to remember of all of them.

        `memory` is that of the exit before, None at the first. Only what the rule reads is computed: between the parts
        of an artefact, image by image, this is time that the network does not run.
        """
        return self._judge(number, _SEEN[_READS[self.kind]](logits), memory)

    def decide(self, number: int, seen: Evidence, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """The same from what was seen of the logits."""
        return self._judge(number, getattr(seen, _READS[self.kind]), memory)

    def _judge(self, number: int, value: Tensor, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        threshold = self.thresholds[number]
        if self.kind == "confidence":
            return value > threshold, None
        if self.kind == "entropy":
            return value < threshold, None
        before = torch.zeros_like(value, dtype=torch.int64) if memory is None else memory.streak
        if self.kind == "patience":
            same = torch.ones_like(value) if memory is None else (value == memory.last).long()
            streak = before * same + 1
            return streak >= threshold, Memory(value, streak)
        streak = (before + 1) * (value < threshold).long()
        return streak >= self.patience, Memory(value, streak)

    def to_json(self) -> dict[str, Any]:
        """As it stands in plans and artefacts."""
        return {"rule": self.kind, "thresholds": list(self.thresholds), "patience": self.patience}


def check_rule(kind: object, thresholds: Sequence[object], patience: object, exits: int) -> Rule:
    """A rule of user input. Raises `BadInput` for a value outside what the rule takes."""
    name: str = check("rule", kind, RuleName)
    check("patience", patience, Count)
    if len(thresholds) != exits:
        raise BadInput(f"there are {len(thresholds)} thresholds for {exits} exits; accepted: one, or one an exit")
    for threshold in thresholds:
        check_threshold(name, threshold)
    return Rule(name, tuple(thresholds), int(patience))  # type: ignore[arg-type, call-overload]


def check_threshold(kind: str, value: object) -> None:
    """Raise `BadInput` unless the rule takes this threshold."""
    check("threshold", value, THRESHOLDS[kind])
