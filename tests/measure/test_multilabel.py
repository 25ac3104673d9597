from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from leanvit.errors import BadInput
from leanvit.measure import Predictions, accuracy, accuracy_change, accuracy_per_class, agreement, label_accuracy
from leanvit.measure.multilabel import average_precision, map_interval, mean_average_precision


@pytest.fixture
def answers():
    """60 images, 4 classes, one of them never there; scores with ties, better than chance."""
    generator = torch.Generator().manual_seed(3)
    targets = (torch.rand(60, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.0])).float()
    logits = (targets + torch.randn(60, 4, generator=generator)).mul(4).round() / 4 - 0.5
    return Predictions(logits, targets, tuple(map(str, range(60))))


def test_average_precision_is_that_of_scikit_learn(answers):
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=3).astype(float)
    plain = average_precision(answers.logits, answers.targets)
    drawn = average_precision(answers.logits, answers.targets, weights)
    for c in range(3):
        truth, scores = answers.targets[:, c].numpy(), answers.logits[:, c].numpy()
        assert plain[0, c] == pytest.approx(average_precision_score(truth, scores))
        for row, weight in zip(drawn, weights, strict=True):
            assert row[c] == pytest.approx(average_precision_score(truth, scores, sample_weight=weight))
    assert np.isnan(plain[0, 3])
    assert mean_average_precision(answers.logits, answers.targets) == pytest.approx(plain[0, :3].mean())


def test_the_interval_holds_the_value_and_shrinks(answers):
    interval = map_interval(answers)
    assert interval.low < interval.value < interval.high and interval.unit == "fraction"
    many = Predictions(answers.logits.repeat(9, 1), answers.targets.repeat(9, 1), tuple(map(str, range(540))))
    assert map_interval(many).high - map_interval(many).low < (interval.high - interval.low) / 2
    assert map_interval(answers) == interval, "always the same draws"


def test_images_and_labels_that_are_right():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    before = Predictions(torch.tensor([[2.0, -1], [1, -3], [-1, -1], [1, 1]]), targets, ("a", "b", "c", "d"))
    after = Predictions(torch.tensor([[2.0, -1], [1, 3], [-1, 1], [1, 1]]), targets, ("a", "b", "c", "d"))
    assert accuracy(before).value == 0.5 and label_accuracy(before).value == 0.75
    assert accuracy_per_class(before)[1].value == 0.5, "found in one of the two images that carry it"
    change = accuracy_change(before, after)
    assert (change.gained, change.lost) == (1, 1) and agreement(before, after).value == 0.5
    with pytest.raises(BadInput, match="multi-label images have no top-k accuracy"):
        accuracy(before, topk=2)
    single = Predictions(after.logits, torch.zeros(4, dtype=torch.int64), after.keys)
    with pytest.raises(BadInput, match="one side is multi-label"):
        agreement(before, single)


def test_predictions_of_several_labels_come_back(answers, tmp_path):
    answers.save(tmp_path / "p")
    again = Predictions.load(tmp_path / "p")
    assert again.task.label_kind == "several" and torch.equal(again.targets, answers.targets)
    with pytest.raises(BadInput, match="must be 0 or 1"):
        Predictions(answers.logits, answers.targets + 0.5, answers.keys)
    with pytest.raises(BadInput, match="no image carries a class"):
        mean_average_precision(answers.logits, torch.zeros(60, 4))
