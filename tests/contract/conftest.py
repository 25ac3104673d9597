from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from contract.toys import toys


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """The toys are papers like all others while a test of this folder runs, and in no other."""
    with toys():
        return (yield)
