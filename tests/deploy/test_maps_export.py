"""Maps as exported graphs, of dense models and of those that reduce tokens, as a neck or a head behind them exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy_models import Noise, small
from leanvit.anatomy import OpenViT
from leanvit.deploy.openvino import compile_model, convert
from leanvit.deploy.runtimes import Options
from leanvit.deploy.tracing import DRIFT, TOLERANCE, trace
from leanvit.quantize.int8 import Int8
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from matrix import every
from tokens.reduction import reduced

LEAN: dict[str, tuple[Any, ...]] = {
    "evit": (EViT(keep_rate=0.6, blocks=(0, 1)),),  # in every run, the others are e2e
    "dense": (),
    "tome": (ToMe(r=3),),
}


class Maps(nn.Module):
    def __init__(self, model: OpenViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.maps(images, 2)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def close(got: list[Any], model: OpenViT, x: Tensor, *, int8: bool = False) -> None:
    with torch.no_grad():
        want = model.maps(x, 2)
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), b.numpy()
        assert a.shape == b.shape
        if not int8:
            assert np.abs(a - b).max() < TOLERANCE * np.abs(b).max()
        drift = np.linalg.norm((a - b).reshape(len(b), -1), axis=1) / np.linalg.norm(b.reshape(len(b), -1), axis=1)
        assert np.median(drift) < DRIFT


@pytest.mark.parametrize("case", every(4, [*LEAN, "evit int8"]))
def test_openvino(case: str) -> None:
    name, int8, _ = case.partition(" int8")
    model = reduced(small(), *LEAN[name])
    if int8:
        method = Int8(images=16)
        structure = method.learn(model, Noise())  # type: ignore[arg-type]
        method.shape(model, structure)
        method.fold(model, structure, {})
    compiled = compile_model(convert(trace(Maps(model), (3, 32, 32), None), ["maps.0", "maps.1"]), Options())
    found = compiled([images(5).numpy()])
    close([found["maps.0"], found["maps.1"]], model, images(5), int8=bool(int8))


@pytest.mark.extra("onnxruntime", of="onnx")
@pytest.mark.parametrize("name", every(3, LEAN))
def test_onnx(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = reduced(small(), *LEAN[name])
    program = torch.onnx.export(trace(Maps(model), (3, 32, 32), None), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "maps.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "maps.onnx")
    close(session.run(None, {session.get_inputs()[0].name: images(5).numpy()}), model, images(5))
