"""Tracer: a backbone with a per-pixel head on masks of digits, trained, made lean, killed and resumed, saved."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import leanvit as lv
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, part, wiring
from leanvit.data import Masks, loader
from leanvit.recipe import Recovery
from leanvit.tasks import Task, task
from leanvit.training import TaskLoss

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on


@part("tracer_pixel_head")
class PixelHead(OpenPart):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Any) -> Any:
        x = self.ops.conv("proj", self.proj, x)
        return self.ops.mix("up", x, lambda t: F.interpolate(t, scale_factor=2.0, mode="bilinear"))


@wiring("tracer_pixels")
@dataclass(frozen=True)
class Segmenter(Wiring):
    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"maps", "width"})}
    classifies: ClassVar[bool] = False

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        maps, state = model.main_part.trace_maps(images, norm=True, **context)
        return model.parts["head"](maps[-1]), state

    def outputs(self, parts: Mapping[str, Any]) -> int:
        return int(parts["head"].proj.out_channels)


SIZES = {"img_size": 16, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1, "num_classes": 0}
BACKBONE = lv.Root("vit_tiny_patch16_224", SIZES)
HEAD = lv.Root("tracer_pixel_head", {"channels": 24, "classes": 3})
PREPROCESS = lv.Preprocess((1, 16, 16), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)


@task("tracer_per_pixel")
class PerPixel(Task):
    """The task: background, faint ink or full ink, of all pixels but those in between (255)."""

    needs = ("mask",)

    def terms(self, batch: Any) -> int:
        return int((batch["mask"] != 255).sum())

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["mask"], ignore_index=255)

    def divergence(self, outputs: Tensor, taught: Tensor, batch: Any, *, temperature: float = 1.0) -> Tensor:
        apart = F.kl_div(outputs.log_softmax(1), taught.log_softmax(1), reduction="none", log_target=True).sum(1)
        return apart[batch["mask"] != 255].mean()


def digits(split: str, *, labels: bool = False) -> Any:
    found: Any = lv.open_dataset("digits", split, limit=480, labels=labels)
    ink = np.stack([np.asarray(sample.image) for sample in found])
    return found.with_field("mask", Masks(np.select([ink < 30, abs(ink - 105.0) < 45, ink > 200], [0, 1, 2], 255)))


def recall(model: Any) -> float:
    """The share of a class's pixels that are found, mean over the classes: 1/3 by chance."""
    batch = next(iter(loader(digits("val"), PREPROCESS, batch_size=359)))
    right = torch.as_tensor(model(batch.images)).argmax(1) == batch["mask"]
    return sum(right[batch["mask"] == kind].float().mean().item() for kind in range(3)) / 3


def train(out: Path, epochs: int = 8) -> Any:
    torch.manual_seed(0)
    model, task = lv.compose(Segmenter(), {"backbone": BACKBONE, "head": HEAD}), TaskLoss(PerPixel())
    config = lv.FitConfig(epochs=epochs, batch_size=32, lr=3e-3, augment="light")
    return lv.fit(model, digits("train"), preprocess=PREPROCESS, config=config, objective=task, out=out).model


def lean(dense: Any, out: Path, dies_at: int = 0) -> Any:
    def after_step(run: Any) -> None:
        if run.step == dies_at and isinstance(run.objective, TaskLoss):  # in the recovery
            os.kill(os.getpid(), signal.SIGKILL)

    data = lv.Data(digits("train"), PREPROCESS, task=PerPixel(), callbacks=(SimpleNamespace(after_step=after_step),))
    methods = [lv.ToMe(r=8), lv.NViT(macs=0.8, interval=4, max_steps=12, batch_size=32), lv.Int8(images=32)]
    recovery = Recovery(epochs=2, batch_size=32, lr=1e-3, settings={"save_every": 2})
    made = lv.compress(dense, methods, data, recovery=recovery, out=out, resume=(out / "steps").is_dir())
    return lv.compress(made, [lv.Int8(images=32)], data, part="head")


@pytest.mark.e2e
def test_lean_with_the_bits_of_a_run_that_was_not_killed(one_thread: None, tmp_path: Path) -> None:
    dense, size = train(tmp_path), PREPROCESS.input_size
    assert run_on(1, lean, dense, tmp_path / "killed", 7) == [-signal.SIGKILL]
    model, whole = lean(dense, tmp_path / "killed"), lean(dense, tmp_path / "whole")
    lv.save(whole, tmp_path / "run", preprocess=PREPROCESS)
    loaded = lv.load(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    sites = [(plan.part, plan.slug, len(plan.structure.get("sites", ()))) for plan in model.history.plans]
    assert sites == [("backbone", "tome", 0), ("backbone", "nvit", 0), ("backbone", "int8", 13), ("head", "int8", 1)]
    assert min(recall(dense), recall(model)) > 0.9 and model(torch.zeros(2, *size)).shape == (2, 3, 16, 16)
    assert lv.count(model, size).macs < 0.75 * lv.count(dense, size).macs
