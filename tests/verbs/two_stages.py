"""What the fixtures of published runs give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanvit.verbs.publishing import Published

ARGS = {"patch_size": 2, "depth": 2, "embed_dim": 48, "num_heads": 3, "patch_drop_rate": 0.5}
LIMIT = 600  # images of each split


@dataclass(frozen=True)
class Stages:
    """Folders of the first training, the training on, and what was published of it."""

    first: Path
    second: Path
    published: Published
