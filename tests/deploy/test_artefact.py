"""The folder of an artefact: what it carries, and that nothing damaged or foreign is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy_models import LABELS, PREPROCESS, photos, small
from leanvit.deploy import Artefact, export, load_artefact, read_artefact
from leanvit.deploy.artefact import write_artefact
from leanvit.errors import BadInput, CheckpointError
from leanvit.files import seal_of


def test_photos_to_logits_equal_the_evaluation_path(float_artefact: Artefact) -> None:
    runner = load_artefact(float_artefact.path)
    prepared = torch.stack([PREPROCESS.eval_transform()(image) for image in photos(3)])
    assert torch.equal(runner.prepare(photos(3)), prepared)
    with torch.no_grad():
        want = small()(prepared)
    got = runner.classify(photos(3))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max())
    assert torch.equal(got.argmax(1), want.argmax(1))


def test_what_travels(float_artefact: Artefact) -> None:
    read = read_artefact(float_artefact.path)
    assert read == float_artefact
    assert read.preprocess == PREPROCESS and read.labels == LABELS
    assert (read.runtime, read.precision, read.batch, read.num_classes) == ("openvino", "f32", None, 7)
    assert {"torch", "timm", "openvino", "leanvit"} <= set(read.made_with)
    assert read.size > 100_000
    assert {p.name for p in read.path.iterdir()} == {"artefact.json", "model.xml", "model.bin"}


def edited(copy: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool) -> None:
    content = json.loads((copy / "artefact.json").read_text())
    change(content)
    if sealed:
        content["seal"] = seal_of(content)
    (copy / "artefact.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damaged_files(copied: Path, name: str, damage: str) -> None:
    file = copied / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[100] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_artefact(copied)


@pytest.mark.parametrize(
    ("change", "sealed", "text"),
    [
        (lambda c: c.update(format=99), True, "format 99.*update leanvit"),
        (lambda c: c.update(kind="model"), True, "not a leanvit artefact"),
        (lambda c: c.update(labells=[]), True, "unknown key 'labells'.*labels"),
        (lambda c: c.pop("batch"), True, "batch"),
        (lambda c: c.update(labels=["x"]), False, "was changed"),
        (lambda c: c["preprocess"].update(mean=[0.0, 0.0, 0.0]), True, "preprocessing is not the one"),
        (lambda c: c["preprocess"].update(means=[0.0]), True, "means"),
        (lambda c: c["files"].update({"../x": "0"}), True, "plain file name"),
        (lambda c: c.update(runtime="tvm"), True, "runtime"),
    ],
)
def test_edited_json(copied: Path, change: Callable[[dict[str, Any]], None], sealed: bool, text: str) -> None:
    edited(copied, change, sealed=sealed)
    with pytest.raises(CheckpointError, match=text):
        load_artefact(copied)


def test_artefacts_of_format_1_are_read(copied: Path) -> None:
    edited(copied, lambda c: (c.update(format=1), c.pop("input_type")), sealed=True)
    assert read_artefact(copied).input_type == "float"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_none(copied: Path, content: bytes) -> None:
    (copied / "artefact.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_artefact(copied)


def test_foreign_graph_with_right_sums(copied: Path) -> None:
    (copied / "model.xml").write_text("<net>not a graph</net>")
    from leanvit.files import file_sha256

    edited(copied, lambda c: c["files"].update({"model.xml": file_sha256(copied / "model.xml")}), sealed=True)
    with pytest.raises(CheckpointError, match=r"model\.xml is not a model"):
        load_artefact(copied)


def test_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no artefact"):
        load_artefact(tmp_path)


def test_a_replaced_artefact_is_not_the_one_in_hand(float_artefact: Artefact, copied: Path) -> None:
    from dataclasses import replace

    in_hand = replace(float_artefact, path=copied)
    assert load_artefact(in_hand).runtime == "openvino"
    edited(copied, lambda c: c.update(root="other"), sealed=True)
    with pytest.raises(CheckpointError, match="replaced"):
        load_artefact(in_hand)


def test_overwriting_is_asked_for(copied: Path) -> None:
    with pytest.raises(BadInput, match="holds an artefact already"):
        export(small(), copied, preprocess=PREPROCESS)
    before = read_artefact(copied).seal
    again = export(small(), copied, preprocess=PREPROCESS, batch=2, overwrite=True)
    assert again.seal != before and again.batch == 2
    assert [p.name for p in copied.parent.iterdir()] == [copied.name]  # nothing temporary is left


def test_other_folders_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not an artefact"):
        export(small(), tmp_path, preprocess=PREPROCESS, overwrite=True)


def test_a_failed_write_leaves_what_was_there(copied: Path) -> None:
    before = read_artefact(copied)

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "model.xml").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_artefact(before, fail, overwrite=True)
    assert read_artefact(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 16, 32), (0, 3, 32, 32)])
def test_wrong_images(float_artefact: Artefact, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"float32 \(batch, 3, 32, 32\)"):
        load_artefact(float_artefact)(torch.zeros(shape))


def test_wrong_kind_of_images(float_artefact: Artefact) -> None:
    with pytest.raises(BadInput, match="float64"):
        load_artefact(float_artefact)(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(BadInput, match="empty"):
        load_artefact(float_artefact).classify([])
