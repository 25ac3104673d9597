"""What each model of a comparison answered on each image, and how sure it was: one small file beside `measure.json`.

Eight bytes an image and model, where logits of 1,000 classes would take 4,000: enough for changes by class, confusion,
disagreements and calibration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from leanvit.errors import BadInput, CheckpointError
from leanvit.files import write_atomic

if TYPE_CHECKING:
    from leanvit.measure import Predictions

FORMAT = "leanvit.evidence/1"
LIMIT_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Answers:
    """One model's answers: classes (N,) int32, and the softmax probability of each, (N,) float32."""

    classes: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, eq=False)
class Evidence:
    """The answers of every row of a comparison on the same N images.

    Raises `BadInput` where shapes do not fit or a confidence is no probability.
    """

    data: str  # spec of the data set
    of: str  # sha256 of the comparison's file
    keys: tuple[str, ...]
    targets: np.ndarray  # (N,) int32
    answers: dict[str, Answers]  # by name of the row

    def __post_init__(self) -> None:
        n = len(self.keys)
        for name, one in self.answers.items():
            if not self.targets.shape == one.classes.shape == one.confidence.shape == (n,):
                raise BadInput(f"evidence of {name}: {n} keys need as many targets, answers and confidences")
            if not ((one.confidence >= 0) & (one.confidence <= 1 + 1e-6)).all():
                raise BadInput(f"evidence of {name}: confidences must be probabilities")

    @cached_property
    def fingerprint(self) -> str:
        """Alike for comparisons of the same images with the same labels, in whatever order."""
        pairs = sorted(zip(self.keys, self.targets.tolist(), strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]

    def right(self, name: str) -> np.ndarray:
        """(N,) bool: where a model's answer is the target."""
        return np.equal(self.answers[name].classes, self.targets)

    @classmethod
    def of_predictions(cls, predictions: Mapping[str, Predictions], *, data: str, comparison: bytes) -> Evidence:
        """From logits, every model's in the order of the first one's keys. `comparison`: its file's content."""
        first = next(iter(predictions.values()))
        answers = {}
        for name, own in predictions.items():
            probability = own.ordered_by(first.keys).logits.float().softmax(dim=1)
            best = probability.max(dim=1)
            answers[name] = Answers(best.indices.numpy().astype(np.int32), best.values.numpy())
        targets = first.targets.numpy().astype(np.int32)
        return cls(data, hashlib.sha256(comparison).hexdigest(), first.keys, targets, answers)

    def save(self, path: Path) -> bool:
        """Write one safetensors file, atomically; False, and nothing written, if it would pass `LIMIT_BYTES`."""
        from safetensors.numpy import save_file

        keys = json.dumps(self.keys)
        if self.targets.nbytes * (1 + 2 * len(self.answers)) + len(keys) > LIMIT_BYTES:
            return False
        tensors = {"targets": self.targets}
        for i, one in enumerate(self.answers.values()):
            tensors |= {f"classes.{i}": one.classes, f"confidence.{i}": one.confidence}
        about = {"format": FORMAT, "data": self.data, "of": self.of, "keys": keys, "rows": json.dumps([*self.answers])}
        write_atomic(path, lambda part: save_file(tensors, part, metadata=about))
        return True

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Read what `save` wrote. Raises `CheckpointError` for a truncated, foreign, huge or inconsistent file."""
        try:
            if path.stat().st_size > 2 * LIMIT_BYTES:
                raise CheckpointError(f"{path} has {path.stat().st_size} bytes; accepted: up to {2 * LIMIT_BYTES}")
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    found = about.get("format", "none")
                    raise CheckpointError(f"{path} holds no evidence: format {FORMAT!r} expected, found {found!r}")
                rows, keys = _texts(about["rows"]), _texts(about["keys"])
                targets = _array(file, "targets", np.int32)
                answers = {
                    row: Answers(_array(file, f"classes.{i}", np.int32), _array(file, f"confidence.{i}", np.float32))
                    for i, row in enumerate(rows)
                }
            return cls(about["data"], about["of"], tuple(keys), targets, answers)
        except (SafetensorError, BadInput, KeyError, ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as evidence: {error}") from error


def _texts(text: str) -> list[str]:
    values = json.loads(text)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("names or keys are no list of texts")
    if len(set(values)) != len(values):
        raise ValueError("a name or key comes twice")
    return values


def _array(file: Any, name: str, kind: type) -> np.ndarray:
    values: np.ndarray = file.get_tensor(name)
    if values.dtype != kind or values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional {np.dtype(kind)}")
    return values
