from __future__ import annotations

import random

import numpy as np
import pytest
from timm.data import create_transform

from leanvit.data import Augment, Preprocess
from leanvit.data.augment import PRESETS, ShiftFlip, without_posterize_limit_
from leanvit.errors import BadInput
from pictures import picture


def test_presets_by_name():
    assert (
        Augment.of(None) is None and Augment.of("light") == Augment() and Augment.of(PRESETS["randaug"]).erase == 0.25
    )
    with pytest.raises(BadInput, match="unknown augment 'lite': did you mean 'light'"):
        Augment.of("lite")


@pytest.mark.parametrize(
    "field",
    [{"hflip": 1.5}, {"erase": -0.1}, {"padding": 2}, {"color_jitter": -1}, {"scale": (0.0, 1.0)}, {"ratio": (2, 1)}],
)
def test_fields_outside_their_range(field):
    with pytest.raises(BadInput, match=rf"Augment\.{next(iter(field))} is"):
        Augment(**field)


def test_unknown_crop():
    with pytest.raises(BadInput, match=r"Augment\.crop is 'paded'; accepted: .*did you mean 'pad'"):
        Augment(crop="paded")


def test_shift_moves_by_the_padding_at_most_and_fills_with_black():
    image = picture(1, (16, 16))
    pixels = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {pixels[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    random.seed(0)
    seen = {ShiftFlip(0.125, 0.0)(image).tobytes() for _ in range(300)}
    assert seen == windows


def test_flip_probability():
    image = picture(1)
    mirrored = np.asarray(image)[:, ::-1].tobytes()
    random.seed(0)
    assert 60 < sum(ShiftFlip(0.0, 0.4)(image).tobytes() == mirrored for _ in range(200)) < 100
    assert ShiftFlip(0.0, 0.0)(image) is image


# timm 1.0.20 cannot mix grey images by AugMix
@pytest.mark.parametrize(
    ("policy", "channels"),
    [
        *((p, c) for p in ("rand-m9-mstd0.5-inc1", "rand-m20-n6-p1.0", "original", "3a") for c in (1, 3)),
        ("augmix-m10", 3),
    ],
)
def test_every_policy_runs_on_grey_and_colour(policy, channels):
    preprocess = Preprocess((channels, 16, 16), (0.5,) * channels, (0.5,) * channels)
    transform = preprocess.train_transform(Augment(auto_augment=policy, erase=1.0))
    image = picture(3, (16, 16))
    random.seed(0), np.random.seed(0)
    outputs = [transform(image) for _ in range(60)]
    assert all(out.shape == (channels, 16, 16) and out.isfinite().all() for out in outputs)
    assert len({out.numpy().tobytes() for out in outputs}) > 50


def test_posterize_to_no_bits_is_black():
    _, policy, _ = create_transform(32, is_training=True, separate=True, auto_augment="rand-m10-inc1")
    without_posterize_limit_(policy)
    (op,) = [op for op in policy.transforms[0].ops if op.name == "PosterizeIncreasing"]
    op.prob = 1.0
    assert not np.asarray(op(picture(1))).any()
    op.magnitude = 0
    assert np.array_equal(op(picture(1)), np.asarray(picture(1)) & 0xF0)


@pytest.mark.parametrize("policy", ["random", "rand-q3", "nothing", 3])
def test_unknown_policies(policy):
    with pytest.raises(BadInput, match=r"Augment\.auto_augment is .*; accepted: a policy of timm, such as 'rand-m9"):
        Augment(auto_augment=policy)
