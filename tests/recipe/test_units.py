"""Calibrations in units: killed inside one or between two, and resumed, they end with the same bits, and no unit that
was finished is done again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import digits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from units import SEEN, Scales

from leanvit import verbs
from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.files import UNSEALED, seal_tensors
from leanvit.recipe import Data, Kept, Root, compress, create, is_resumable, save
from leanvit.training import Interrupted

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on

SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 1, "in_chans": 1, "num_classes": 10}
BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


class After:
    """A meter that kills the process once so many units are done."""

    def __init__(self, number: int) -> None:
        self.number = number

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Any]:
        def done(number: int) -> None:
            if what == "scale" and number == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        yield done


def compressed(out: Path | None = None, *, resume: bool = False, **more: Any) -> OpenModel:
    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL)).eval()
    data = replace(Data(digits(), Preprocess.of(model), batch_size=10), **more)
    return compress(model, [Scales()], data, out=out, resume=resume)


def killed(out: Path, dies: str) -> None:
    """In a process of its own."""
    os.environ["TEST_DIES"] = dies
    compressed(out, meter=After(int(dies.split()[1])) if dies.startswith("after") else None)


def finished(out: Path) -> None:
    lean = compressed(out, resume=True)
    save_file({name: tensor.clone() for name, tensor in lean.state_dict().items()}, out / "weights")
    (out / "seen").write_text(" ".join(SEEN))


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return dict(compressed().state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize(
    ("dies", "kept", "left"),
    [("inside blocks.0", 0, BLOCKS), ("inside blocks.2", 2, BLOCKS[2:]), ("after 2", 2, BLOCKS[2:])],
)
def test_a_killed_calibration_ends_with_the_same_bits(whole, tmp_path: Path, dies: str, kept: int, left: list) -> None:
    assert run_on(1, killed, tmp_path, dies) == [-signal.SIGKILL]
    assert len(list(tmp_path.glob("steps/1-test_scales/units/scale/*.safetensors"))) == kept
    assert run_on(1, finished, tmp_path) == [0]
    assert (tmp_path / "seen").read_text().split() == left
    assert same(load_file(tmp_path / "weights"), whole)
    assert not list(tmp_path.glob("steps/*/units")), "they go with the step that they are of"


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compression that ended after two units."""

    class Full(Exception):
        pass

    def measured(model: OpenModel, name: str, images: Tensor) -> Kept:
        if name == "blocks.2":
            raise Full
        return own(model, name, images)

    import units

    own = units.measured
    with monkeypatch.context() as patch, pytest.raises(Full):
        patch.setattr(units, "measured", measured)
        compressed(tmp_path)
    return tmp_path


def test_damage_is_named_with_the_way_out(half: Path, whole) -> None:
    (first, second) = sorted(half.glob("steps/*/units/scale/*.safetensors"))
    content = first.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:40], b"", b"{}"):
        first.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"0\.safetensors.*(damaged|no unit).*Remove .* to do this unit"):
            compressed(half, resume=True)
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="is a unit of something else"):
        compressed(half, resume=True)
    first.unlink()
    assert same(compressed(half, resume=True).state_dict(), whole), "as the advice says"


def test_a_unit_of_another_compression_or_a_later_format_is_refused(half: Path) -> None:
    path = half / "steps/1-test_scales/units/scale/0.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {"scale": file.get_tensor("scale")}
    for was, now, says in (
        ('"format": 1', '"format": 2', "has format 2; this leanvit reads 1"),
        ('"of": "', '"of": "0', "is a unit of something else"),
        ('"facts": ', '"fact": ', "it has no facts"),
        (metadata["leanvit.unit"], "[1, 2]", "is damaged, or no unit of leanvit"),
    ):
        changed = metadata["leanvit.unit"].replace(was, now)
        save_file(tensors, path, metadata={**metadata, "leanvit.unit": changed, **UNSEALED})
        seal_tensors(path)
        with pytest.raises(CheckpointError, match=says):
            compressed(half, resume=True)


def test_a_full_disk_is_an_error_and_nothing_is_lost(half: Path, whole, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("leanvit.files.os.fsync", full)
        with pytest.raises(LeanvitError, match="No space left"):
            compressed(half, resume=True)
    assert len(list(half.glob("steps/*/units/scale/*"))) == 2
    assert same(compressed(half, resume=True).state_dict(), whole)


def test_without_a_folder_nothing_is_written_and_bits_are_those_of_a_file(tmp_path: Path, whole, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert same(compressed().state_dict(), whole) and list(tmp_path.iterdir()) == []
    assert is_resumable([Scales()], None)
    data = Data(digits(), Preprocess((1, 8, 8), mean=(0.5,), std=(0.5,)))
    odd = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    work = {"a": Kept({"odd": odd}, {"pair": (1, 0.1)}), "b": Kept()}
    for out in (None, tmp_path, tmp_path):
        found = dict(replace(data, out=out).units("stage-1", list(work), work.__getitem__))
        assert torch.equal(found["a"].tensors["odd"], odd) and found["a"].facts == {"pair": [1, 0.1]}
        assert found["b"] == Kept({}, {})
    with pytest.raises(BadInput, match=r"stage is '\.\./up'; accepted: a word"):
        list(data.units("../up", ["a"], work.__getitem__))


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*args: object) -> Kept:
        raise KeyboardInterrupt

    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL)).eval()
    save(model, tmp_path / "dense", preprocess=Preprocess.of(model))
    given = {"data": "digits", "limit": 20, "measured": False, "out": tmp_path / "lean"}
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"stopped; what is finished.*--resume --out"):
        patch.setattr("units.measured", pressed)
        verbs.compress(tmp_path / "dense", [Scales()], **given)
    done = verbs.compress(tmp_path / "dense", [Scales()], **given, resume=True)
    assert done.label == "test_scales" and not (done.folder / "steps").exists()
    with pytest.raises(BadInput, match="holds no compression to go on with"):
        verbs.compress(tmp_path / "dense", [Scales()], **given, resume=True)


def test_progress_counts_units_and_images_and_changes_no_bit(whole) -> None:
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def meter(what: str, total: int) -> Iterator[Any]:
        yield lambda number: seen.append((what, number, total))

    assert same(compressed(meter=meter).state_dict(), whole)
    assert seen == [("calibrating", 1, 2), ("scale", 1, 3), ("scale", 2, 3), ("scale", 3, 3)]
