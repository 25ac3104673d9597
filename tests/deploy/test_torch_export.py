"""Export with torch.export: archives, and whom leanvit trusts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy_models import PREPROCESS, small, small_int8
from leanvit.deploy import Options, export, load_artefact
from leanvit.errors import BadInput, Refused


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("make", [small, small_int8])
def test_torch_archive_equals_pytorch(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    artefact = export(make(), tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with torch.no_grad():
        want = make()(images(5))
    torch.testing.assert_close(load_artefact(artefact)(images(5)), want, rtol=0, atol=1e-4 * want.abs().max())
    runner = load_artefact(artefact.path, trusted=True)
    assert (runner.runtime, runner.precision) == ("torch.export", "f32" if make is small else "int8 simulated")
    assert "integer_products" not in artefact.check


def test_foreign_torch_archives_are_not_opened(tmp_path: Path) -> None:
    artefact = export(small(), tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with pytest.raises(Refused, match="can run code"):
        load_artefact(artefact.path)
    with pytest.raises(BadInput, match="torch artefact runs at f32"):
        load_artefact(artefact, options=Options(threads=1))
