from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_training import make_data, make_preprocess

from leanvit.data import Dataset, Preprocess


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums differ with the number of threads: the tests here compare bits with processes that have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data() -> Dataset:
    return make_data(96)


@pytest.fixture(scope="session")
def val_data() -> Dataset:
    return make_data(64, split="val")


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return make_preprocess()
