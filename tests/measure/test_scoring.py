from __future__ import annotations

import pytest
import torch

from leanvit.errors import BadInput
from leanvit.measure import Predictions, accuracy, accuracy_change, accuracy_per_class, agreement
from leanvit.tasks.intervals import mcnemar_exact, tango, wilson

from .conftest import answers

TARGETS = [0, 1, 2, 0, 1, 2, 0, 1]
DENSE = answers([0, 1, 2, 0, 1, 2, 1, 0], TARGETS)  # 6 of 8 right
LEAN = answers([0, 1, 1, 2, 2, 2, 0, 0], TARGETS)  # 4 of 8 right: lost 3, gained 1


def test_accuracy() -> None:
    assert accuracy(DENSE) == wilson(6, 8)
    assert accuracy(DENSE).unit == "fraction"


def test_topk() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    predictions = Predictions(logits, torch.tensor([1, 1, 1]), ("a", "b", "c"))
    assert [accuracy(predictions, topk=k).value for k in (1, 2, 3)] == [0.0, 2 / 3, 1.0]
    for wrong in (0, 4, "1"):
        with pytest.raises(BadInput, match="topk must be an integer between 1 and the 3 classes"):
            accuracy(predictions, topk=wrong)


def test_per_class() -> None:
    found = accuracy_per_class(DENSE)
    assert found == {0: wilson(2, 3), 1: wilson(2, 3), 2: wilson(2, 2)}


def test_change_is_after_minus_before_in_points() -> None:
    change = accuracy_change(DENSE, LEAN)
    assert (change.value, change.n, change.unit) == (-25.0, 8, "points")
    assert (change.lost, change.gained, change.p_value) == (3, 1, mcnemar_exact(3, 1))
    assert (change.low, change.high) == tuple(100 * end for end in tango(1, 3, 8))
    assert accuracy_change(LEAN, DENSE).value == 25.0
    same = accuracy_change(DENSE, DENSE)
    assert (same.value, same.lost, same.gained, same.p_value) == (0.0, 0, 0, 1.0)
    assert same.low < 0 < same.high


def test_agreement_counts_equal_answers_right_or_wrong() -> None:
    assert agreement(DENSE, LEAN) == wilson(4, 8)  # images 0, 1, 5 right twice and 7 wrong twice
    assert agreement(DENSE, DENSE).value == 1.0


def test_images_are_paired_by_key_not_by_position() -> None:
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled = Predictions(LEAN.logits[order], LEAN.targets[order], tuple(LEAN.keys[i] for i in order))
    assert accuracy_change(DENSE, shuffled) == accuracy_change(DENSE, LEAN)
    assert agreement(DENSE, shuffled) == agreement(DENSE, LEAN)


def test_what_cannot_be_paired_names_the_first_key() -> None:
    fewer = answers([0, 1], [0, 1])
    with pytest.raises(BadInput, match="key 'k2' is missing on one side"):
        accuracy_change(DENSE, fewer)
    with pytest.raises(BadInput, match="key 'k2' is missing on one side"):
        agreement(fewer, DENSE)
    other = answers([0, 1], [0, 1], keys=["k0", "k9"])
    with pytest.raises(BadInput, match="key 'k1' is missing on one side"):
        agreement(fewer, other)
    with pytest.raises(BadInput, match="key 'k1' has target 1 on one side and 2 on the other"):
        accuracy_change(fewer, answers([0, 1], [0, 2]))
    with pytest.raises(BadInput, match="same classes, got 3 and 4"):
        agreement(fewer, answers([0, 1], [0, 1], classes=4))
