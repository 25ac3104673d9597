"""What a training does with the task at hand: it is checked first, knows the data, and stays with the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import leanvit as lv
from leanvit.data import Masks, Values
from leanvit.errors import BadInput
from leanvit.measure import compare
from leanvit.tasks import Classification, Heads, Metric, Segmentation
from leanvit.training import TaskLoss
from leanvit.training.validating import _score
from task_models import PREPROCESS, pixels, two_heads

CONFIG = lv.FitConfig(epochs=1, batch_size=4)


def bare() -> Any:
    """Eight digits without labels."""
    return lv.open_dataset("digits", "train", limit=8, labels=False)


def scenes(ignore: int) -> Any:
    """The same with masks of two classes, and a border that counts for nothing."""
    found = bare()
    mask = np.full((8, 8), ignore)
    mask[2:6, 2:6] = np.arange(16).reshape(4, 4) % 2
    return found.with_field("mask", Masks([mask] * len(found), ignore=ignore))


def trained(model: Any, data: Any, **given: Any) -> Any:
    return lv.fit(model, data, preprocess=PREPROCESS, config=CONFIG, convert=True, **given)


def test_the_task_of_an_objective_knows_the_data() -> None:
    model = pixels(task=False)
    with pytest.raises(BadInput, match=r"objective TaskLoss \(segmentation\) needs the field 'mask'"):
        trained(model, bare(), objective=TaskLoss(Segmentation()))
    objective = TaskLoss(Segmentation())
    result = trained(model, scenes(9), objective=objective)
    assert objective.task.ignore == 9 == result.task.ignore and model.task == result.task


def test_a_model_without_a_number_of_classes_keeps_its_task() -> None:
    model: Any = two_heads()
    model.task = None
    assert model.num_classes == 0
    kinds = Values(np.zeros(8, dtype=int).tolist())
    task = Heads({"kind": Classification(field="kind")})
    trained(model, scenes(9).with_field("kind", kinds), task=task)
    assert model.task == task


def test_validation_without_an_image_is_refused() -> None:
    with pytest.raises(BadInput, match="no image of the validation data can be read"):
        _score(Segmentation(), [])


def test_compare_asks_for_what_a_task_reads_before_it_runs() -> None:
    ran: list[int] = []

    class Runner(nn.Module):
        def forward(self, images: Any) -> Any:
            ran.append(len(images))
            return torch.zeros(len(images), 3, 16, 16)

    with pytest.raises(BadInput, match=r"a: compare \(segmentation\) needs the field 'mask'"):
        compare({"a": Runner()}, bare(), preprocess=PREPROCESS, task="segmentation")
    assert not ran


def test_a_metric_in_percent_that_is_no_fraction_is_named() -> None:
    from leanvit.measure.comparing import _scores
    from leanvit.tasks.intervals import Interval

    task = SimpleNamespace(metrics=(Metric("r2", "R²"),))
    judged: Any = SimpleNamespace(task=task, interval=lambda name: Interval(-0.2, -0.3, -0.1, 8, "fraction"))
    with pytest.raises(BadInput, match=r"lean: R² is -20.0 % .*accepted: for a metric in % a fraction"):
        _scores("lean", judged)
