"""Runners of artefacts that take pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy_models import PREPROCESS, small
from leanvit.deploy import export, load_artefact
from leanvit.deploy.running import pixels_of
from leanvit.errors import BadInput


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    "runtime", ["openvino", pytest.param("onnx", marks=pytest.mark.extra("onnxruntime", of="onnx"))]
)
def test_pixels_give_what_normalised_images_give(tmp_path: Path, runtime: str) -> None:
    runner = load_artefact(export(small(), tmp_path / "a", to=runtime, preprocess=PREPROCESS, input_type="u8", batch=2))
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        want = small()(PREPROCESS.normalize(pixels))
    for given in (pixels, PREPROCESS.normalize(pixels)):
        torch.testing.assert_close(runner(given), want, rtol=0, atol=1e-4 * want.abs().max())
    with pytest.raises(BadInput, match="takes 8-bit pixels"):
        runner(images(2))
    with pytest.raises(BadInput, match=r"or uint8 \(batch, 32, 32, 3\)"):
        runner(pixels.movedim(-1, 1))


def test_pixels_come_back_exactly() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).contiguous()
    assert np.array_equal(pixels_of(PREPROCESS.normalize(pixels).numpy(), PREPROCESS), pixels.numpy())
