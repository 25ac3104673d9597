"""The ONNX Runtime and torch.export outlets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy_models import PREPROCESS, small, small_int8
from leanvit.deploy import Options, export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("batch", [None, 2])
def test_onnx_equals_pytorch(tmp_path: Path, batch: int | None) -> None:
    pytest.importorskip("onnxruntime")
    artefact = export(small(), tmp_path / "a", to="onnx", preprocess=PREPROCESS, batch=batch)
    assert set(artefact.files) == {"model.onnx"}
    runner = load_artefact(artefact.path, options=Options(threads=1))
    with torch.no_grad():
        want = small()(images(5))
    torch.testing.assert_close(runner(images(5)), want, rtol=0, atol=1e-4 * want.abs().max())
    with pytest.raises(BadInput, match="f32 only"):
        load_artefact(artefact.path, options=Options(precision="bf16"))


@pytest.mark.parametrize("make", [small, small_int8])
def test_torch_archive_equals_pytorch(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    artefact = export(make(), tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with torch.no_grad():
        want = make()(images(5))
    torch.testing.assert_close(load_artefact(artefact)(images(5)), want, rtol=0, atol=1e-4 * want.abs().max())
    assert load_artefact(artefact.path, trusted=True).runtime == "torch"


def test_foreign_torch_archives_are_not_opened(tmp_path: Path) -> None:
    artefact = export(small(), tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with pytest.raises(Refused, match="can run code"):
        load_artefact(artefact.path)
    with pytest.raises(BadInput, match="torch artefact runs at f32"):
        load_artefact(artefact, options=Options(threads=1))


@pytest.mark.parametrize("method", [EViT(keep_rate=0.5, blocks=(0,)), ToMe(r=3)])
def test_token_methods_reach_every_outlet(tmp_path: Path, method: EViT | ToMe) -> None:
    pytest.importorskip("onnxruntime")
    model = small(patch_size=4)
    method.shape(model, method.learn(model))
    for runtime in ("onnx", "torch"):
        artefact = export(model, tmp_path / runtime, to=runtime, preprocess=PREPROCESS)
        with torch.no_grad():
            want = model(images(3))
        torch.testing.assert_close(load_artefact(artefact)(images(3)), want, rtol=0, atol=1e-4 * want.abs().max())
