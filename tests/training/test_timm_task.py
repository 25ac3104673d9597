"""Tasks of timm as objectives."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from everything import assert_same_weights
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from tiny_training import make_data, make_preprocess

from leanvit.errors import BadInput
from leanvit.training import CrossEntropy, FitConfig, TimmTask, fit

CONFIG = FitConfig(epochs=1, batch_size=24, lr=3e-3, ema_decay=0.5)


def make_model(seed=0, **kwargs):
    """The tiny transformer as timm's factory makes it: tasks read its normalisation."""
    torch.manual_seed(seed)
    shape = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 16, "depth": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**shape, "num_heads": 2, **kwargs})


def trained(model, objective, **kw):
    return fit(model, make_data(96), preprocess=make_preprocess(), config=CONFIG, objective=objective, **kw)


def test_classification_is_cross_entropy():
    model = make_model()
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    mine, theirs = trained(make_model(), CrossEntropy()), trained(model, TimmTask(task))
    assert_same_weights(mine.final, theirs.final)


def test_distillation_logs_its_parts_and_leaves_the_teacher_alone(tmp_path):
    student, teacher = make_model(), make_model(1)
    before = copy.deepcopy(teacher)
    task = LogitDistillationTask(student, teacher, criterion=torch.nn.CrossEntropyLoss(), verbose=False)
    result = trained(student, TimmTask(task), out=tmp_path)
    assert_same_weights(teacher, before)
    assert {"loss", "kd_loss"} <= result.history[0].keys()


def test_what_the_task_trains_besides_is_trained_and_resumed(tmp_path):
    def make():
        torch.manual_seed(3)
        student = make_model()
        teacher = make_model(1, embed_dim=32)
        task = FeatureDistillationTask(student, teacher, criterion=torch.nn.CrossEntropyLoss(), verbose=False)
        return student, TimmTask(task)

    student, objective = make()
    trained(student, objective, out=tmp_path)
    (projection,) = [p for p in objective.parameters() if p.ndim == 2]
    fresh, start = make()
    start.bind(fresh, make_preprocess())
    (untrained,) = [p for p in start.parameters() if p.ndim == 2]
    assert not torch.equal(projection, untrained)
    again, objective = make()
    trained(again, objective, out=tmp_path, resume=True)
    assert torch.equal(next(p for p in objective.parameters() if p.ndim == 2), projection)
    assert_same_weights(again, student)


def test_what_cannot_work_is_refused():
    task = ClassificationTask(make_model(), verbose=False)
    with pytest.raises(BadInput, match="student is not the model that is trained"):
        trained(make_model(), TimmTask(task))
    assert TimmTask(task).learns == "one"
    task.setup_ema()
    with pytest.raises(BadInput, match="give ema_decay in the recipe"):
        TimmTask(task)
    with pytest.raises(BadInput, match=r"task=VisionTransformer is not accepted: give a timm\.task\.TrainingTask"):
        TimmTask(make_model())
