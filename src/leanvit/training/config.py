"""What a training run is made of, as plain data: every number of the recipe, checked before anything starts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from leanvit.data import Augment
from leanvit.errors import BadInput, is_number, is_whole

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp2")
TRAIN_MODES = ("train", "eval")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Recipe of one `fit`.

    The learning rate is absolute: nothing is scaled by batch size behind the user's back. One optimiser step sees
    `batch_size * accumulate` images. Raises `BadInput` that names the field, its value and what is accepted.
    """

    epochs: int = 10
    batch_size: int = 128  # images per forward, on all processes together
    accumulate: int = 1  # forwards per optimiser step
    lr: float = 1e-3  # peak learning rate, reached at the end of the warm-up
    min_lr: float = 1e-6  # where the cosine ends
    warmup_epochs: float = 0.0  # linear warm-up from lr / steps; fractions of an epoch are fine
    schedule: str = "cosine"  # after the warm-up: "cosine" down to min_lr, or "constant" at lr
    weight_decay: float = 0.05  # AdamW; never on biases, norms and the model's no_weight_decay()
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None  # largest global gradient norm
    label_smoothing: float = 0.0  # of the default objective; an objective that is given brings its own
    mixup: float = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: float = 0.0  # likewise; with both on, each batch draws one of the two
    augment: Augment | str | None = None  # of `leanvit.data`, or the name of a preset there
    ema_decay: float | None = None  # exponential moving average of the weights, validated instead of them
    ema_warmup: bool = True  # lets the average follow closely at first: without it short runs average noise
    # "bf16" and "fp16" run forwards under autocast; weights and optimiser stay float32. fp16 scales the loss; where the
    # scaled gradient overflows, run.step and the schedule go on, but weights and averages stay and no after_step comes
    amp: str = "fp32"
    train_mode: str = "train"  # "eval" keeps dropout and drop path off (fine-tuning of EViT, NViT)
    seed: int = 0
    workers: int = 0  # loader processes; never changes a result
    save_every: int | None = None  # optimiser steps between resumable states; None: at each epoch's end
    parallel: str = "ddp"  # of several processes: each holds the model, or "fsdp2": a share of it
    compile: bool = False  # torch.compile of the model's forward

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas) if _is_sequence(self.betas) else self.betas)
        for name in ("epochs", "batch_size", "accumulate"):
            _whole(name, getattr(self, name), least=1)
        _whole("seed", self.seed, least=0)
        _whole("workers", self.workers, least=0)
        if self.save_every is not None:
            _whole("save_every", self.save_every, least=1)
        _number("lr", self.lr, above=0.0)
        _number("min_lr", self.min_lr, least=0.0, most=self.lr)
        _number("warmup_epochs", self.warmup_epochs, least=0.0, below=self.epochs)
        _number("weight_decay", self.weight_decay, least=0.0)
        _number("label_smoothing", self.label_smoothing, least=0.0, below=1.0)
        _number("mixup", self.mixup, least=0.0)
        _number("cutmix", self.cutmix, least=0.0)
        if self.clip_grad is not None:
            _number("clip_grad", self.clip_grad, above=0.0)
        if self.ema_decay is not None:
            _number("ema_decay", self.ema_decay, least=0.0, below=1.0)
        if not _is_sequence(self.betas) or len(self.betas) != 2 or not all(map(_is_fraction, self.betas)):
            raise BadInput(f"betas={self.betas!r} is not accepted: give two numbers >= 0 and < 1")
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("amp", self.amp, PRECISIONS)
        _one_of("train_mode", self.train_mode, TRAIN_MODES)
        _one_of("parallel", self.parallel, PARALLEL)
        for name in ("ema_warmup", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise BadInput(f"{name}={getattr(self, name)!r} is not accepted: give true or false")
        if self.compile and self.parallel == "fsdp2":
            raise BadInput("compile=True is not accepted with parallel='fsdp2': give one of the two")
        if isinstance(self.augment, dict):  # as `to_json` writes it
            object.__setattr__(self, "augment", Augment.from_json(self.augment))
        Augment.of(self.augment)
        if self.mixes and self.batch_size % 2:
            raise BadInput(
                f"batch_size={self.batch_size} is not accepted with mixup={self.mixup} and cutmix={self.cutmix}: "
                "images are mixed in pairs, give an even batch_size"
            )

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON data; `FitConfig(**data)` gives it back."""
        return json.loads(json.dumps(asdict(self)))


def _is_sequence(value: object) -> bool:
    return isinstance(value, (tuple, list))


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _whole(name: str, value: object, *, least: int) -> None:
    if not is_whole(value, least=least):
        raise BadInput(f"{name}={value!r} is not accepted: give a whole number >= {least}")


def _number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Check least <= value <= most and above < value < below."""
    bounds = [(">=", least), (">", above), ("<=", most), ("<", below)]
    accepted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    if not is_number(value, least=least, most=most, above=above) or not value < below:  # type: ignore[operator]
        raise BadInput(f"{name}={value!r} is not accepted: give a number {accepted}")


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise BadInput(f"{name}={value!r} is not accepted: give one of {', '.join(map(repr, accepted))}")
