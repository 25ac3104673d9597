import pytest

from leanvit.data import Augment
from leanvit.errors import BadInput
from leanvit.training import FitConfig


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("epochs", 0, "a whole number, 1 or more"),
        ("epochs", 2.5, "a whole number, 1 or more"),
        ("epochs", True, "a whole number, 1 or more"),
        ("batch_size", -4, "a whole number, 1 or more"),
        ("accumulate", 0, "a whole number, 1 or more"),
        ("workers", -1, "a whole number, 0 or more"),
        ("seed", "0", "a whole number, 0 or more"),
        ("save_every", 0, "a whole number, 1 or more"),
        ("lr", 0.0, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("lr", "1e-3", "a number above 0"),
        ("min_lr", 1.0, "up to 0.001, which is lr"),
        ("warmup_epochs", 10, "below 10"),
        ("weight_decay", -0.1, "0 or more"),
        ("label_smoothing", 1.0, "from 0, below 1"),
        ("mixup", -1, "0 or more"),
        ("clip_grad", 0, "above 0"),
        ("ema_decay", 1.0, "from 0, below 1"),
        ("cooldown_epochs", 10, "below 10"),
        ("lr_per_epoch", 1, "true or false"),
        ("ema_warmup", 1, "true or false"),
        ("betas", 0.9, "a list of 2, each a number from 0, below 1"),
        ("betas", (0.9, 1.0), "from 0, below 1"),
        ("schedule", "line", "cosine, linear or constant"),
        ("amp", "fp8", "fp32, bf16 or fp16"),
        ("parallel", "fsdp", "ddp or fsdp2"),
        ("train_mode", "test", "train or eval"),
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
    with pytest.raises(BadInput, match=r"batch_size is 7; .* even batch_size"):
        FitConfig(batch_size=7, cutmix=1.0)


def test_json_round_trip():
    config = FitConfig(lr=0.1 + 0.2, betas=(0.9, 0.95), augment=Augment(crop="pad", scale=(0.5, 1.0)), ema_decay=0.99)
    assert FitConfig(**config.to_json()) == config
    assert FitConfig(**FitConfig(augment="light").to_json()).augment == "light"
