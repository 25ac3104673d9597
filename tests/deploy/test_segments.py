"""Models with exits as artefacts: the same answers at the same exits, in the runtimes, float and int8."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from deploy_models import Noise
from exits.exiting import exiting, images, split_threshold
from leanvit.anatomy import OpenModel
from leanvit.anatomy.exit_rules import Rule
from leanvit.data import Preprocess
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.quantize.int8 import Int8

PREPROCESS = Preprocess(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def model(tiny) -> OpenModel:
    made = exiting(tiny(depth=3), rows=[(1, "lph_dw"), (2, "gah2")])
    made.exits.leaving.rule = Rule("confidence", (split_threshold(made, images(12)),) * 2)
    return made


@pytest.mark.parametrize("to", ["openvino", "onnx"])
@pytest.mark.parametrize("batch", [None, 1])
def test_images_leave_where_they_do_in_torch(model, tmp_path: Path, to: str, batch: int | None) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    x = images(12)
    with torch.no_grad():
        want, state = model.trace(x)
    runner = load_artefact(export(model, tmp_path / "a", to=to, preprocess=PREPROCESS, batch=batch))
    with runner.exits.recording() as work:
        got = runner(x)
    at = torch.cat(work.at)
    assert torch.tensor([1, 2, 3])[at].tolist() == state.left.tolist() and len(set(at.tolist())) > 1
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert work.macs == model.exits.leaving.macs
    assert runner.artefact.segments["rule"] == "confidence" and runner.artefact.check["max_error"] < 1e-4
    if batch is None:
        biggest = max((tmp_path / "a").rglob("*"), key=lambda p: p.stat().st_size).stat().st_size
        assert runner.artefact.size < 1.5 * 4 * sum(p.numel() for p in model.parameters()), biggest
        damaged = tmp_path / "b"
        shutil.copytree(tmp_path / "a", damaged)
        shutil.rmtree(damaged / "segment-1")
        with pytest.raises(CheckpointError, match="segment-1"):
            load_artefact(damaged)


def test_int8_and_pixels(model, tmp_path: Path) -> None:
    rounded = Int8(images=16)
    structure = rounded.learn(model, Noise())
    rounded.shape(model, structure)
    rounded.fold(model, structure, {})
    artefact = export(model, tmp_path / "a", preprocess=PREPROCESS, input_type="u8")
    assert artefact.precision == "int8" and artefact.check["integer_products"] > 10
    assert load_artefact(artefact)(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 7)


def test_what_cannot_be_several_graphs_is_refused(model, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="use openvino or onnx"):
        export(model, tmp_path / "a", to="torch", preprocess=PREPROCESS)
    with pytest.raises(BadInput, match="batch is 8"):
        export(model, tmp_path / "a", preprocess=PREPROCESS, batch=8)
    assert not (tmp_path / "a").exists()
