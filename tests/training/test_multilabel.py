"""Training on images with several labels: loss, distillation, validation, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import make_data, make_model, make_preprocess
from torch.nn import functional as F

from leanvit.errors import BadInput
from leanvit.training import BinaryCrossEntropy, BinaryDistillation, CrossEntropy, FitConfig, fit, recover


def several(count: int, **kw):
    """The easy data with two labels an image: its class, and whether that is one of the first two."""
    data = make_data(count, **kw)
    vectors = np.zeros((count, 4), dtype=np.float32)
    vectors[np.arange(count), data.targets] = 1
    vectors[:, 3] = data.targets < 2
    return replace(data, targets=vectors)


def test_a_run_learns_the_labels():
    config = FitConfig(epochs=24, batch_size=20, lr=1e-2)
    model = make_model()
    result = fit(model, several(200), preprocess=make_preprocess(), config=config, validate=several(80, split="val"))
    scores = [row["map"] for row in result.history]
    assert scores[-1] > 0.9 > scores[0] and result.last_score == scores[-1] and "top1" not in result.history[0]


def test_losses_are_those_of_the_formulas():
    logits, teacher = torch.randn(5, 3), torch.randn(5, 3)
    targets = (torch.rand(5, 3) > 0.5).float()
    smooth = targets * 0.8 + 0.1
    p = logits.sigmoid()
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    assert torch.isclose(BinaryCrossEntropy(0.2).of(logits, targets), expected)

    objective = BinaryDistillation(make_model(), teacher_preprocess=make_preprocess(), temperature=2.0)
    yes, own = (teacher / 2).sigmoid(), (logits / 2).sigmoid()
    divergence = sum(F.kl_div(s.log(), t, reduction="none") for s, t in ((own, yes), (1 - own, 1 - yes))).mean()
    assert torch.isclose(objective.term(logits, teacher), 4 * divergence, atol=1e-6)
    assert objective.term(teacher, teacher).abs() < 1e-6


def test_recovery_follows_the_teacher():
    teacher, lean, data = make_model(1), make_model(2), several(80)
    images = torch.randn(64, 1, 8, 8)

    def distance() -> float:
        with torch.no_grad():
            return float((teacher.eval()(images).sigmoid() - lean.eval()(images).sigmoid()).abs().mean())

    before = distance()
    config = FitConfig(epochs=6, batch_size=20, lr=5e-3)
    recover(lean, teacher, data, preprocess=make_preprocess(), config=config, alpha=1.0)
    assert distance() < before / 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"config": FitConfig(batch_size=20, mixup=0.2)}, "mixup=0.2 .*is multi-label: set both to 0"),
        ({"objective": CrossEntropy()}, "objective CrossEntropy does not suit 'halves'"),
        ({"validate": make_data(20)}, "multi-label, the other is not"),
    ],
)
def test_what_does_not_suit_is_refused(given, text):
    with pytest.raises(BadInput, match=text):
        fit(make_model(), several(40), **{"preprocess": make_preprocess(), "config": FitConfig(batch_size=20), **given})
    with pytest.raises(BadInput, match="BinaryCrossEntropy does not suit"):
        fit(
            make_model(),
            make_data(40),
            preprocess=make_preprocess(),
            config=FitConfig(batch_size=20),
            objective=BinaryCrossEntropy(),
        )
