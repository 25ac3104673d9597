"""One artefact of each precision, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy_models import LABELS, PREPROCESS, small, small_int8
from leanvit.deploy import Artefact, export


@pytest.fixture(scope="session")
def float_artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """OpenVINO, f32, any batch."""
    return export(small(), tmp_path_factory.mktemp("float") / "a", preprocess=PREPROCESS, labels=LABELS)


@pytest.fixture(scope="session")
def int8_artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """OpenVINO, int8, batch 4."""
    return export(small_int8(), tmp_path_factory.mktemp("int8") / "a", preprocess=PREPROCESS, batch=4)


@pytest.fixture
def copied(float_artefact: Artefact, tmp_path: Path) -> Path:
    """A copy of the f32 artefact to damage."""
    shutil.copytree(float_artefact.path, tmp_path / "copy")
    return tmp_path / "copy"
