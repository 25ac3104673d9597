"""Fixtures of the data package: a small image folder, and the shared real data where there is some."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pictures import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders without splits: 12 cats, 8 dogs."""
    return write_folder(tmp_path / "pets", {"dog": 8, "cat": 12})


@pytest.fixture
def real() -> Callable[[str], Path]:
    """`real("cifar10")`: that folder of shared data (LEANVIT_SHARED, or `shared` beside the checkout); or a skip."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("LEANVIT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
        if not (root / "data" / name).is_dir():
            pytest.skip(f"no shared data {name!r}: set LEANVIT_SHARED or put a folder `shared` beside the checkout")
        return root / "data" / name

    return find
