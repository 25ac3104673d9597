import math

import pytest
import torch
from timm.scheduler import create_scheduler_v2

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


def test_the_last_epochs_may_stay_at_the_least_rate():
    config = FitConfig(epochs=5, warmup_epochs=1, cooldown_epochs=2, lr=1.0, min_lr=0.1)
    cooled, short = (
        [lr_at(step, c, steps_per_epoch=3) for step in range(15)]
        for c in (config, FitConfig(epochs=3, warmup_epochs=1, lr=1.0, min_lr=0.1))
    )
    assert cooled[:9] == short[:9] and cooled[9:] == [0.1] * 6
    held = FitConfig(epochs=3, cooldown_epochs=1, lr=1.0, min_lr=0.1, schedule="constant")
    assert [lr_at(step, held, steps_per_epoch=2) for step in range(6)] == [1.0] * 4 + [0.1] * 2


def test_a_rate_that_changes_once_an_epoch():
    """Spec of SiT: lr_e = min + (cos(pi e / E) + 1) / 2 * (lr - min)."""
    config = FitConfig(epochs=5, cooldown_epochs=1, lr=1.0, min_lr=0.2, lr_per_epoch=True)
    want = [0.2 + (math.cos(math.pi * e / 4) + 1) / 2 * 0.8 for e in range(4)] + [0.2]
    assert [lr_at(step, config, steps_per_epoch=3) for step in range(15)] == pytest.approx(
        [rate for rate in want for _ in range(3)]
    )


def test_a_group_with_a_peak_of_its_own_ends_at_the_same_rate():
    config = FitConfig(epochs=4, warmup_epochs=1, lr=0.1, min_lr=0.02)
    five = FitConfig(epochs=4, warmup_epochs=1, lr=0.5, min_lr=0.02)
    for step in range(13):
        assert lr_at(step, config, steps_per_epoch=3, peak_scale=5.0) == pytest.approx(
            lr_at(step, five, steps_per_epoch=3)
        )


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_once_an_epoch_it_is_timms_schedule(prefix, cooldown):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    asked = {"warmup_epochs": 3, "warmup_lr": 0.01, "min_lr": 0.02, "cooldown_epochs": cooldown}
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=10, warmup_prefix=prefix, **asked)
    config = FitConfig(epochs=epochs, lr=0.5, warmup_prefix=prefix, lr_per_epoch=True, **asked)
    for epoch in range(epochs):
        assert lr_at(4 * epoch + 1, config, steps_per_epoch=4) == pytest.approx(optimizer.param_groups[0]["lr"]), epoch
        scheduler.step(epoch + 1)


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
