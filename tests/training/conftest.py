from __future__ import annotations

import pytest
from tiny_training import make_data, make_preprocess

from leanvit.data import Dataset, Preprocess


@pytest.fixture(scope="package", autouse=True)
def _one_thread(one_thread: None) -> None:
    """The tests here compare bits with processes of one thread."""


@pytest.fixture(scope="session")
def data() -> Dataset:
    return make_data(96)


@pytest.fixture(scope="session")
def val_data() -> Dataset:
    return make_data(64, split="val")


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return make_preprocess()
