import pytest

from leanvit.data import Augment
from leanvit.errors import BadInput
from leanvit.training import FitConfig


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("epochs", 0, "whole number >= 1"),
        ("epochs", 2.5, "whole number >= 1"),
        ("epochs", True, "whole number >= 1"),
        ("batch_size", -4, "whole number >= 1"),
        ("accumulate", 0, "whole number >= 1"),
        ("workers", -1, "whole number >= 0"),
        ("seed", "0", "whole number >= 0"),
        ("save_every", 0, "whole number >= 1"),
        ("lr", 0.0, "a number > 0"),
        ("lr", float("nan"), "a number > 0"),
        ("lr", "1e-3", "a number > 0"),
        ("min_lr", 1.0, "<= 0.001"),
        ("warmup_epochs", 10, ">= 0 and < 10"),
        ("weight_decay", -0.1, ">= 0"),
        ("label_smoothing", 1.0, ">= 0 and < 1"),
        ("mixup", -1, ">= 0"),
        ("clip_grad", 0, "> 0"),
        ("ema_decay", 1.0, ">= 0 and < 1"),
        ("cooldown_epochs", 10, ">= 0 and < 10"),
        ("lr_per_epoch", 1, "true or false"),
        ("ema_warmup", 1, "true or false"),
        ("betas", 0.9, "two numbers >= 0 and < 1"),
        ("betas", (0.9, 1.0), ">= 0 and < 1"),
        ("schedule", "line", "'cosine', 'linear', 'constant'"),
        ("amp", "fp8", "'fp32', 'bf16', 'fp16'"),
        ("parallel", "fsdp", "'ddp', 'fsdp2'"),
        ("train_mode", "test", "'train', 'eval'"),
        ("augment", "lite", "did you mean 'light'"),
    ],
)
def test_bad_field_is_named_with_its_value_and_what_is_accepted(field, value, accepted):
    with pytest.raises(BadInput) as error:
        FitConfig(**{field: value})
    assert field in str(error.value)
    assert repr(value) in str(error.value)
    assert accepted in str(error.value)


def test_mixing_wants_an_even_batch():
    FitConfig(batch_size=7)
    with pytest.raises(BadInput, match=r"batch_size=7 .* even batch_size"):
        FitConfig(batch_size=7, cutmix=1.0)


def test_json_round_trip():
    config = FitConfig(lr=0.1 + 0.2, betas=(0.9, 0.95), augment=Augment(crop="pad", scale=(0.5, 1.0)), ema_decay=0.99)
    assert FitConfig(**config.to_json()) == config
    assert FitConfig(**FitConfig(augment="light").to_json()).augment == "light"
