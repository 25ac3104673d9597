"""Whole matrices are for `make test-e2e`; `make test` tries a part of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: of `step` values the first is for every run, the others are `e2e`."""
    return [pytest.param(value, marks=pytest.mark.e2e if i % step else ()) for i, value in enumerate(values)]
