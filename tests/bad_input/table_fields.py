"""Fields that do not fit their images, and sets without labels where labels are needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from wrong import NAME, Case, Cli, tiny

from leanvit.data import Boxes, Depths, Field, Masks, Preprocess, Values, loader, open_dataset
from leanvit.errors import BadInput
from leanvit.recipe import Data, Recovery, compress, load
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, fit

BARE = "photos/train?labels=none"


def _field(name: str, field: Field, *says: str) -> Case:
    """A field of one image of photos/."""
    call = lambda: open_dataset("photos/train").take([2]).with_field("it", field)[0]  # noqa: E731
    return Case(f"field {name}", call, ("image 'cat/2.png' has a field 'it' that is not accepted", *says))


def _moved(name: str, augment: Any, *says: str) -> Case:
    def call() -> None:
        dataset = open_dataset("photos/train").with_field("mask", Masks([np.zeros((8, 8), dtype=int)] * 6))
        loader(dataset, Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3), batch_size=2, train=True, augment=augment)

    return Case(f"field {name}", call, says)


def _fit(**config: Any) -> None:
    model = load("run")
    dataset = open_dataset("digits?labels=none", "train", limit=20)
    fit(model, dataset, preprocess=Preprocess.of(model), config=FitConfig(epochs=1, batch_size=10, **config))


def _recover() -> None:
    data = Data(open_dataset("digits?labels=none", "train", limit=20), Preprocess((1, 8, 8), (0.5,), (0.5,)))
    compress(load("run"), [EViT(blocks=(1,))], data, recovery=Recovery(epochs=1, batch_size=10))


CASES = [
    _field("mask of another size", Masks([np.zeros((8, 9), dtype=int)]), "a mask of 9x8 pixels", "accepted: .* 8x8"),
    _field("mask of fractions", Masks([np.zeros((8, 8))]), "a mask of float64; accepted: whole numbers"),
    _field("mask of colours", Masks([np.zeros((8, 8, 3), dtype=int)]), "a mask of 3x8x8 pixels", "8x8"),
    _field("depth of another size", Depths([np.zeros((4, 4))]), "a depth map of 4x4 pixels", "accepted: .* 8x8"),
    _field("box outside", Boxes([[[0, 0, 8, 9]]]), r"box 0, \[0.0, 0.0, 8.0, 9.0\], is outside the image, 8x8"),
    _field("box inverted", Boxes([[[0, 0, 8, 8], [6, 0, 2, 8]]]), r"box 1, .*, is inverted or empty", "left < right"),
    _field("labels of other boxes", Boxes([{"boxes": [[0, 0, 1, 1]], "labels": []}]), "1 boxes with labels of shape"),
    _moved("under RandAugment", "randaug", r"Augment.auto_augment='rand", "not its mask", "accepted where .* 'light'"),
    Case(
        "field without a value for each sample",
        lambda: open_dataset("photos/train").with_field("it", Values([1, 2])),
        ("field 'it' has 2 values, the data set 6 samples", "keys="),
    ),
    Case(
        "field with a name that is taken",
        lambda: open_dataset("photos/train").with_field("label", Values([0] * 6)),
        ("field name 'label'; accepted: a name of letters",),
    ),
    Case("training without labels", _fit, ("training needs labels, but data 'digits.labels=none' has none",)),
    Case("mixing without labels", lambda: _fit(mixup=0.5), ("needs labels, but data",)),
    Case("recovery without labels", _recover, ("a recovery needs labels, but data 'digits.labels=none' has none",)),
    Case(
        "few of each class without labels",
        lambda: open_dataset(BARE).few_shot(1),
        (r"shots= needs labels, but data 'photos/train\?labels=none' has none; accepted: images with classes",),
    ),
    Case(
        "classes without labels",
        lambda: open_dataset("photos/train", labels=False, classes=["cat"]),
        ("classes= is about labels, and labels=none opens images without",),
        BadInput,
    ),
]
CLI = [
    Cli("measure without labels", ("measure", "run", "--data", BARE), (r"measure needs labels, but data .* has none",)),
    Cli(
        "train without labels",
        ("train", NAME, "--data", BARE, *tiny(), "--batch-size", "2", "--out", "new"),
        (r"train needs labels, but data .* has none; accepted: images with classes.*; or a way .* \(--with\)",),
    ),
    Cli(
        "compare-methods without labels",
        ("compare-methods", "run", "--data", BARE, "--out", "new"),
        ("compare-methods needs labels, but data",),
    ),
    Cli(
        "compress measured without labels",
        ("compress", "colour", "--with", "evit", "--data", BARE, "--out", "new"),
        (r"\(--measure\) needs labels, but data .* has none; accepted: .*; or --no-measure",),
    ),
    Cli("publish without labels", ("publish", "run", "--data", BARE, "--out", "new"), ("publish needs labels",)),
    Cli("data with other labels", ("data", "flat?labels=all"), ("labels='all'; accepted: labels=none",)),
    Cli("data with labels beside none", ("data", f"{BARE}&shots=3"), ("shots= is about labels", "labels=none")),
    Cli("data without images", ("data", "empty?labels=none"), ("data 'empty.labels=none' has no images below empty/",)),
]
