"""What Python calls say of a name, a path or a bare object where something else belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit as lv
from leanvit.errors import BadInput

MODEL = r"accepted: a model\. leanvit\.load\('runs/x'\)"
FIT = {"preprocess": None, "config": lv.FitConfig()}
CALLS: list[tuple[str, Callable[..., Any], str]] = [
    ("compress one", lambda m, d: lv.compress(m, lv.ToMe(r=2)), r"accepted: a list of them: \[ToMe\(r=2"),
    ("compress class", lambda m, d: lv.compress(m, lv.EViT), r"accepted: a list of them: \[EViT\(\)\]"),
    ("compress slug", lambda m, d: lv.compress(m, "tome"), r"\[parse_with\('tome'\)\]"),
    ("compress number", lambda m, d: lv.compress(m, 3), "methods is an int; accepted: a list of methods"),
    ("compress path", lambda m, d: lv.compress("runs/x", [lv.ToMe(r=2)]), MODEL),
    ("compress Path", lambda m, d: lv.compress(Path("runs/x"), []), MODEL),
    ("compress data", lambda m, d: lv.compress(m, [], "digits"), r"Data\(leanvit\.open_dataset\('digits', 'train'\)"),
    ("compress set", lambda m, d: lv.compress(m, [], d), r"data is a data set; accepted: Data\(dataset"),
    (
        "compress spec in Data",
        lambda m, d: lv.compress(m, [lv.Int8()], lv.Data("digits", lv.Preprocess.of(m))),
        r"data\.dataset is 'digits'; accepted: a data set",
    ),
    (
        "compress bare",
        lambda m, d: lv.compress(m, [lv.Int8()], lv.Data(d, None)),
        r"data\.preprocess is None; accepted",
    ),
    ("open nothing", lambda m, d: lv.open_dataset(None), "data is a NoneType; accepted: digits, a folder"),
    ("compress epochs", lambda m, d: lv.compress(m, [], recovery=3), r"accepted: a Recovery, as Recovery\(epochs=3\)"),
    ("reapply", lambda m, d: lv.reapply("runs/x", []), MODEL),
    ("retune path", lambda m, d: lv.retune("runs/x", "lgvit", {}), MODEL),
    ("retune timm", lambda m, d: lv.retune(m, "lgvit", {}), "it is dense"),
    ("open", lambda m, d: lv.open_model("runs/x"), MODEL),
    ("close path", lambda m, d: lv.close_model("runs/x"), r"leanvit\.load"),
    ("close timm", lambda m, d: lv.close_model(m), "accepted: a model that open_model or compress gave"),
    ("save timm", lambda m, d: lv.save(m, "new"), r"leanvit\.save\(leanvit\.compress\(model, \[\]\), path\)"),
    ("save path", lambda m, d: lv.save("runs/x", "new"), MODEL),
    ("save swapped", lambda m, d: lv.save("new", m), "path is a VisionTransformer; accepted: a path"),
    ("load model", lambda m, d: lv.load(m), "path is a VisionTransformer; accepted: a path"),
    ("load weights", lambda m, d: lv.load("w.pth"), "It is a file: weights go with a timm name"),
    ("load name", lambda m, d: lv.load("vit_tiny_patch16_224"), r"timm\.create_model\('vit_tiny_patch16_224'\)"),
    ("compare one", lambda m, d: lv.compare(m, d), r"models by name, as \{'dense': model"),
    ("compare list", lambda m, d: lv.compare([m], d), r"models is a list; accepted: models by name"),
    ("compare paths", lambda m, d: lv.compare({"a": "runs/x"}, d), r"models\['a'\] is 'runs/x'"),
    ("compare data", lambda m, d: lv.compare({"a": m}, "digits"), r"open_dataset\('digits', 'val'\)"),
    ("export path", lambda m, d: lv.export("runs/x", "new"), MODEL),
    ("export bare", lambda m, d: lv.export(m, "new"), r"preprocess is missing.*Preprocess\.of\(model\)"),
    ("artefact", lambda m, d: lv.load_artefact(m), "source is a VisionTransformer; accepted: a path"),
    ("fit name", lambda m, d: lv.fit("runs/x", d, **FIT), MODEL),
    ("fit data", lambda m, d: lv.fit(m, "digits", **FIT), r"open_dataset\('digits', 'train'\)"),
    ("fit loader", lambda m, d: lv.fit(m, [d], **FIT), "dataset is a list; accepted: a data set, as leanvit"),
    ("fit bare", lambda m, d: lv.fit(m, d, **FIT), r"preprocess is None; accepted: a Preprocess, as Preprocess\.of"),
    (
        "fit table",
        lambda m, d: lv.fit(m, d, preprocess=lv.Preprocess.of(m), config={"epochs": 1}),
        r"config is a dict; accepted: a FitConfig",
    ),
    ("train model", lambda m, d: lv.train(m, "digits"), "name is a VisionTransformer; accepted: a path"),
]


@pytest.fixture(scope="module")
def data() -> Any:
    return lv.open_dataset("digits", "val", limit=10)


@pytest.mark.parametrize(("call", "says"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_it_says_what_to_write(
    call: Callable[..., Any], says: str, tiny: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, "w.pth")
    with pytest.raises(BadInput, match=says):
        call(tiny(), data)
    assert not (tmp_path / "new").exists()


def test_a_misspelt_name_has_its_suggestion() -> None:
    with pytest.raises(AttributeError) as raised:
        lv.Evit  # noqa: B018
    assert raised.value.name == "Evit" and raised.value.obj is lv  # what Python's "Did you mean: 'EViT'?" is made from
