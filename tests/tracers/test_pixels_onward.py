"""What comes after the tracer of pixels: several processes, runtimes, and verbs that are told no task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pixels import BACKBONE, HEAD, PREPROCESS, PerPixel, Segmenter, digits, run_on, train

import leanvit as lv
from leanvit import verbs
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Recovery
from leanvit.tasks import Segmentation
from leanvit.training import TaskLoss

WHERE = {"data": "digits", "limit": 16}


def segmenter() -> Any:
    torch.manual_seed(0)
    return lv.compose(Segmenter(), {"backbone": BACKBONE, "head": HEAD}).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lv.save(segmenter(), tmp_path_factory.mktemp("pixels") / "run", preprocess=PREPROCESS)


@pytest.mark.e2e
def test_one_and_two_processes_have_one_loss(one_thread: None, tmp_path: Path) -> None:
    assert run_on(1, train, tmp_path / "1", 1) == [0] and run_on(2, train, tmp_path / "2", 1) == [0, 0]
    one, two = (json.loads((tmp_path / n / "train.jsonl").read_text().splitlines()[-1]) for n in "12")
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5) and two["terms"] == one["terms"]


@pytest.mark.e2e
@pytest.mark.parametrize("to", ["openvino", pytest.param("onnx", marks=pytest.mark.extra("onnxruntime", of="onnx"))])
def test_artefacts_answer_as_the_models(tmp_path: Path, to: str) -> None:
    data = lv.Data(digits("train"), PREPROCESS)
    lean = lv.compress(segmenter(), [lv.ToMe(r=8)])
    rounded = lv.compress(lv.compress(lean, [lv.Int8(images=32)], data), [lv.Int8(images=32)], data, part="head")
    images = torch.randn(3, *PREPROCESS.input_size)
    for model, integer in ((lean, None), (rounded, 14)):
        made = lv.export(model, tmp_path / f"{integer}", to=to, preprocess=PREPROCESS, labels=["none", "faint", "full"])
        assert made.check.get("integer_products") == integer
        answers = torch.as_tensor(lv.load_artefact(made.path)(images))
        torch.testing.assert_close(answers, model(images), atol=1e-4, rtol=1e-3)


Call = Callable[[Path, Path], Any]
JUDGING: dict[str, Call] = {
    "measure": lambda run, out: verbs.measure(run, **WHERE, out=out),
    "publish": lambda run, out: verbs.publish(run, **WHERE, out=out),
    "predict": lambda run, out: verbs.predict(run, "digits"),
    "predict in memory": lambda run, out: verbs.predict(segmenter(), "digits", preprocess=PREPROCESS),
    "train": lambda run, out: verbs.train(run, **WHERE, out=out),
    "compare-methods": lambda run, out: verbs.compare_methods(run, **WHERE, out=out),
    "measuring what compress makes": lambda run, out: verbs.compress(run, [lv.ToMe(r=4)], **WHERE, out=out),
    "a recovery without a task": lambda run, out: verbs.compress(
        run, [lv.ToMe(r=4)], **WHERE, recovery=Recovery(epochs=1, batch_size=8), measured=False, out=out
    ),
    "nvit and a recovery without a task": lambda run, out: lv.compress(
        segmenter(), [lv.NViT(macs=0.8)], lv.Data(digits("train"), PREPROCESS), recovery=Recovery(epochs=1), out=out
    ),
    "training without an objective": lambda run, out: lv.fit(
        segmenter(), digits("train"), preprocess=PREPROCESS, config=lv.FitConfig(epochs=1), out=out
    ),
}


@pytest.mark.parametrize("what", JUDGING)
def test_without_a_task_what_judges_refuses_by_name(run: Path, tmp_path: Path, what: str) -> None:
    says = (
        rf"{what.removesuffix(' in memory')}.* needs a model that tells classes .* wiring tracer_pixels are something"
    )
    with pytest.raises(Refused, match=says):
        JUDGING[what](run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_the_masks_of_its_task_is_refused(tmp_path: Path) -> None:
    config, plain = lv.FitConfig(epochs=1), lv.open_dataset("digits", "val")
    for task, says in ((Segmentation(), r"\(segmentation\) needs"), (PerPixel(), r"\(tracer_per_pixel\) needs")):
        given = {"preprocess": PREPROCESS, "config": config, "objective": TaskLoss(task), "validate": plain}
        with pytest.raises(BadInput, match=rf"validate= {says} the field 'mask' .* data 'digits' has label"):
            lv.fit(segmenter(), digits("train"), **given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predict_answers_by_the_task(run: Path, tmp_path: Path) -> None:
    task, model = Segmentation(classes=("none", "faint", "full")), segmenter()
    found = verbs.predict(run, "digits?classes=3&shots=6", task=task)
    model.task = task
    lv.save(model, tmp_path / "told", preprocess=PREPROCESS)
    assert verbs.predict(tmp_path / "told", "digits?classes=3&shots=6") == found and len(found) > 5
    assert all(sum((one.columns or {}).values()) == pytest.approx(1) and one.answer.shape == (16, 16) for one in found)
    made = verbs.export(tmp_path / "told", batch=4, out=tmp_path / "artefact")
    again = verbs.predict(made.folder, "digits?classes=3&shots=6")
    assert all((one.answer == other.answer).mean() > 0.99 for one, other in zip(again, found, strict=True))


def test_what_judges_nothing_works(run: Path, tmp_path: Path) -> None:
    lean = verbs.compress(run, [lv.ToMe(r=4), lv.Int8(images=8)], **WHERE, measured=False, out=tmp_path / "lean").folder
    rounded = verbs.compress(lean, [lv.Int8(images=8)], **WHERE, part="head", measured=False, out=tmp_path / "rounded")
    model: Any = lv.load(rounded.folder)
    assert [plan.part for plan in model.history.plans] == ["backbone", "backbone", "head"] and model.classes == ()
    assert "backbone" in lv.write_report([run, lean], tmp_path / "page.html").read_text()


def test_labels_of_images_are_neither_matched_with_its_outputs_nor_become_their_names() -> None:
    labelled, config = digits("train", labels=True).take(range(32)), lv.FitConfig(epochs=1, batch_size=16)
    fitted = lv.fit(segmenter(), labelled, preprocess=PREPROCESS, config=config, objective=TaskLoss(PerPixel())).model
    data = lv.Data(labelled, PREPROCESS, task=PerPixel())
    lean = lv.compress(fitted, [lv.ToMe(r=4)], data, recovery=Recovery(epochs=1, batch_size=16))
    assert len(labelled.classes) == 10 and fitted.classes == lean.classes == ()
