"""Swin from compress to artefact: saved and loaded bit for bit, exported at f32, run at int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy_models import PREPROCESS
from leanvit.anatomy import open_model
from leanvit.deploy import Options, export, load_artefact
from leanvit.deploy.openvino import MODEL, compile_model, core
from leanvit.deploy.openvino_graph import product_precisions
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import compress, load, save
from leanvit.recipe.roots import Root
from leanvit.tokens.tome import ToMe
from zoo import SMALL_SWIN, build_swin

pytestmark = pytest.mark.e2e

WIDE = {"embed_dim": 24, "num_heads": (2, 4)}
CASES = [
    ("swin_tiny_patch4_window7_224", {"depths": (2, 1), "window_size": 4}, [ToMe(r=[6, 8, 6])]),
    ("swinv2_tiny_window8_256", {"depths": (1, 1), "window_size": 3}, []),  # a grid of 16x16 padded to 18x18
]


class NoiseData:
    def __init__(self) -> None:
        pass

    def images(self, count: int) -> Iterator[Tensor]:
        yield torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "kwargs", "methods"), CASES)
def test_merged_and_quantized_end_to_end(name: str, kwargs: dict, methods: list, tmp_path: Path) -> None:
    kwargs = {**SMALL_SWIN, **WIDE, **kwargs}
    dense = build_swin(name, **kwargs)
    root = Root(name, {key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items()})
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        lean = compress(dense, [*methods, Int8(images=32)], NoiseData(), root=root).eval()
        want, before = lean(x), dense(x)
    scale = before.abs().max()
    assert 0 < (want - before).abs().max() < 0.15 * scale

    save(lean, tmp_path / "run", preprocess=PREPROCESS)
    again = load(tmp_path / "run")
    assert torch.equal(again(x), want)
    rows = describe(again)
    assert {row["bits"] for row in rows} == {8} and len({row["site"] for row in rows}) == len(again.sites()) + 2 * len(
        again.blocks
    )

    artefact = export(again, tmp_path / "int8", preprocess=PREPROCESS)
    assert (load_artefact(artefact.path)(x) - want).abs().max() < 0.05 * scale
    counts = product_precisions(compile_model(core().read_model(artefact.path / MODEL), Options()))
    assert set(counts) <= {"u8", "i8"} and sum(counts.values()) >= len(again.sites())


def test_the_float_artefact_passes_the_gate(tmp_path: Path) -> None:
    model = open_model(build_swin("swinv2_tiny_window8_256", **{**SMALL_SWIN, **WIDE, "depths": (2, 1)}))
    ToMe(r=[6]).shape(model, ToMe(r=[6]).learn(model))
    artefact = export(model, tmp_path / "f32", preprocess=PREPROCESS)
    assert artefact.check["at"] == "f32" and artefact.check["max_error"] < 1e-4
