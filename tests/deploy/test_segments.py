"""Models with exits as artefacts: the same answers at the same exits, in the runtimes, float and int8."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exits.exiting import exiting, images, split_threshold
from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.rules import Rule
from leanvit.data import Preprocess
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.quantize.int8 import Int8


class Noise:
    """What `Int8.learn` asks of data."""

    def images(self, count: int) -> Iterator[torch.Tensor]:
        yield images(count, 16)


PREPROCESS = Preprocess(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def small(tiny, **rows) -> OpenModel:
    """4 x 4 patches; some of `images(12)` leave, some stay."""
    made = exiting(tiny(img_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=rows["depth"]), rows=rows["rows"])
    thresholds = (split_threshold(made, images(12, 16)),) * len(rows["rows"])
    made.exits.policy.rule = Rule("confidence", thresholds)
    return made


@pytest.mark.parametrize(
    ("to", "batch", "depth", "rows"),
    [
        ("openvino", None, 2, [(1, "lph_dw")]),
        pytest.param("onnx", 1, 2, [(1, "gah2")], marks=pytest.mark.extra("onnxruntime", of="onnx")),
    ],
)
def test_images_leave_where_they_do_in_torch(tiny, tmp_path: Path, to, batch, depth, rows) -> None:
    model, x = small(tiny, depth=depth, rows=rows), images(12, 16)
    with torch.no_grad():
        want, state = model.trace(x)
    artefact = export(model, tmp_path / "a", to=to, preprocess=PREPROCESS, batch=batch)
    runner = load_artefact(artefact)
    with runner.exits.recording() as work:
        got = runner(x)
    at = torch.cat(work.at)
    assert torch.tensor([*model.exits.layers, depth])[at].tolist() == state.left.tolist() and len(set(at.tolist())) > 1
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert work.macs == model.exits.policy.macs
    assert artefact.segments["rule"] == "confidence" and artefact.check["max_error"] < 1e-4
    weights = [p for p in (tmp_path / "a").rglob("*") if p.suffix in (".bin", ".onnx")]
    most = 4 * max(sum(p.numel() for p in block.parameters()) for block in model.blocks)
    assert all(p.stat().st_size < 2 * most + 100_000 * (to == "onnx") for p in weights), "a part holds its own weights"
    shutil.rmtree(tmp_path / "a/segment-1")
    with pytest.raises(CheckpointError, match="segment-1"):
        load_artefact(tmp_path / "a")


@pytest.mark.e2e
def test_int8_and_pixels(tiny, tmp_path: Path) -> None:
    model = small(tiny, depth=2, rows=[(1, "gah2")])
    rounded = Int8(images=16)
    structure = rounded.learn(model, Noise())
    rounded.shape(model, structure)
    rounded.fold(model, structure, {})
    artefact = export(model, tmp_path / "a", preprocess=PREPROCESS, input_type="u8", batch=1)
    assert artefact.precision == "int8" and artefact.check["integer_products"] == artefact.check["products"] >= 13
    assert load_artefact(artefact)(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)).shape == (2, 7)


def test_what_cannot_be_several_graphs_is_refused(tiny, tmp_path: Path) -> None:
    model = small(tiny, depth=2, rows=[(1, "linear")])
    with pytest.raises(Refused, match="use openvino or onnx"):
        export(model, tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with pytest.raises(BadInput, match="batch is 8"):
        export(model, tmp_path / "a", preprocess=PREPROCESS, batch=8)
    assert not (tmp_path / "a").exists()
