"""`predict`: the answers of `measure` without labels, in every runtime, with names, whatever the images lie in."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import leanvit as lv
from exits.exiting import exiting, split_threshold
from leanvit.anatomy.exits.rules import Rule
from leanvit.data import loader, open_dataset
from leanvit.errors import BadInput, LeanvitError
from leanvit.measure.predictions import predict as measured
from leanvit.recipe import create
from leanvit.verbs.predicting import predict, predict_file

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
NAMES = ("ant", "bee, the", "ca|t")
MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK")


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 60, (30 + seed, 41, 3)) + draw.integers(0, 195, 3)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def save_run(folder: Path, classes: tuple[str, ...] = NAMES, **more: Any) -> Path:
    torch.manual_seed(3)
    model = create(lv.Root("vit_tiny_patch16_224", {**SMALL, "num_classes": len(classes)}))
    head, images = model.get_submodule("head"), [picture(seed) for seed in range(12)]
    with torch.no_grad():  # answers that differ
        head.weight.normal_()
        head.bias.sub_(model(torch.stack(list(map(lv.Preprocess.of(model).eval_transform(), images)))).median(0).values)
    info = more.pop("info", None)
    return lv.save(model, folder, preprocess=lv.Preprocess.of(model), classes=classes, info=info)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, and `photos`: class folders of every mode, one broken file, one text."""
    place = tmp_path_factory.mktemp("predict")
    save_run(place / "run")
    for seed, mode in enumerate(MODES * 2):
        folder = place / "photos" / NAMES[seed % 3]
        folder.mkdir(parents=True, exist_ok=True)
        ending = {"CMYK": "jpg", "P": "gif"}.get(mode, "png")
        picture(seed, mode).save(folder / f"{seed:02}.{ending}")
    shutil.copytree(place / "photos", place / "whole")
    (place / "photos" / "ant" / "05-bad.jpg").write_bytes(b"no image")
    (place / "photos" / "notes.md").write_text("no image either")
    return place


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(newline="")))


def test_answers_are_those_of_measure_in_sorted_order_whatever_the_batch(place: Path, tmp_path: Path) -> None:
    """The same images as a labelled data set, through the loader that `measure` uses."""
    run = lv.load(place / "run")
    whole = open_dataset(place / "whole")
    want = measured(run, loader(whole, lv.Preprocess.of(run), batch_size=4))
    said: list[str] = []
    for batch in (1, 5, None):
        found = predict_file(
            place / "run", place / "photos", out=tmp_path / f"{batch}.csv", top=3, batch=batch, log=said.append
        )
        rows = rows_of(tmp_path / f"{batch}.csv")
        assert [row["image"] for row in rows] == sorted([*want.keys, "ant/05-bad.jpg"])
        assert (found.images, found.failed, [bad.image for bad in found.bad]) == (13, 1, ["ant/05-bad.jpg"])
        good = {row["image"]: row for row in rows if not row["error"]}
        for key, logits in zip(want.keys, want.logits, strict=True):
            order = logits.argsort(descending=True)
            names = [good[key][column] for column in ("class", "class_2", "class_3")]
            assert names == [NAMES[i] for i in order]
            chances = [float(good[key][column]) for column in ("probability", "probability_2", "probability_3")]
            assert chances == pytest.approx(logits.softmax(0)[order].tolist(), abs=1e-5)
    (bad,) = [row for row in rows if row["error"]]
    assert "cannot be decoded" in bad["error"] and not bad["class"] and not bad["probability"]
    assert "images: 13; left out, no images by their endings: 1 .md" in said


def test_python_answers_as_the_program_does(place: Path) -> None:
    """A path, an opened model, a timm module and PIL images give the same answers; names are numbers if unknown."""
    by_path = predict(place / "run", place / "whole")
    model = lv.load(place / "run")
    files = sorted(p for p in (place / "whole").rglob("*") if p.is_file())
    assert [one.image for one in by_path] == [str(p.relative_to(place / "whole")) for p in files]
    by_model = lv.predict(model, files, classes=NAMES)
    by_pictures = lv.predict(model, [Image.open(p) for p in files], classes=NAMES, top=2)
    assert [one.label for one in by_model] == [one.label for one in by_path] == [one.label for one in by_pictures]
    assert [one.image for one in by_pictures] == [str(i) for i in range(12)]
    assert all(
        a.probabilities == b.probabilities[:1] and len(b.classes) == 2
        for a, b in zip(by_model, by_pictures, strict=True)
    )
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=4)
    assert plain.training and {a.label for a in lv.predict(plain, files)} <= set("0123") and plain.training
    model.classes, model.preprocess = NAMES, lv.Preprocess.of(model)
    assert lv.predict(model, files)[0].label == by_path[0].label


