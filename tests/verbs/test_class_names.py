"""Runs and people's class folders: matched by name in every verb, never by position without a word."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import leanvit as lv
from leanvit import verbs
from leanvit.data import loader, open_dataset
from leanvit.errors import BadInput
from leanvit.measure import accuracy, predict
from leanvit.recipe import Data, Recovery, Root, create, load_run
from leanvit.training import SoftDistillation

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
COLOURS = {"cat": (220, 20, 20), "dog": (20, 220, 20), "newt": (20, 20, 220)}


def photos(root: Path, classes: dict[str, tuple[int, int, int]], each: int = 6) -> str:
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            noise = np.random.default_rng(i).integers(-20, 20, (16, 16, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return str(root)


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """A run that knows cat, dog and newt by their colours, and the folders that it is asked about."""
    home = tmp_path_factory.mktemp("pets")
    photos(home / "data/train", COLOURS)
    photos(home / "data/val", COLOURS)
    settings = {"epochs": 12, "batch_size": 9, "lr": 5e-3, "augment": None, "workers": 0}
    data = str(home / "data")
    verbs.train("vit_tiny_patch16_224", data, settings=settings, model_args=TINY, adapt=True, out=home / "run")
    places = [("data/val/newt", "newt"), ("data/val/cat", "cat")]
    lines = [f"{folder}/{i}.png\t{name}" for folder, name in places for i in range(6)]
    (home / "two.txt").write_text("\n".join(lines) + "\n")
    photos(home / "two/val", {"dog": COLOURS["dog"], "newt": COLOURS["newt"]})
    photos(home / "other/train", {"kat": COLOURS["cat"], "mutt": COLOURS["dog"], "eft": COLOURS["newt"]})
    photos(home / "other/val", {"kat": COLOURS["cat"], "mutt": COLOURS["dog"], "eft": COLOURS["newt"]})
    assert load_run(home / "run").classes == ("cat", "dog", "newt")
    return home


def top1(measured: verbs.Measured) -> float:
    return measured.comparison.rows[-1].score.value


def test_a_part_of_the_classes_is_scored_among_themselves_and_said(pets: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    found = verbs.measure(pets / "run", str(pets / "two"), rounds=3, out=tmp_path / "m.json", log=lines.append)
    assert top1(found) == 100 and found.comparison.classes == ("dog", "newt")
    assert any("2 of the 3 classes" in line for line in lines)
    listed = verbs.measure(pets / "run", f"list:{pets / 'two.txt'}", rounds=3, out=tmp_path / "n.json")
    assert top1(listed) == 100


def test_names_in_another_order_are_matched_by_name(pets: Path, tmp_path: Path) -> None:
    run = load_run(pets / "run")
    run.model.classes = ("newt", "cat", "dog")  # a user's own order of names: then outputs mean something else
    val = open_dataset(pets / "data", "val")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrong = lv.compare({"run": run.model}, val, rounds=3)
    assert wrong.rows[0].score.value == 0 and "another order" in str(said[0].message)


@pytest.mark.parametrize("verb", ["measure", "compress", "compare", "train", "publish", "python"])
def test_other_names_are_refused_by_both_lists(pets: Path, tmp_path: Path, verb: str) -> None:
    run, other = pets / "run", str(pets / "other")
    calls = {
        "measure": lambda: verbs.measure(run, other, out=tmp_path / "m.json"),
        "compress": lambda: verbs.compress(run, [lv.ToMe(r=1)], other, out=tmp_path / "lean"),
        "compare": lambda: verbs.compare_methods(run, other, ["tome"], macs=0.9, out=tmp_path / "c"),
        "train": lambda: verbs.train(run, other, settings={"epochs": 1}, out=tmp_path / "t"),
        "publish": lambda: verbs.publish(run, other, tmp_path / "p"),
        "python": lambda: lv.compare({"run": load_run(run).model}, open_dataset(other, "val")),
    }
    with pytest.raises(BadInput, match=r"cat, dog, newt(.|\n)*eft, kat, mutt(.|\n)*by-position"):
        calls[verb]()
    assert not any(tmp_path.iterdir())


def test_by_position_is_an_explicit_word_and_the_runs_names_stay(pets: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    made = verbs.compress(
        pets / "run",
        [lv.ToMe(r=1)],
        str(pets / "other"),
        class_names="by-position",
        out=tmp_path / "lean",
        measured=False,
        log=lines.append,
    )
    assert load_run(made.folder).classes == ("cat", "dog", "newt")
    assert any("taken by position: eft as cat, kat as dog, mutt as newt" in line for line in lines)
    found = verbs.measure(
        made.folder, str(pets / "other"), class_names="by-position", rounds=3, out=tmp_path / "m.json"
    )
    assert top1(found) == 0  # eft is no cat


def test_a_recovery_learns_the_classes_by_their_names(pets: Path, tmp_path: Path) -> None:
    run = load_run(pets / "run")
    two = open_dataset(pets / "two", "val")
    seen: list[list[int]] = []

    class Spy:
        def before_forward(self, step) -> None:
            seen.append([])

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lean = lv.compress(
            run.model,
            [lv.ToMe(r=1)],
            Data(two, run.preprocess, callbacks=(Spy(),)),
            recovery=Recovery(epochs=3, batch_size=6, lr=1e-3),
        )
    assert lean.classes == ("cat", "dog", "newt") and "2 of the 3" in str(said[0].message) and seen
    assert str(said[1].message).startswith(
        "no training image of 1 of the 3 classes of the model (cat): what is trained"
    )
    assert lv.compare({"lean": lean}, open_dataset(pets / "data", "val"), rounds=3).rows[0].score.value > 60


def test_python_keeps_tag_preprocessing_and_names(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch16_224.dino", **TINY, num_classes=2).eval()
    lean = lv.compress(model, [lv.ToMe(r=1)])
    lean.classes = ("cat", "dog")
    lv.save(lean, tmp_path / "tag")
    run = load_run(tmp_path / "tag")
    assert run.classes == run.model.classes == ("cat", "dog")
    assert run.model.history.root.name == "vit_small_patch16_224.dino"
    own = lv.Preprocess.of(model)
    assert own.mean[0] == pytest.approx(0.485)
    assert run.preprocess == lv.Preprocess.of(run.model) == own


@pytest.mark.parametrize(
    ("classes", "words"), [(("a",), "1 names"), (("a", "a"), "twice"), ("ab", "a list of class names")]
)
def test_save_refuses_names_that_are_not_those_of_the_outputs(tmp_path: Path, classes, words: str) -> None:
    model = create(Root("vit_tiny_patch16_224", {**TINY, "num_classes": 2}))
    with pytest.raises(BadInput, match=words):
        lv.save(model, tmp_path / "run", classes=classes)
    assert not (tmp_path / "run").exists()


def test_save_never_replaces_the_names_of_a_model(tmp_path: Path) -> None:
    model = create(Root("vit_tiny_patch16_224", {**TINY, "num_classes": 2}))
    model.classes = ("cat", "dog")
    with pytest.raises(BadInput, match=r"model\.classes to rename"):
        lv.save(model, tmp_path / "run", classes=("a", "b"))
    with pytest.raises(BadInput, match=r"model\.classes to rename"):
        lv.export(model, tmp_path / "art", preprocess=lv.Preprocess.of(model), labels=("a", "b"))


def test_loaders_and_teachers_are_matched_by_name_too(pets: Path, tmp_path: Path) -> None:
    run = load_run(pets / "run")
    other = open_dataset(f"{pets / 'data'}?classes=newt,dog,cat", "val")
    with pytest.warns(UserWarning, match="another order"):
        answers = predict(run.model, loader(other, run.preprocess, batch_size=4))
    assert accuracy(answers).value == 1.0
    with pytest.warns(UserWarning, match="another order"):
        compared = lv.compare({"run": run.model}, loader(other, run.preprocess, batch_size=4), rounds=3)
    assert compared.rows[0].score.value == 100.0 and compared.classes == ("newt", "dog", "cat")
    with pytest.raises(BadInput, match="x, y, z"):
        predict(run.model, loader(replace(other, classes=["x", "y", "z"]), run.preprocess, batch_size=4))

    student = create(Root("vit_tiny_patch16_224", {**TINY, "num_classes": 3}))
    taught = SoftDistillation(run.model, teacher_preprocess=run.preprocess)
    with pytest.raises(BadInput, match="teacher knows the classes cat, dog, newt, the student learns newt, dog, cat"):
        lv.fit(student, other, preprocess=run.preprocess, config=lv.FitConfig(epochs=1, batch_size=2), objective=taught)


def test_labels_of_another_kind_are_said(pets: Path, tmp_path: Path) -> None:
    rows = "".join(f"data/val/{name}/{i}.png,{name}|{name}\n" for name in COLOURS for i in range(6))
    (pets / "several.csv").write_text(f"image,label\n{rows}")
    said: list[str] = []
    verbs.measure(pets / "run", str(pets / "several.csv"), rounds=3, out=tmp_path / "m.json", log=said.append)
    assert any("was trained for one class an image, the data has several labels an image" in line for line in said)


def test_a_published_figure_says_of_which_classes_it_is(pets: Path, tmp_path: Path) -> None:
    published = verbs.publish(pets / "run", str(pets / "two"), out=tmp_path / "small")
    assert published.record.split.endswith("2 of the 3 classes of the model, scored among themselves: dog, newt)")
    assert verbs.publish(pets / "run", str(pets / "data"), out=tmp_path / "whole").record.split == "val"


def test_a_report_says_of_how_many_classes_its_accuracy_is(pets: Path, tmp_path: Path) -> None:
    shutil.copytree(pets / "run", tmp_path / "run", ignore=shutil.ignore_patterns("training", "measure*"))
    for data, words in (("data", 0), ("two", 1)):
        verbs.measure(tmp_path / "run", str(pets / data), rounds=3)
        page = lv.write_report([tmp_path / "run"], overwrite=True).read_text("utf-8")
        assert page.count("Accuracy among 2 of the run&#39;s 3 classes.") == words


def test_a_model_without_names_beside_one_with_names_is_said(pets: Path) -> None:
    run = load_run(pets / "run")
    other = open_dataset(f"{pets / 'data'}?classes=newt,dog,cat", "val")
    wrapped = torch.nn.DataParallel(run.model)
    wrapped.preprocess = run.preprocess

    class Nameless(torch.nn.Module):
        preprocess = run.preprocess

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return run.model(images)

    with pytest.warns(UserWarning) as said:
        found = lv.compare({"run": run.model, "wrapped": wrapped, "nameless": Nameless()}, other, rounds=3)
    assert [row.score.value for row in found.rows[:2]] == [100.0, 100.0]
    payload = [str(one.message) for one in said]
    assert any(line.startswith("nameless: the outputs of the model have no names") for line in payload)


def test_a_closed_model_keeps_what_was_said_of_it(pets: Path) -> None:
    run = load_run(pets / "run")
    run.model.preprocess = run.preprocess
    closed = lv.close_model(run.model)
    assert (closed.classes, closed.preprocess) == (("cat", "dog", "newt"), run.preprocess)
    other = open_dataset(f"{pets / 'data'}?classes=newt,dog,cat", "val")
    with pytest.warns(UserWarning, match="another order"):
        assert lv.compare({"closed": closed}, other, rounds=3).rows[0].score.value == 100.0
    assert lv.open_model(closed).classes == ("cat", "dog", "newt")
