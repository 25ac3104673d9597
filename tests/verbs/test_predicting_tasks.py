"""`predict` by task: columns, maps as pictures, several heads, and refusals where task and outputs do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

import leanvit as lv
from leanvit.data import loader, open_dataset
from leanvit.errors import BadInput, Refused
from leanvit.tasks import Head, Segmentation, Task, task
from leanvit.verbs.predicting import predict, predict_file
from task_models import KINDS, PREPROCESS, pixels, two_heads


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, of pixels; `photos`: digits in folders, two of nearly one name, and a broken one."""
    place = tmp_path_factory.mktemp("tasks")
    lv.save(pixels(), place / "run", preprocess=PREPROCESS)
    (place / "photos" / "a").mkdir(parents=True)
    for number, sample in enumerate(open_dataset("digits", "val", limit=12)):
        sample.image.save(place / "photos" / ("a" if number % 2 else ".") / f"{number:02}.png")
    open_dataset("digits", "val", limit=1)[0].image.save(place / "photos" / "a_01.PNG")
    (place / "photos" / "05-bad.jpg").write_bytes(b"no image")
    return place


def answers_by_key(place: Path) -> dict[str, np.ndarray]:
    """The arg-max of the pixels of each image at its own size, by the loader that `measure` uses, as it judges."""
    batch = next(iter(loader(open_dataset(f"{place / 'photos'}?labels=none&on_bad=skip"), PREPROCESS, batch_size=99)))
    with torch.no_grad():
        logits = pixels()(batch.images)
    answers = interpolate(logits, (16, 16), mode="bilinear", align_corners=False).argmax(1).numpy()
    return dict(zip(batch.keys, answers, strict=True))


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(newline="")))


def test_maps_become_pictures_of_classes_beside_the_columns(place: Path, tmp_path: Path) -> None:
    want, said = answers_by_key(place), list[str]()
    found = predict_file(place / "run", place / "photos", out=tmp_path / "a.csv", batch=5, log=said.append)
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows[0]) == ["image", *(f"share_{kind}" for kind in KINDS), "mask", "error"]
    good = [row for row in rows if not row["error"]]
    assert (found.images, found.failed, len(good)) == (14, 1, 13) and {row["image"] for row in good} == set(want)
    assert len({row["mask"] for row in good}) == 13 and {"a-masks/a_01.png", "a-masks/a_01-2.png"} <= {
        row["mask"] for row in good
    }
    for row in good:
        picture = Image.open(tmp_path / row["mask"])
        assert picture.mode == "P" and picture.size == (16, 16)
        values = np.asarray(picture)
        assert (values == want[row["image"]]).all()
        shares = [float(row[f"share_{kind}"]) for kind in KINDS]
        assert shares == pytest.approx(np.bincount(values.ravel(), minlength=3) / 256, abs=1e-6)
    assert len({row["share_full"] for row in good}) > 1
    assert said[-1].endswith("a-masks: 13 masks, whose values are the classes: 0 none, 1 faint, 2 full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-masks", "a.csv"]


def test_lines_of_json_hold_the_same(place: Path, tmp_path: Path) -> None:
    predict_file(place / "run", place / "photos" / "a", out=tmp_path / "a.jsonl")
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert list(first) == ["image", *(f"share_{kind}" for kind in KINDS), "mask"]
    assert (tmp_path / first["mask"]).is_file()


def test_python_gets_the_answers_in_any_batch_and_runtime(place: Path) -> None:
    want = answers_by_key(place)
    untold = pixels(task=False)
    for found in (
        predict(place / "run", place / "photos"),
        predict(place / "run", place / "photos", batch=1),
        predict(place / "run", place / "photos", runtime="openvino", batch=4),
        predict(untold, place / "photos", preprocess=PREPROCESS, task="segmentation", classes=KINDS),
    ):
        good = [one for one in found if not one.error]
        assert {one.image for one in good} == set(want)
        assert all((one.answer == want[one.image]).mean() > 0.99 and one.answer.dtype == np.uint8 for one in good)
        assert list(good[0].columns or ()) == [f"share_{kind}" for kind in KINDS] and not good[0].classes
    nameless = predict(untold, place / "photos", preprocess=PREPROCESS, task=Segmentation())
    assert all(list(one.columns or ()) == ["share_0", "share_1", "share_2"] for one in nameless if not one.error)


def test_the_artefact_knows_its_task(place: Path, tmp_path: Path) -> None:
    made = lv.export(pixels(), tmp_path / "a", preprocess=PREPROCESS, batch=5)
    want = answers_by_key(place)
    for artefact in (made.path, lv.load_artefact(made)):
        good = [one for one in predict(artefact, place / "photos") if not one.error]
        assert all((one.answer == want[one.image]).mean() > 0.99 for one in good) and len(good) == 13


def test_several_heads_answer_side_by_side_and_each_by_itself(place: Path, tmp_path: Path) -> None:
    model = two_heads()
    found = predict(model, place / "photos", preprocess=PREPROCESS)[0]
    assert list(found.columns or ()) == ["kind_class", *(f"pixels_share_{kind}" for kind in KINDS)]
    assert set(found.answer) == {"kind", "pixels"} and found.answer["pixels"].shape == (16, 16)
    kind = predict(Head(model, "kind"), place / "photos", preprocess=PREPROCESS)[0]
    assert kind.label == (found.columns or {})["kind_class"] and 0.25 <= kind.probability < 1
    only = predict(Head(model, "pixels"), place / "photos", preprocess=PREPROCESS)[0]
    assert (only.answer == found.answer["pixels"]).all()
    lv.save(model, tmp_path / "run", preprocess=PREPROCESS)
    assert predict(tmp_path / "run", place / "photos")[0] == found
    made = lv.export(model, tmp_path / "artefact", preprocess=PREPROCESS, batch=4)
    assert predict(made.path, place / "photos")[0].columns == found.columns


