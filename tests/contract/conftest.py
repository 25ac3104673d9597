from __future__ import annotations

from collections.abc import Iterator

import pytest

from contract.toys import toys


@pytest.fixture(autouse=True, scope="module")
def _with_toys() -> Iterator[None]:
    """The toys are papers like all others."""
    with toys():
        yield
