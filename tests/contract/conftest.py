from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from contract.toys import toys


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """The toys are papers like all others while a test of this folder runs, and in no other."""
    here = Path(__file__).parent in item.path.parents
    with toys() if here else nullcontext():
        return (yield)