@pytest.mark.extra("onnxruntime", of="onnx")
def test_a_runs_own_artefact_is_used_and_one_runs_alone(place: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", place / "whole"
    shutil.copytree(place / "run", run)
    want, model, said = predict(run, whole), lv.load(run), list[str]()
    kept = lv.export(
        model, run / "artefacts" / "onnx", to="onnx", preprocess=lv.Preprocess.of(model), batch=5, labels=NAMES,
        task=lv.tasks.MultiLabel(),
    )  # fmt: skip
    found = predict(run, whole, runtime="onnx", log=said.append)
    assert [a.label for a in found] == [a.label for a in want] and not any("exporting" in line for line in said)
    assert [a.probability for a in found] == pytest.approx([a.probability for a in want], abs=1e-4)
    by_label = predict(run, whole, task="multi_label")
    for artefact in (kept.path, lv.load_artefact(kept)):
        assert [set(a.classes) for a in predict(artefact, whole)] == [set(a.classes) for a in by_label]
    with pytest.raises(BadInput, match="is an artefact for onnx; leave the runtime out"):
        predict(kept.path, whole, runtime="torch")


def test_without_an_artefact_one_is_made_and_thrown_away(place: Path) -> None:
    said: list[str] = []
    found = predict(place / "run", place / "whole", runtime="openvino", batch=3, log=said.append)
    assert [a.label for a in found] == [a.label for a in predict(place / "run", place / "whole")]
    assert any("exporting to openvino" in line for line in said) and not (place / "run" / "artefacts").exists()


def test_a_multi_label_run_gives_every_label_above_a_half(place: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", info={"multi_label": True})
    model = lv.load(run)
    found = predict(run, place / "whole")
    logits = torch.cat(
        [b.images for b in loader(open_dataset(place / "whole"), lv.Preprocess.of(model), batch_size=12)]
    )
    with torch.no_grad():
        chances = model(logits).sigmoid()
    want = [{name for name, p in zip(NAMES, row, strict=True) if p > 0.5} for row in chances]
    assert [set(one.classes) for one in found] == want and len({frozenset(w) for w in want}) > 1
    predict_file(run, place / "photos", out=tmp_path / "a.csv")
    row = rows_of(tmp_path / "a.csv")[0]
    assert list(row) == ["image", "class", *(f"p_{name}" for name in NAMES), "error"]
    assert [float(row[f"p_{name}"]) for name in NAMES] == pytest.approx(chances[0].tolist(), abs=1e-5)
    assert [len(one.classes) for one in predict(run, place / "whole", top=2)] == [2] * 12
    (place / "run" / "train.jsonl").write_text('{"event": "epoch", "map": 0.5}\n')  # an older run says it in its log
    try:
        assert [set(one.classes) for one in predict(place / "run", place / "whole")] == want
    finally:
        (place / "run" / "train.jsonl").unlink()


def test_json_lines_and_names_that_are_no_text(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    odd = folder / "caf\udce9 [b].png"  # Latin-1 on disk
    picture(1).save(str(folder / "a.png"))
    shutil.copy(folder / "a.png", odd)
    predict_file(place / "run", folder, out=tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["a.png", odd.name]
    assert rows[0]["classes"] == rows[1]["classes"] and len(rows[0]["probabilities"]) == 1
    predict_file(place / "run", folder, out=tmp_path / "a.csv")
    assert "caf\udce9 [b].png,".encode("utf-8", "surrogateescape") in (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize(
    ("images", "count"),
    [
        (["whole/ant/00.png"], 1),
        (["whole/ant/00.png", "whole/ant/../ant/00.png"], 1),
        (["whole", "photos"], 12 + 13),
        (["whole/*/0*.png"], 7),
        (["list.txt"], 2),
        (["one.csv"], 2),
        (["two.csv"], 2),
        (["list:labelled.txt"], 2),
        ("digits?classes=3&shots=2", 2),
        (["whole", "list.txt"], 12),
    ],
)
def test_what_images_may_be(place: Path, monkeypatch: pytest.MonkeyPatch, images: Any, count: int) -> None:
    monkeypatch.chdir(place)
    first, second = "whole/ant/00.png", "whole/ant/06.png"
    Path("list.txt").write_text(f"{first}\n\n{second}\n")
    Path("one.csv").write_text(f"file\n{first}\n{second}\n")
    Path("two.csv").write_text(f"image,label\n{first},a\n{second},b\n")
    Path("labelled.txt").write_text(f"{first} 0\n{second} 1\n")
    found = predict("run", images)
    assert len(found) == count and len({one.image for one in found}) == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "fotos"}, "there is no such file or folder: did you mean 'photos'"),
        ({"images": "empty"}, "no image in this folder"),
        ({"images": "*.nothing"}, "the pattern meets no image"),
        ({"images": "-"}, "images is '-'; accepted: an image, a folder"),
        ({"images": []}, "images is empty"),
        ({"images": [3]}, "images holds a int"),
        ({"images": "labels.txt"}, "lines with a label behind the path are list:labels.txt"),
        ({"top": 4}, "top is 4; accepted: 1 to 3"),
        ({"top": 0}, "top is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"runtime": "onxx"}, "unknown runtime 'onxx': did you mean 'onnx'"),
        ({"model": "runs/none"}, "there is no run folder at runs/none"),
        ({"out": "a.txt"}, "its ending chooses the format; accepted: .csv or .jsonl"),
        ({"out": "there.csv"}, "exists: give another path, or --overwrite"),
        ({"split": "vall"}, "unknown split 'vall'"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(place)
    Path("empty").mkdir(exist_ok=True)
    Path("labels.txt").write_text("whole/ant/00.png 3\n")
    Path("there.csv").write_text("mine")
    given = {"model": "run", "images": "whole", **change}
    with pytest.raises(BadInput, match=message):
        predict_file(given.pop("model"), given.pop("images"), **given)
    assert Path("there.csv").read_text() == "mine" and not Path("a.txt").exists()


def test_an_interrupted_prediction_leaves_the_old_file(place: Path, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.csv"
    file.write_text("old")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(place / "run", place / "whole", out=file, overwrite=True, batch=2, progress=stop)
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_only_bad_files_are_a_failure_with_their_list(place: Path, tmp_path: Path) -> None:
    found = predict_file(place / "run", place / "photos" / "ant" / "05-bad.jpg", out=tmp_path / "a.csv")
    assert rows_of(tmp_path / "a.csv")[0]["error"]
    with pytest.raises(LeanvitError, match="the image could not be read"):
        found.require_some()


def test_labels_do_not_matter_and_fresh_weights_are_said(place: Path) -> None:
    said: list[str] = []
    small = {**SMALL, "num_classes": 5}
    found = predict("vit_tiny_patch16_224", "digits", split="val", model_args=small, batch=64, log=said.append)
    assert len(found) == 359 and {one.label for one in found} <= set("01234")
    assert any("fresh weights, so its answers are chance" in line for line in said)
    (shown,) = lv.predict("leanvit/cifar10_vit", place / "whole" / "ant" / "00.png")
    assert shown.label in lv.open_dataset("digits").classes or shown.label.isalpha()


def test_early_exits_answer_by_their_own_rule_and_say_where(tiny, tmp_path: Path) -> None:
    model = exiting(tiny(img_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=3), rows=[(1, "linear")])
    pictures = [picture(seed).resize((16, 16)) for seed in range(12)]
    prepare = lv.Preprocess.of(model).eval_transform()
    inputs = torch.stack([prepare(one) for one in pictures])
    model.exits.policy.rule = Rule("confidence", (split_threshold(model, inputs),))
    with torch.no_grad():
        logits, state = model.trace(inputs)
    found = predict(model, pictures, batch=5)
    assert [one.exit for one in found] == state.left.tolist() and len({one.exit for one in found}) == 2
    assert [int(one.label) for one in found] == logits.argmax(1).tolist()


@pytest.mark.parametrize(("scale", "dark"), [(16, False), (1, True)])
def test_pictures_of_fewer_bits_than_the_training_had_are_said(tmp_path: Path, scale: int, dark: bool) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint16)
    Image.fromarray(grey * scale).save(tmp_path / "a.png")
    model = create(lv.Root("vit_tiny_patch16_224", {**SMALL, "in_chans": 1, "num_classes": 2})).eval()
    model.preprocess = replace(lv.Preprocess.of(model), pixel_range=(0, 4095))
    said: list[str] = []
    predict(model, tmp_path / "a.png", log=said.append)
    assert any("look like 0-255, but are read as 0-4095" in line for line in said) == dark
