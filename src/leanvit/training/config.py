"""What a training run is made of, as plain data: every number of the recipe, checked before anything starts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from leanvit.data import Augment
from leanvit.errors import BadInput, is_number, is_whole

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp2")
TRAIN_MODES = ("train", "eval")
OPTIMIZERS = ("adamw", "nadamw", "lamb", "lion", "sgd", "momentum")  # timm's names; "sgd" is Nesterov's, as there
_WITH_MOMENTUM = ("sgd", "momentum")
_BETAS, _MOMENTUM, _LR = (0.9, 0.999), 0.9, 1e-3


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Recipe of one `fit`.

    One optimiser step sees `batch_size * accumulate` images. The learning rate is absolute, `lr`, or the product
    `lr_base * images / lr_base_size` (linear scaling, arXiv 1706.02677), which `lr` then holds: nothing is scaled
    behind the user's back. Field names follow timm's. Raises `BadInput` that names the field, its value and what is
    accepted.
    """

    epochs: int = 10
    batch_size: int = 128  # images per forward, on all processes together
    accumulate: int = 1  # forwards per optimiser step
    repeats: int = 1  # views of an image in a batch (repeated augmentation, DeiT: 3); an epoch stays as long
    lr: float = None  # type: ignore[assignment]  # peak learning rate, after the warm-up; None: the product, or 1e-3
    lr_base: float | None = None  # learning rate for `lr_base_size` images a step, instead of lr
    lr_base_size: int | None = None
    lr_counts_accumulation: bool = False  # whether the images of `lr_base` are those of all forwards of a step
    min_lr: float = 1e-6  # where the cosine ends; never scaled
    warmup_epochs: float = 0.0  # linear warm-up; fractions of an epoch are fine
    warmup_lr: float | None = None  # where the warm-up starts, never scaled; None: at lr / steps
    warmup_prefix: bool = True  # the schedule begins behind the warm-up; False: at the run's start, under it
    cooldown_epochs: float = 0.0  # the last of the epochs, at min_lr: the schedule ends before them
    lr_per_epoch: bool = False  # whether the rate stays through an epoch, at its value for the epoch's beginning
    schedule: str = "cosine"  # after the warm-up: "cosine" or "linear" down to min_lr, or "constant" at lr
    optimizer: str = "adamw"  # or "nadamw", "lamb", "lion", "sgd" (Nesterov), "momentum": timm's
    weight_decay: float = 0.05  # never on biases, norms and the model's no_weight_decay()
    betas: tuple[float, float] = _BETAS
    momentum: float = _MOMENTUM  # of sgd and momentum
    layer_decay: float | None = None  # factor on lr from each layer to the one below it, by timm's groups of layers
    backbone_lr_scale: float = 1.0  # factor on lr of all but the classifier (fine-tuning with a fresh one)
    clip_grad: float | None = None  # largest global gradient norm
    label_smoothing: float = 0.0  # of the default objective; an objective that is given brings its own
    mixup: float = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: float = 0.0  # likewise; with both on, each batch draws one of the two
    mix_prob: float = 1.0  # share of batches that are mixed
    mix_switch_prob: float = 0.5  # with both on: the share of cutmix
    mix_off_epoch: int | None = None  # from this epoch on (the first is 0) nothing is mixed
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
        for name in ("epochs", "batch_size", "accumulate", "repeats"):
            _whole(name, getattr(self, name), least=1)
        _whole("seed", self.seed, least=0)
        _whole("workers", self.workers, least=0)
        if self.save_every is not None:
            _whole("save_every", self.save_every, least=1)
        self._settle_lr()
        _number("min_lr", self.min_lr, least=0.0, most=self.lr)
        _number("cooldown_epochs", self.cooldown_epochs, least=0.0, below=self.epochs)
        _number("warmup_epochs", self.warmup_epochs, least=0.0, below=self.epochs - self.cooldown_epochs)
        if self.warmup_lr is not None:
            _number("warmup_lr", self.warmup_lr, least=0.0, most=self.lr)
        _number("weight_decay", self.weight_decay, least=0.0)
        _number("backbone_lr_scale", self.backbone_lr_scale, above=0.0, most=1.0)
        _number("label_smoothing", self.label_smoothing, least=0.0, below=1.0)
        _number("mixup", self.mixup, least=0.0)
        _number("cutmix", self.cutmix, least=0.0)
        _number("mix_prob", self.mix_prob, least=0.0, most=1.0)
        _number("mix_switch_prob", self.mix_switch_prob, least=0.0, most=1.0)
        if self.mix_off_epoch is not None:
            _whole("mix_off_epoch", self.mix_off_epoch, least=0)
        if self.clip_grad is not None:
            _number("clip_grad", self.clip_grad, above=0.0)
        if self.ema_decay is not None:
            _number("ema_decay", self.ema_decay, least=0.0, below=1.0)
        if not _is_sequence(self.betas) or len(self.betas) != 2 or not all(map(_is_fraction, self.betas)):
            raise BadInput(f"betas={self.betas!r} is not accepted: give two numbers >= 0 and < 1")
        self._check_optimizer()
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("amp", self.amp, PRECISIONS)
        _one_of("train_mode", self.train_mode, TRAIN_MODES)
        _one_of("parallel", self.parallel, PARALLEL)
        for name in ("ema_warmup", "compile", "warmup_prefix", "lr_per_epoch"):
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

    def _settle_lr(self) -> None:
        """Check the learning rate, given or as a product, and put what it comes to into `lr`."""
        if not isinstance(self.lr_counts_accumulation, bool):
            raise BadInput(
                f"lr_counts_accumulation={self.lr_counts_accumulation!r} is not accepted: give true or false"
            )
        if self.lr is not None:
            _number("lr", self.lr, above=0.0)
        if self.lr_base is None:
            if self.lr_base_size is not None or self.lr_counts_accumulation:
                given = f"lr_base_size={self.lr_base_size!r} and lr_counts_accumulation={self.lr_counts_accumulation}"
                raise BadInput(f"{given} are of lr_base: give it too, or leave them out")
            object.__setattr__(self, "lr", _LR if self.lr is None else self.lr)
            return
        _number("lr_base", self.lr_base, above=0.0)
        if self.lr_base_size is None:
            raise BadInput(f"lr_base={self.lr_base!r} needs lr_base_size, the images a step that it is meant for")
        _whole("lr_base_size", self.lr_base_size, least=1)
        product = self.lr_base * self._lr_images / self.lr_base_size
        if self.lr not in (None, product):
            raise BadInput(
                f"lr={self.lr!r} and lr_base={self.lr_base!r} are both given, and lr_base comes to {product!r} "
                f"({self.lr_text}): give one of the two (lr=None where lr_base is changed)"
            )
        object.__setattr__(self, "lr", product)

    def _check_optimizer(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _number("momentum", self.momentum, least=0.0, below=1.0)
        turns = self.optimizer in _WITH_MOMENTUM
        idle = ("betas", self.betas, _BETAS) if turns else ("momentum", self.momentum, _MOMENTUM)
        if idle[1] != idle[2]:
            raise BadInput(f"{idle[0]}={idle[1]!r} is not accepted with optimizer={self.optimizer!r}, which has none")
        if self.layer_decay is not None:
            _number("layer_decay", self.layer_decay, above=0.0, most=1.0)

    @property
    def _lr_images(self) -> int:
        return self.batch_size * (self.accumulate if self.lr_counts_accumulation else 1)

    @property
    def lr_text(self) -> str:
        """The peak learning rate as it came about: `0.001`, or `0.0005 x 1024 / 512 = 0.001`."""
        if self.lr_base is None:
            return f"{self.lr:g}"
        product = self.lr_base * self._lr_images / (self.lr_base_size or 1)
        return f"{self.lr_base:g} x {self._lr_images} / {self.lr_base_size} = {product:g}"

    def mixes_in(self, epoch: int) -> bool:
        """Whether batches of this epoch (from 0) are mixed."""
        return self.mixes and (self.mix_off_epoch is None or epoch < self.mix_off_epoch)

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
