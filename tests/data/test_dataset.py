from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from leanvit.data import open_dataset
from leanvit.data.label_kinds import rank_within
from leanvit.errors import BadInput


def test_a_sample_is_image_target_key():
    dataset = open_dataset("digits", "train")
    image, target, key = dataset[5]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert 0 <= target < 10 and key == dataset.keys[5]
    assert dataset[-1].key == dataset.keys[-1]
    assert [s.key for s in dataset] == list(dataset.keys)
    with pytest.raises(IndexError, match="sample 1438 of 1438"):
        dataset[1438]


def test_rank_within_groups():
    groups, value = np.array([1, 0, 1, 0, 1]), np.array([3, 9, 1, 2, 2])
    assert rank_within(groups, value).tolist() == [2, 1, 0, 0, 1]


def test_limit_is_even_over_classes_keyed_and_in_order():
    whole = open_dataset("digits", "train")
    some = open_dataset("digits", "train", limit=37)
    assert sorted(Counter(some.targets.tolist()).values()) == [3] * 3 + [4] * 7
    assert list(some.keys) == sorted(some.keys)
    assert {k: whole.targets[whole.keys.index(k)] for k in some.keys} == dict(zip(some.keys, some.targets, strict=True))
    assert open_dataset("digits", "train", limit=37).keys == some.keys
    assert open_dataset("digits", "train", limit=37, seed=1).keys != some.keys
    assert set(some.keys) < set(open_dataset("digits", "train", limit=60).keys)
    assert len(open_dataset("digits", "train", limit=10**6)) == len(whole)


def test_limit_below_the_number_of_classes():
    assert len(set(open_dataset("digits", "val", limit=4).targets.tolist())) == 4


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_must_be_positive(limit):
    with pytest.raises(BadInput, match=rf"limit is {limit}; accepted: a whole number, 1 or more"):
        open_dataset("digits", limit=limit)


def test_cached_holds_the_same_pixels(folder):
    plain = open_dataset(folder, "train").take([3, 0, 5])
    cached = plain.cached()
    for file in folder.rglob("*.png"):
        file.unlink()
    assert cached.keys == plain.keys and len(cached) == 3
    assert np.asarray(cached[1].image).shape == (20, 24, 3)
    with pytest.raises(BadInput):
        plain[0]


def test_cached_equals_plain():
    plain = open_dataset("digits", "val").take(range(20))
    cached = plain.cached()
    assert cached.images is not plain.images
    for a, b in zip(plain, cached, strict=True):
        assert np.array_equal(a.image, b.image) and a[1:] == b[1:]
    assert plain.cached(max_bytes=100) is plain


def test_repr_is_short():
    assert repr(open_dataset("digits", "val")) == "Dataset('digits', 'val': 359 images 8x8x1, 10 classes)"


def test_some_classes_become_the_first_ones():
    digits = open_dataset("digits", "train")
    few = digits.only_classes(["7", 2])
    assert few.classes == ["7", "2"] and set(few.targets) == {0, 1}
    assert all(few.classes[s.target] == digits.classes[int(digits.targets[digits.keys.index(s.key)])] for s in few)
    with pytest.raises(BadInput, match="'77' is no class of data 'digits': 0 to 9"):
        digits.only_classes(["77"])


def test_few_shots_are_even_and_keyed():
    digits = open_dataset("digits", "train")
    few = digits.few_shot(3, seed=1)
    assert np.bincount(few.targets).tolist() == [3] * 10
    assert few.keys == digits.take(np.arange(len(digits))[::-1]).few_shot(3, seed=1).keys[::-1]
    assert set(few.keys) != set(digits.few_shot(3, seed=2).keys)
    assert set(few.keys) < set(digits.few_shot(4, seed=1).keys)
    assert open_dataset("digits", "train", shots=3, seed=1).keys == few.keys
    assert len(open_dataset("digits", "val", shots=3)) == 359, "val stays whole"
    with pytest.raises(BadInput, match="shots is 0; accepted"):
        digits.few_shot(0)
