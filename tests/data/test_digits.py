from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from leanvit.data import open_dataset


def test_splits_are_stratified_disjoint_and_complete():
    train, val = open_dataset("digits", "train"), open_dataset("digits", "val")
    assert not set(train.keys) & set(val.keys)
    assert sorted(train.keys + val.keys) == [f"digits/{i:04d}" for i in range(1797)]
    counts = Counter(load_digits().target.tolist())
    assert all(abs(n - 0.2 * counts[digit]) <= 0.5 for digit, n in Counter(val.targets.tolist()).items())
    assert open_dataset("digits", "val", seed=7).keys == val.keys


def test_pixels_and_labels_are_those_of_the_source():
    source = load_digits()
    for image, target, key in open_dataset("digits", "val", limit=30):
        row = int(key.removeprefix("digits/"))
        assert target == source.target[row]
        assert np.abs(np.asarray(image) / 255 * 16 - source.images[row]).max() <= 0.5 * 16 / 255


def test_digits_are_not_mirrored():
    assert not open_dataset("digits").mirror
