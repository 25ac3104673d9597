"""The run that has everything on, and what stops it."""

from __future__ import annotations

from typing import Any

import torch
from tiny_training import make_model
from torch import nn

from leanvit.data import Augment, Dataset, Preprocess
from leanvit.training import FitConfig, FitResult, fit

# everything that draws is on: order, augmentation, erasing, mixing, drop path; 4 steps an epoch, 12 in all
EVERYTHING = FitConfig(
    epochs=3,
    batch_size=12,
    accumulate=2,
    lr=3e-3,
    warmup_epochs=0.5,
    clip_grad=1.0,
    mixup=0.4,
    cutmix=1.0,
    augment=Augment(erase=0.3),
    ema_decay=0.9,
    save_every=2,
)
DROPS = {"drop_path_rate": 0.3, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1}


class At:
    """A callback that does something once, after a given step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def after_step(self, run):
        if run.step == self.step:
            self.do(run)


class Killed(Exception):
    pass


def kill(run):
    raise Killed


def run_everything(data: Dataset, preprocess: Preprocess, val_data: Dataset | None = None, **kwargs: Any) -> FitResult:
    model = make_model(**DROPS)
    config = kwargs.pop("config", EVERYTHING)
    return fit(model, data, preprocess=preprocess, config=config, validate=val_data, **kwargs)


def changed(**settings: Any) -> FitConfig:
    """EVERYTHING with some fields changed."""
    return FitConfig(**{**EVERYTHING.to_json(), **settings})


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, other[name]), name


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]