def test_masks_are_replaced_together_or_stay(place: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "a.csv", place / "run"
    predict_file(run, place / "photos", out=file)
    file.unlink()
    with pytest.raises(BadInput, match="a-masks exists, where masks would be written"):
        predict_file(run, place / "photos", out=file)
    before = sorted(p.name for p in (tmp_path / "a-masks").iterdir())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(run, place / "photos", out=file, overwrite=True, batch=2, progress=stop)  # after some masks
    assert [p.name for p in tmp_path.iterdir()] == ["a-masks"]
    assert sorted(p.name for p in (tmp_path / "a-masks").iterdir()) == before
    predict_file(run, place / "photos" / "00.png", out=file, overwrite=True)
    (only,) = (tmp_path / "a-masks").iterdir()
    assert only.name.endswith("photos_00.png")
    (tmp_path / "a-masks" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="is no folder of masks"):
        predict_file(run, place / "photos", out=file, overwrite=True)


class Of(nn.Module):
    """A module of one's own that gives the mean of each image in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(images.mean(dim=(1, 2, 3)))


@task("predicting_brightness")
class Brightness(Task):
    """A number an image."""

    words: ClassVar[str] = "how bright"

    def columns(self, answer: Any, classes: Any) -> dict[str, Any]:
        return {"brightness": float(answer)}


@task("predicting_error")
class NamedError(Task):
    def columns(self, answer: Any, classes: Any) -> dict[str, Any]:
        return {"error": float(answer)}


def test_a_task_of_numbers_has_its_columns_and_no_masks(place: Path, tmp_path: Path) -> None:
    model = Of(lambda mean: mean)
    model.task, model.preprocess = Brightness(), PREPROCESS  # type: ignore[assignment]
    found = predict(model, place / "photos" / "a")
    want = next(iter(loader(open_dataset(f"{place / 'photos' / 'a'}?labels=none"), PREPROCESS, batch_size=9)))
    assert [one.columns["brightness"] for one in found if one.columns] == pytest.approx(
        want.images.mean(dim=(1, 2, 3)).tolist()
    )


@pytest.mark.parametrize(
    ("form", "given", "says"),
    [
        (lambda mean: mean[:, None].repeat(1, 5), "segmentation", r"outputs of shape \(1, 5\); accepted: logits"),
        (lambda mean: mean[:, None, None, None].repeat(1, 3, 2, 2), "classification", r"returned shape \(5, 3, 2, 2\)"),
        (lambda mean: (mean, mean), "predicting_brightness", "gave 2 answers for 1 images, of outputs a tuple"),
        (lambda mean: mean[:2], "predicting_brightness", r"first axis is the image, 5 .* shape \(2,\)"),
        (lambda mean: mean / 0, "predicting_brightness", "outputs are not finite for 5 of 5 images: '"),
        (lambda mean: mean, "predicting_error", "has a column 'error', which predict writes itself"),
        (lambda mean: mean, "heads", "has no field|heads"),
    ],
)  # fmt: skip
def test_outputs_that_a_task_cannot_read_are_refused_at_the_first_batch(
    place: Path, form: Any, given: str, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        predict(Of(form), sorted((place / "photos").glob("0*.png"))[:5], preprocess=PREPROCESS, task=given)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"task": None}, Refused, "wiring task_models_pixels are something else: say what they mean, --task NAME"),
        ({"task": "classification"}, Refused, "predict needs a model that tells classes of images apart"),
        ({"task": "multi_label"}, Refused, "predict needs a model that tells classes of images apart"),
        ({"task": "segmentatoin"}, BadInput, "unknown task 'segmentatoin': did you mean 'segmentation'"),
        ({"task": "segmentation:ingore=3"}, BadInput, "has no field 'ingore': did you mean 'ignore'"),
        ({"task": 3}, BadInput, "task is a int; accepted: a task"),
        ({"task": Segmentation(classes=("a", "b"))}, BadInput, "tells 3 classes of pixels, the masks have 2"),
        ({"task": "segmentation", "top": 2}, BadInput, "top is 2, and the task segmentation ranks no classes"),
        ({"task": "segmentation", "classes": ["a"]}, BadInput, "classes has 1 names; the model has 3 outputs"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    place: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        predict(pixels(task=False), place / "photos", preprocess=PREPROCESS, **change)


def test_a_classifier_tells_no_pixels(tiny: Any, place: Path) -> None:
    with pytest.raises(BadInput, match="the model gives one answer an image; accepted: one of each pixel"):
        predict(lv.open_model(tiny(img_size=16, patch_size=4)), place / "photos", task="segmentation")


def test_a_model_of_another_task_tells_no_classes(tiny: Any, place: Path) -> None:
    model: Any = lv.open_model(tiny(img_size=16, patch_size=4))
    model.task = Brightness()
    with pytest.raises(Refused, match="outputs of a model of the task predicting_brightness are something else"):
        predict(model, place / "photos", task="classification")
    with pytest.raises(BadInput, match="the model gives one answer an image; accepted: one of each pixel"):
        predict(model, place / "photos", task="segmentation")
