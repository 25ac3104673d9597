"""Artefacts by task: what travels, which answers must agree, several heads, and files of today's and older forms."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploy_models
from leanvit.deploy import export, load_artefact, read_artefact
from leanvit.deploy.tracing import compare_logits
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.files import seal_of
from leanvit.tasks import Classification, Head, Heads, MultiLabel, Segmentation, Task, task
from task_models import KINDS, PREPROCESS, pixels, two_heads

IMAGES = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@task("deploy_angle")
@dataclass(frozen=True)
class Angle(Task):
    """A number an image."""

    unit: str = "degrees"


class Fixed(nn.Module):
    """Outputs in some form of the mean of each image."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(images.mean(dim=(1, 2, 3)))


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "artefact.json").read_text())
    return found


@pytest.mark.parametrize("to", ["openvino", pytest.param("onnx", marks=pytest.mark.extra("onnxruntime", of="onnx"))])
def test_a_map_of_classes_travels_with_its_task(tmp_path: Path, to: str) -> None:
    model = pixels()
    made = export(model, tmp_path / "a", to=to, preprocess=PREPROCESS, batch=2)
    runner = load_artefact(made.path)
    assert made.task == runner.task == model.task and runner.classes == made.labels == KINDS
    assert (content(made.path)["format"], content(made.path)["task"]) == (5, model.task.to_json())
    assert made.num_classes == 3 and made.check["same_answers"] == made.check["images"] * 16
    with torch.no_grad():
        torch.testing.assert_close(runner(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("to", ["openvino", pytest.param("onnx", marks=pytest.mark.extra("onnxruntime", of="onnx"))])
@pytest.mark.parametrize("batch", [pytest.param(None, marks=pytest.mark.e2e), 2])
def test_several_heads_are_outputs_by_name(tmp_path: Path, to: str, batch: int | None) -> None:
    model = two_heads()
    made = export(model, tmp_path / "a", to=to, preprocess=PREPROCESS, batch=batch)
    runner = load_artefact(made.path)
    with torch.no_grad():
        want = model(IMAGES)
    got = runner(IMAGES)
    assert list(got) == list(want) == list(made.outputs) == ["kind", "pixels"] and runner.task == model.task
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-4, rtol=1e-3)
    images = made.check["images"]
    assert made.check["same_answers"] == images + images * 16 and made.num_classes == 0 and made.labels == ()


def test_one_head_is_a_model_of_its_own(tmp_path: Path) -> None:
    head = Head(two_heads(), "kind")
    made = export(head, tmp_path / "a", to="torch", preprocess=PREPROCESS)
    assert made.labels == ("a", "b", "c", "d") and made.task == head.task and made.outputs == ()
    with torch.no_grad():
        torch.testing.assert_close(load_artefact(made)(IMAGES), head(IMAGES), atol=1e-4, rtol=1e-3)


def test_a_model_of_numbers_is_held_to_the_tolerance_alone(tmp_path: Path) -> None:
    model = Fixed(lambda mean: mean.sin())
    made = export(model, tmp_path / "a", preprocess=PREPROCESS, task=Angle("radians"))
    assert "same_answers" not in made.check and made.task == Angle("radians")
    torch.testing.assert_close(load_artefact(made)(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-3)
    saved = content(made.path)["task"]
    assert saved == {"name": "deploy_angle", "unit": "radians", "module": __name__}


def test_which_answers_must_agree() -> None:
    want = np.array([[1.0, 2e-5], [0.5, -1.0]], dtype=np.float32)
    got = want - np.float32(4e-5)  # within the tolerance; a label is gone, the largest is the same
    assert compare_logits(want, got, precision="f32", task=Classification())["same_answers"] == 2
    with pytest.raises(Refused, match="3 of 4 answers equal"):
        compare_logits(want, got, precision="f32", task=MultiLabel())
    assert "same_answers" not in compare_logits(want, got, precision="f32", task=Angle())
    with pytest.raises(Refused, match="differs from PyTorch"):
        compare_logits(want, want + 1e-3, precision="f32", task=Angle())
    heads = Heads({"kind": Classification(), "angle": Angle()})
    both = ({"kind": one, "angle": one[:, :1]} for one in (want, got))
    assert compare_logits(*both, precision="f32", task=heads)["same_answers"] == 2
    with pytest.raises(Refused, match="differs from PyTorch"):
        compare_logits({"a": want, "b": want}, {"a": want, "b": want + 1}, precision="f32")


def test_labels_of_images_are_written_as_before(tmp_path: Path) -> None:
    model = deploy_models.small()
    before: dict[str, Any] = {"preprocess": deploy_models.PREPROCESS, "batch": 2, "to": "torch"}
    model.task = Classification()
    plain = export(model, tmp_path / "plain", **before)
    several = export(model, tmp_path / "several", **before, task="multi_label")
    assert content(plain.path)["format"] == 2 and not {"task", "multi_label", "outputs"} & set(content(plain.path))
    assert content(several.path)["format"] == 4 and content(several.path)["multi_label"] is True
    assert "task" not in content(several.path) and plain.task is None
    assert several.task == load_artefact(several).task == MultiLabel()


@pytest.fixture(scope="module")
def of_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = export(pixels(), tmp_path_factory.mktemp("pixels") / "a", to="torch", preprocess=PREPROCESS).path
    return made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": {"name": "gone", "module": "my_tasks"}}, "its task 'gone' is not leanvit's.*leanvit --import"),
        ({"task": {"name": "segmentatoin"}}, "unknown task 'segmentatoin': did you mean 'segmentation'"),
        ({"task": {"name": "segmentation", "ingore": 3}}, "no field 'ingore'"),
        ({"task": "segmentation"}, "task"),
    ],
)
def test_an_unknown_task_of_a_file_is_named(tmp_path: Path, of_pixels: Path, change: dict[str, Any], says: str) -> None:
    folder = Path(shutil.copytree(of_pixels, tmp_path / "a"))
    changed = content(folder) | change
    changed["seal"] = seal_of(changed)
    (folder / "artefact.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=says):
        read_artefact(folder)


@pytest.mark.parametrize(
    ("make", "given", "error", "says"),
    [
        (
            two_heads,
            {"to": "torch"},
            Refused,
            r"several heads \(kind, pixels\), and the runtime torch holds one output",
        ),
        (
            lambda: Fixed(lambda mean: {"a": mean}),
            {"task": Heads({"a": Angle()}), "labels": ["b"]},
            BadInput,
            r"labels is given for several heads \(a\)",
        ),
        (two_heads, {"task": Segmentation()}, BadInput, "gave outputs a dict; accepted: logits of each pixel"),
        (pixels, {"task": "segmentation:classes=[a]"}, BadInput, "tells 3 classes of pixels, the masks have 1"),
        (pixels, {"task": MultiLabel()}, Refused, "export needs a model that tells classes of images apart"),
        (pixels, {"task": Heads({"kind": Classification()})}, BadInput, "the outputs have no head 'kind'"),
        (pixels, {"task": "segmentatoin"}, BadInput, "unknown task 'segmentatoin': did you mean 'segmentation'"),
        (pixels, {"task": {"name": "segmentation"}}, BadInput, "task is a dict; accepted: a task"),
        (lambda: Fixed(lambda mean: {"a": mean}), {"task": None}, Refused, "gives a mapping .a., and no task says"),
        (lambda: Fixed(lambda mean: {"images": mean}), {"task": Heads({"images": Angle()})}, BadInput, "head 'images'"),
        (lambda: Fixed(lambda mean: mean), {"task": Segmentation()}, BadInput, r"outputs of shape \(3,\); accepted"),
        (lambda: Fixed(lambda mean: mean), {"task": None}, BadInput, r"the model gives \(3,\); accepted: logits"),
        (
            lambda: Fixed(lambda mean: mean[:, None, None, None].repeat(1, 3, 2, 2)),
            {"task": Classification()},
            BadInput,
            r"gives \(3, 3, 2, 2\); accepted: logits of one class an image, \(batch, classes\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, make: Any, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        export(make(), tmp_path / "a", preprocess=PREPROCESS, **given)
    assert not list(tmp_path.iterdir())
