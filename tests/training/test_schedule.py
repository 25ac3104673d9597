import math

import pytest

from leanvit.training import FitConfig, lr_at


def test_cosine_with_warm_up_has_the_values_of_the_formula():
    config = FitConfig(epochs=6, warmup_epochs=1, lr=0.4, min_lr=0.02)
    lrs = [lr_at(step, config, steps_per_epoch=4) for step in range(24)]
    assert lrs[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert lrs[14] == pytest.approx((0.4 + 0.02) / 2)  # half of the 20 steps after the warm-up
    assert lrs[9] == pytest.approx(0.02 + 0.38 * (1 + math.cos(math.pi / 4)) / 2)
    assert lrs[4:] == sorted(lrs[4:], reverse=True)
    assert lr_at(24, config, steps_per_epoch=4) == pytest.approx(0.02)


def test_fractional_warm_up_and_constant():
    config = FitConfig(epochs=2, warmup_epochs=0.5, lr=1.0, min_lr=0.0, schedule="constant")
    assert [lr_at(step, config, steps_per_epoch=4) for step in range(8)] == [0.5, *[1.0] * 7]


def test_no_warm_up_starts_at_the_peak():
    assert lr_at(0, FitConfig(epochs=1, lr=0.3), steps_per_epoch=10) == 0.3


def test_warm_up_from_a_rate_that_is_given():
    config = FitConfig(epochs=2, warmup_epochs=1, lr=0.5, warmup_lr=0.1, min_lr=0.0)
    assert [lr_at(step, config, steps_per_epoch=4) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_rate_as_a_product():
    config = FitConfig(lr_base=5e-4, lr_base_size=512, batch_size=256, accumulate=4)
    assert config.lr == 2.5e-4 and config.lr_text == "0.0005 x 256 / 512 = 0.00025"
    counted = FitConfig(lr_base=5e-4, lr_base_size=512, batch_size=256, accumulate=4, lr_counts_accumulation=True)
    assert counted.lr == 1e-3
    assert FitConfig(**counted.to_json()) == counted
