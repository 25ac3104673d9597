"""What a training run is made of, as plain data: every number of the recipe, checked before anything starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from leanvit.data import Augment
from leanvit.data.augment import PRESETS
from leanvit.errors import BadInput
from leanvit.knobs import DISTINCT, BelowOne, Choice, Count, Fraction, Index, NonNegative, Positive, Share, check_fields

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp2")
TRAIN_MODES = ("train", "eval")
CLIP_MODES = ("norm", "value", "agc")
LAYER_GROUPS = ("timm", "mae", "tinyvit", "model")  # see `leanvit.training.layer_groups`
OPTIMIZERS = ("adamw", "nadamw", "lamb", "lion", "sgd", "momentum")  # timm's names; "sgd" is Nesterov's, as there
_WITH_MOMENTUM = ("sgd", "momentum")
WITHOUT_EPS = ("sgd", "momentum", "lion")
_BETAS, _MOMENTUM, _LR = (0.9, 0.999), 0.9, 1e-3
# fields that came after the first runs were written: they are recorded where they are set, so that all else stays
_LATER = ("samples", "warmup_steps", "eps", "clip_mode", "layer_groups", "locked")


class _Default(int):
    """A number that nobody gave, so that another field may take its place."""


_EPOCHS = _Default(10)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Recipe of one `fit`.

    One optimiser step sees `batch_size * accumulate` images. A run is `epochs` long, or `samples` images; each of
    `warmup_epochs` and `warmup_steps`, too, takes the place of the other. The learning rate is absolute, `lr`, or the
    product `lr_base * images / lr_base_size` (linear scaling, arXiv 1706.02677), which `lr` then holds: nothing is
    scaled behind the user's back. Field names follow timm's. Raises `BadInput` that names the field, its value and what
    is accepted.
    """

    epochs: Count | None = _EPOCHS  # None beside samples, which come to a number of them only with the data
    samples: Count | None = None  # images that the run sees, views counted, instead of epochs: it ends at that step
    batch_size: Count = 128  # images per forward, on all processes together
    accumulate: Count = 1  # forwards per optimiser step
    repeats: Count = 1  # views of an image in a batch (repeated augmentation, DeiT: 3); an epoch stays as long
    lr: Positive = None  # type: ignore[assignment]  # peak learning rate, after the warm-up; None: the product, or 1e-3
    lr_base: Positive | None = None  # learning rate for `lr_base_size` images a step, instead of lr
    lr_base_size: Count | None = None
    lr_counts_accumulation: bool = False  # whether the images of `lr_base` are those of all forwards of a step
    min_lr: NonNegative = 1e-6  # where the cosine ends; never scaled
    warmup_epochs: NonNegative = 0.0  # linear warm-up; fractions of an epoch are fine
    warmup_steps: Count | None = None  # the same in optimiser steps, instead of warmup_epochs
    warmup_lr: NonNegative | None = None  # where the warm-up starts, never scaled; None: at lr / steps
    warmup_prefix: bool = True  # the schedule begins behind the warm-up; False: at the run's start, under it
    cooldown_epochs: NonNegative = 0.0  # the last of the epochs, at min_lr: the schedule ends before them
    lr_per_epoch: bool = False  # whether the rate stays through an epoch, at its value for the epoch's beginning
    # after the warm-up: "cosine" or "linear" down to min_lr, or "constant" at lr
    schedule: Annotated[str, Choice(SCHEDULES)] = "cosine"
    # or "nadamw", "lamb", "lion", "sgd" (Nesterov), "momentum": timm's
    optimizer: Annotated[str, Choice(OPTIMIZERS)] = "adamw"
    weight_decay: NonNegative = 0.05  # never on biases, norms and the model's no_weight_decay()
    betas: tuple[BelowOne, BelowOne] = _BETAS
    momentum: BelowOne = _MOMENTUM  # of sgd and momentum
    eps: Positive | None = None  # the optimiser's, for the stability of its division; None: its default
    layer_decay: Share | None = None  # factor on lr from each layer to the one below it
    # the layers of layer_decay: timm's, those of MAE's or TinyViT's code, or those that the "model" itself states
    layer_groups: Annotated[str, Choice(LAYER_GROUPS)] = "timm"
    backbone_lr_scale: Share = 1.0  # factor on lr of all but the classifier (fine-tuning with a fresh one)
    locked: Annotated[tuple[str, ...], DISTINCT] = ()  # modules and parameters that learn nothing, by name: "blocks.0"
    clip_grad: Positive | None = None  # largest gradient norm; of the other modes largest value, or factor of AGC
    # what is clipped: the global "norm", each "value", or each unit's norm by that of its weights ("agc", adaptive
    # gradient clipping, arXiv 2102.06171: timm's, so the classifier is left out)
    clip_mode: Annotated[str, Choice(CLIP_MODES)] = "norm"
    label_smoothing: BelowOne = 0.0  # of the default objective; an objective that is given brings its own
    mixup: NonNegative = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: NonNegative = 0.0  # likewise; with both on, each batch draws one of the two
    mix_prob: Fraction = 1.0  # share of batches that are mixed
    mix_switch_prob: Fraction = 0.5  # with both on: the share of cutmix
    mix_off_epoch: Index | None = None  # from this epoch on (the first is 0) nothing is mixed
    augment: Augment | Annotated[str, Choice(PRESETS)] | None = None  # of `leanvit.data`, or the name of a preset there
    ema_decay: BelowOne | None = None  # exponential moving average of the weights, validated instead of them
    ema_warmup: bool = True  # lets the average follow closely at first: without it short runs average noise
    # "bf16" and "fp16" run forwards under autocast; weights and optimiser stay float32. fp16 scales the loss; where the
    # scaled gradient overflows, run.step and the schedule go on, but weights and averages stay and no after_step comes
    amp: Annotated[str, Choice(PRECISIONS)] = "fp32"
    # "eval" keeps dropout and drop path off (fine-tuning of EViT, NViT)
    train_mode: Annotated[str, Choice(TRAIN_MODES)] = "train"
    seed: Index = 0
    workers: Index = 0  # loader processes; never changes a result
    save_every: Count | None = None  # optimiser steps between resumable states; None: at each epoch's end
    # of several processes: each holds the model, or "fsdp2": a share of it
    parallel: Annotated[str, Choice(PARALLEL)] = "ddp"
    compile: bool = False  # torch.compile of the model's forward

    def __post_init__(self) -> None:
        check_fields(self)
        self._settle_lr()
        for name in ("min_lr", "warmup_lr"):
            if (rate := getattr(self, name)) is not None and rate > self.lr:
                raise BadInput(f"{name} is {rate!r}; accepted: up to {self.lr!r}, which is lr")
        self._settle_length()
        turns = self.optimizer in _WITH_MOMENTUM
        name, idle = ("betas", _BETAS) if turns else ("momentum", _MOMENTUM)
        if getattr(self, name) != idle:
            raise BadInput(f"{name} is {getattr(self, name)!r}, but the optimizer {self.optimizer!r} has none")
        if self.eps is not None and self.optimizer in WITHOUT_EPS:
            raise BadInput(f"eps is {self.eps!r}, but the optimizer {self.optimizer!r} has none")
        self._check_clipping()
        if self.layer_groups != "timm" and self.layer_decay is None:
            raise BadInput(f"layer_groups is {self.layer_groups!r}, and they are of layer_decay: give it too")
        if self.compile and self.parallel == "fsdp2":
            raise BadInput("compile is True, and parallel is 'fsdp2': give one of the two")
        if self.mixes and self.batch_size % 2:
            raise BadInput(
                f"batch_size is {self.batch_size}; accepted with mixup {self.mixup} and cutmix {self.cutmix}: an even "
                "batch_size, images are mixed in pairs"
            )

    def _settle_length(self) -> None:
        """Put the default into `epochs`, and refuse lengths that contradict each other (`check_course` knows data)."""
        if self.samples is not None and not isinstance(self.epochs, _Default | None):
            raise BadInput(
                f"samples is {self.samples}, and epochs, which is given too, {self.epochs}: give one of the two "
                "(epochs=None where a recipe is changed)"
            )
        if self.warmup_steps is not None and self.warmup_epochs:
            raise BadInput(
                f"warmup_steps is {self.warmup_steps}, and warmup_epochs, which is given too, {self.warmup_epochs!r}: "
                "give one of the two (warmup_epochs=0 where a recipe is changed)"
            )
        if self.warmup_steps is not None and self.lr_per_epoch:
            raise BadInput("warmup_steps counts steps, and lr_per_epoch is True: give warmup_epochs instead")
        if self.samples is None and self.epochs is None:
            raise BadInput("epochs is None; accepted: a whole number, 1 or more, or samples beside it")
        epochs = None if self.samples is not None or self.epochs is None else int(self.epochs)
        object.__setattr__(self, "epochs", epochs)
        if epochs is None:
            return
        for name, rest in (("cooldown_epochs", 0), ("warmup_epochs", self.cooldown_epochs)):
            if getattr(self, name) >= epochs - rest:
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: below {epochs - rest:g}")

    def _check_clipping(self) -> None:
        if self.clip_mode == "norm":
            return
        if self.clip_grad is None:
            raise BadInput(f"clip_mode is {self.clip_mode!r}, but clip_grad is None: give it too")
        if self.clip_mode == "agc" and self.parallel == "fsdp2":
            raise BadInput("clip_mode is 'agc', which needs whole weights, and parallel is 'fsdp2': give 'ddp'")

    def _settle_lr(self) -> None:
        """Put what the learning rate, given or as a product, comes to into `lr`."""
        if self.lr_base is None:
            if self.lr_base_size is not None or self.lr_counts_accumulation:
                given = f"lr_base_size is {self.lr_base_size!r}, lr_counts_accumulation {self.lr_counts_accumulation}"
                raise BadInput(f"{given}: both are of lr_base: give it too, or leave them out")
            object.__setattr__(self, "lr", _LR if self.lr is None else self.lr)
            return
        if self.lr_base_size is None:
            raise BadInput(
                f"lr_base is {self.lr_base!r}, and needs lr_base_size, the images a step that it is meant for"
            )
        product = self.lr_base * self._lr_images / self.lr_base_size
        if self.lr not in (None, product):
            raise BadInput(
                f"lr is {self.lr!r}, and lr_base, which is given too, comes to {product!r} "
                f"({self.lr_text}): give one of the two (lr=None where lr_base is changed)"
            )
        object.__setattr__(self, "lr", product)

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

    @property
    def length_text(self) -> str:
        """The length of the run: `10 epochs`, `1,000 images`."""
        number, thing = (self.epochs, "epoch") if self.samples is None else (self.samples, "image")
        return f"{number:,} {thing}" + ("" if number == 1 else "s")

    def mixes_in(self, epoch: int) -> bool:
        """Whether batches of this epoch (from 0) are mixed."""
        return self.mixes and (self.mix_off_epoch is None or epoch < self.mix_off_epoch)

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def to_json(self, *, every: bool = False) -> dict[str, Any]:
        """The recipe as JSON data; `FitConfig(**data)` gives it back. Without `every`, later fields only where set."""
        data = json.loads(json.dumps(asdict(self)))
        if every:
            return data
        unset = {f.name for f in fields(self) if f.name in _LATER and getattr(self, f.name) == f.default}
        return {name: value for name, value in data.items() if name not in unset}
