"""MODEL names with a source: folders that timm writes, and the hub; a run of one stands alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from leanvit import ToMe, verbs
from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.recipe import load_run
from leanvit.verbs.models import is_built, is_fresh, load_model

ARCHITECTURE = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 3, "in_chans": 1}
DIGITS = [f"the {n}" for n in range(10)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    made = timm.create_model(ARCHITECTURE, num_classes=10, **TINY).eval()
    made.pretrained_cfg = {**made.pretrained_cfg, "mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear"}
    return made


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    """As timm writes a model for the hub."""
    path = tmp_path / "my-model"
    timm.models.save_for_hf(model, str(path), {"label_names": DIGITS}, safe_serialization=True)
    return path


def changed(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_a_folder_gives_model_settings_weights_and_names(folder: Path, model: nn.Module) -> None:
    said: list[str] = []
    loaded = load_model(f"local-dir:{folder}", log=said.append)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded.model(images), model(images)) and is_built(f"local-dir:{folder}")
    without: dict[str, Any] = {"pretrained": False, "weights": None}
    assert is_fresh(ARCHITECTURE, without) and not is_fresh(f"local-dir:{folder}", without)
    assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), model(images))
    assert loaded.classes == tuple(DIGITS) and loaded.name == loaded.base == "my-model"
    assert loaded.preprocess.mean == pytest.approx((0.1,)) and loaded.preprocess.interpolation == "bilinear"
    assert said[0].startswith(f"local-dir:{folder}: {ARCHITECTURE} with ")


def test_a_run_of_a_folder_stands_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    name = f"local-dir:{folder}"
    settings = {"epochs": 1, "batch_size": 8}
    trained = verbs.train(name, "digits", adapt=True, limit=16, settings=settings, out=out / "dense")
    before = load_model(name)
    verbs.compress(name, methods=[ToMe(r=1)], out=out / "lean")
    verbs.measure(name, "digits", limit=8, rounds=3, class_names="by-position", out=tmp_path / "m.json")
    shutil.rmtree(folder)
    lean = load_run(out / "lean")
    assert lean.model.history.root.name == ARCHITECTURE and lean.preprocess == before.preprocess
    assert tuple(lean.classes) == tuple(DIGITS)
    assert all(torch.equal(value, before.model.state_dict()[key]) for key, value in lean.model.state_dict().items())
    dense = load_run(trained.folder)
    assert dense.model.history.root.kwargs["embed_dim"] == 24 and dense.preprocess.mean == pytest.approx((0.1,))


def test_arguments_and_weights_of_the_user_come_first(folder: Path, tmp_path: Path, model: nn.Module) -> None:
    other = {key: value + 1 for key, value in model.state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    loaded = load_model(f"local-dir:{folder}", weights=tmp_path / "other.pth", model_args={"drop_rate": 0.1})
    assert torch.equal(loaded.model.state_dict()["cls_token"], other["cls_token"])
    assert loaded.model.history.root.kwargs["drop_rate"] == 0.1
    with pytest.raises(CheckpointError, match="has 10 classes in the file, 3 in the model"):
        load_model(f"local-dir:{folder}", model_args={"num_classes": 3})


def _gone(path: Path) -> None:
    shutil.rmtree(path)


BROKEN: dict[str, tuple[Callable[[Path], Any], type[LeanvitError], str]] = {
    "no folder": (_gone, BadInput, "there is no folder"),
    "no settings": (lambda p: (p / "config.json").unlink(), BadInput, "holds no config.json"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), BadInput, "holds no weights; looked for: model.safe"),
    "damaged weights": (lambda p: (p / "model.safetensors").write_bytes(b"no"), CheckpointError, "not a safetensors"),
    "no JSON": (lambda p: (p / "config.json").write_text("{"), CheckpointError, "config.json cannot be read"),
    "a list": (lambda p: (p / "config.json").write_text("[]"), CheckpointError, "is a list; accepted: a JSON object"),
    "deep": (lambda p: (p / "config.json").write_text("[" * 100_000), CheckpointError, "config.json cannot be read"),
    "of transformers": (
        lambda p: (p / "config.json").write_text('{"architectures": ["ViTModel"], "model_type": "vit"}'),
        CheckpointError,
        "names no architecture of timm",
    ),
    "unknown": (lambda p: changed(p, architecture="vit_tinny_patch16_224"), BadInput, "did you mean 'vit_tiny_patch16"),
    "arguments": (lambda p: changed(p, model_args=[1]), CheckpointError, "model_args of config.json is a list"),
    "loading arguments": (lambda p: changed(p, model_args={"checkpoint_path": "x"}), BadInput, "not part of a root"),
    "means": (
        lambda p: changed(p, pretrained_cfg={"mean": "red", "num_classes": 10, "input_size": [1, 16, 16]}),
        CheckpointError,
        "settings of images that do not fit",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_without_a_model_is_refused(case: str, folder: Path) -> None:
    spoil, kind, words = BROKEN[case]
    spoil(folder)
    with pytest.raises(kind, match=words) as refused:
        load_model(f"local-dir:{folder}")
    assert "\n" not in str(refused.value)


def test_names_of_classes_that_are_not_as_many_are_left_and_that_is_said(folder: Path) -> None:
    changed(folder, label_names=["one", "two"])
    said: list[str] = []
    assert load_model(f"local-dir:{folder}", log=said.append).classes == ()
    assert said[-1].endswith("its 2 names of classes are left: the model has 10")


@pytest.mark.parametrize("spec", ["hf-hub:me/my-model", "hf_hub:me/my-model@v1", "timm/my-model"])
def test_a_model_of_the_hub(spec: str, folder: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file, revision))
        if not (folder / file).exists():
            raise EntryNotFoundError("no such file")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    loaded = load_model(spec)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded.model(images), model(images)) and loaded.name == "my-model"
    repository = "timm/my-model" if spec.startswith("timm/") else "me/my-model"
    assert asked == [(repository, name, "v1" if "@" in spec else None) for name in ("config.json", "model.safetensors")]


def test_without_network_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("We cannot find the requested files.\nMore lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    for spec in ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "timm/vit_tiny_patch16_224"):
        with pytest.raises(LeanvitError, match="no network or no such model: We cannot find") as refused:
            load_model(spec)
        assert "\n" not in str(refused.value)


def test_other_names_with_a_slash_are_no_run_folder() -> None:
    with pytest.raises(BadInput, match=r"there is no run folder at runs/x; accepted: .*hf-hub:OWNER/NAME, "):
        load_model("runs/x")
    with pytest.raises(BadInput, match="has no name behind its source"):
        load_model("hf-hub:")
