"""Tracer: tasks on one backbone, each measured, counted, calibrated; one and several processes learn alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leanvit as lv
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, part, wiring
from leanvit.data import Masks, Values, loader
from leanvit.recipe import Recovery
from leanvit.tasks import Classification, Heads, Segmentation

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on


@part("tracer_linear_head")
class LinearHead(OpenPart):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.ops.linear("fc", self.fc, x)


@part("tracer_map_head")
class MapHead(OpenPart):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, classes, 1)

    def forward(self, x: Any) -> Any:
        return self.ops.conv("proj", self.proj, x)


@wiring("tracer_heads")
@dataclass(frozen=True)
class ThreeHeads(Wiring):
    """Two classes of the image and one of each pixel."""

    required: ClassVar[tuple[str, ...]] = ("digit_head", "ink_head", "mask_head")
    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"maps", "width"})}

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        maps, state = model.main_part.trace_maps(images, **context)
        pooled = maps[-1].mean(dim=(2, 3))
        heads = {name: model.parts[f"{name}_head"] for name in TASK.tasks}
        return {name: head(maps[-1] if name == "mask" else pooled) for name, head in heads.items()}, state


SIZES = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1, "num_classes": 0}
PREPROCESS = lv.Preprocess((1, 8, 8), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)
TASK = Heads(
    {
        "digit": Classification(),
        "ink": Classification(field="ink", classes=("little", "some", "much")),
        "mask": Segmentation(classes=("none", "faint", "full"), ignore=255),
    }
)


SCORES = ("digit.top1", "ink.top1", "mask.miou", "mask.pixels")


def digits(split: str) -> Any:
    """Digits, how much ink they have (a third of them each), and where; more pixels of some images are not counted."""
    found: Any = lv.open_dataset("digits", split, limit=480)
    ink = np.array([np.asarray(sample.image, dtype=float).mean() for sample in found])
    masks = [np.digitize(np.asarray(sample.image), (40, 160)).astype(np.uint8) for sample in found]
    for number, mask in enumerate(masks):
        mask[: number % 7] = 255
    inked = found.with_field("ink", Values(np.searchsorted(np.quantile(ink, [1 / 3, 2 / 3]), ink).tolist()))
    return inked.with_field("mask", Masks(masks, ignore=255))


def made() -> Any:
    torch.manual_seed(0)
    heads = {
        "digit_head": lv.Root("tracer_linear_head", {"width": 24, "classes": 10}),
        "ink_head": lv.Root("tracer_linear_head", {"width": 24, "classes": 3}),
        "mask_head": lv.Root("tracer_map_head", {"width": 24, "classes": 3}),
    }
    model = lv.compose(ThreeHeads(), {"backbone": lv.Root("vit_tiny_patch16_224", SIZES), **heads})
    model.task = TASK
    return model


def train(out: Path, epochs: int = 24) -> Any:
    config = lv.FitConfig(epochs=epochs, batch_size=32, lr=3e-3)
    result = lv.fit(made(), digits("train"), preprocess=PREPROCESS, config=config, out=out, validate=digits("val"))
    last = result.history[-1]
    assert (
        result.task == TASK.fitted(digits("val"))
        and last["digit.top1"] == result.last_score
        and 0.2 < last["ink.top1"] <= 1
    )
    return result.model


def outputs_of(model: Any) -> dict[str, Tensor]:
    batch = next(iter(loader(digits("val"), PREPROCESS, batch_size=359)))
    with torch.no_grad():
        found: dict[str, Tensor] = model(batch.images)
    return found


@pytest.mark.e2e
def test_each_head_is_measured_counted_and_calibrated(one_thread: None, tmp_path: Path) -> None:
    dense, size = train(tmp_path), PREPROCESS.input_size
    data = lv.Data(digits("train"), PREPROCESS)
    methods = [lv.ToMe(r=4), lv.NViT(macs=0.8, interval=4, max_steps=12, batch_size=32)]
    lean = lv.compress(dense, methods, data, recovery=Recovery(epochs=2, batch_size=32, lr=1e-3))
    rounded = lean
    for name in ("backbone", "digit_head", "ink_head", "mask_head"):
        rounded = lv.compress(rounded, [lv.Int8(images=64)], data, part=name)
    sites = {plan.part: len(plan.structure["sites"]) for plan in rounded.history.plans if plan.slug == "int8"}
    assert sites["digit_head"] == sites["ink_head"] == sites["mask_head"] == 1 < sites["backbone"]
    lv.save(rounded, tmp_path / "run", preprocess=PREPROCESS)
    loaded = lv.load(tmp_path / "run")
    assert (
        loaded.task == dense.task
        and loaded.task.at("digit").classes[3] == "3"
        and all(torch.equal(tensor, outputs_of(loaded)[name]) for name, tensor in outputs_of(rounded).items())
    )
    macs = {name: lv.count(model, size).macs for name, model in (("dense", dense), ("lean", lean))}
    assert lv.count(dense.at("ink"), size).macs == macs["dense"] > macs["lean"]
    runners, val = {"dense": dense, "rounded": rounded}, digits("val")
    table = lv.compare(runners, val, preprocess=PREPROCESS, rounds=3)
    assert [metric.name for metric in table.metrics] == [*SCORES]
    for head, task in TASK.tasks.items():
        score = table.score_of(table.row("dense"), f"{head}.{task.metric.name}")
        alone = lv.compare({name: one.at(head) for name, one in runners.items()}, val, preprocess=PREPROCESS, rounds=3)
        assert alone.row("dense").score == score and score.value > 25
        assert alone.row("rounded").agreement_percent.value > 70


@pytest.mark.e2e
def test_one_and_two_processes_learn_and_judge_alike(one_thread: None, tmp_path: Path) -> None:
    assert run_on(1, train, tmp_path / "1", 1) == [0] and run_on(2, train, tmp_path / "2", 1) == [0, 0]
    one, two = (json.loads((tmp_path / n / "train.jsonl").read_text().splitlines()[-1]) for n in "12")
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert {n: one[n] for n in SCORES} == pytest.approx({n: two[n] for n in SCORES}, abs=1e-3)


@pytest.mark.e2e
def test_a_batch_in_pieces_is_the_step_of_the_whole(one_thread: None, tmp_path: Path) -> None:
    """Also where the pieces count other numbers of pixels: each mean is over all that the step has of its kind."""
    weights = []
    for accumulate in (1, 4):
        config = lv.FitConfig(epochs=1, batch_size=32 // accumulate, accumulate=accumulate, lr=3e-3)
        model = lv.fit(made(), digits("train"), preprocess=PREPROCESS, config=config).model
        weights.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    torch.testing.assert_close(*weights, atol=1e-4, rtol=0)
