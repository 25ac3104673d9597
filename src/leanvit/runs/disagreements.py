"""The images on which a lean model answers otherwise than dense does, the worst first, and small pictures of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leanvit.errors import CheckpointError
from leanvit.files import JSON_LIMIT, write_atomic
from leanvit.runs.evidence import Evidence
from leanvit.runs.thumbnails import encoded

if TYPE_CHECKING:
    from leanvit.data import Dataset

FORMAT = 1
SHOWN = 12  # of each pair of models
SIDE = 144  # pixels of a picture's longer side
MOST_BYTES = 3 * 2**20  # of all pictures of one comparison


@dataclass(frozen=True)
class Disagreement:
    """One image: what it is, and what both predicted with which probability."""

    key: str
    target: int
    dense: int
    dense_confidence: float
    lean: int
    lean_confidence: float

    @property
    def kind(self) -> str:
        """`lost` (dense was right), `gained` (lean is right) or `other` (neither is)."""
        return "lost" if self.dense == self.target else "gained" if self.lean == self.target else "other"


def worst(evidence: Evidence, dense: str, lean: str, *, most: int = SHOWN) -> list[Disagreement]:
    """Where two rows disagree: images that lean lost first, then by how sure both were (sum of probabilities)."""
    a, b = evidence.answers[dense], evidence.answers[lean]
    changed = np.flatnonzero(a.classes != b.classes)
    lost = evidence.right(dense)[changed]
    sure = a.confidence[changed] + b.confidence[changed]
    order = changed[np.lexsort((changed, -sure, ~lost))][:most]
    return [
        Disagreement(
            key=evidence.keys[i],
            target=int(evidence.targets[i]),
            dense=int(a.classes[i]),
            dense_confidence=float(a.confidence[i]),
            lean=int(b.classes[i]),
            lean_confidence=float(b.confidence[i]),
        )
        for i in order
    ]


def pictures(dataset: Dataset, keys: Iterable[str]) -> dict[str, str]:
    """Small pictures (base64) of some images by key, until `MOST_BYTES` are full."""
    rows = {key: i for i, key in enumerate(dataset.keys)}
    made: dict[str, str] = {}
    left = MOST_BYTES
    for key in dict.fromkeys(keys):
        if key not in rows:
            continue
        text = encoded(dataset[rows[key]].image, side=SIDE)
        left -= len(text)
        if left < 0:
            break
        made[key] = text
    return made


def save_pictures(path: Path, made: dict[str, str]) -> None:
    """Write pictures as JSON, atomically."""
    write_atomic(path, json.dumps({"format": FORMAT, "pictures": made}).encode())


def load_pictures(path: Path) -> dict[str, str]:
    """Read `save_pictures`' file; empty if there is none. Raises `CheckpointError` if it is something else."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"more than {JSON_LIMIT} bytes")
        content = json.loads(path.read_bytes())
        made = content["pictures"]
        if content["format"] != FORMAT or not all(isinstance(v, str) for v in made.values()):
            raise ValueError(f"format {FORMAT} with texts is read")
        return dict(made)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold pictures of disagreements: {error}") from error
