"""A run of a model of parts through the verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leanvit.anatomy.composite import Composite, OpenPart, Wiring, part, wiring
from leanvit.data import Preprocess
from leanvit.errors import Refused
from leanvit.recipe import Recovery, Root, compose, load_run, save
from leanvit.report import write_report
from leanvit.tokens.tome import ToMe
from leanvit.verbs import compare_methods, compress, measure, train

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 0}
DATA = "digits"


@part("test_verbs_head")
class Head(OpenPart):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


@wiring("test_verbs_headed")
@dataclass(frozen=True)
class Headed(Wiring):
    """A head on the backbone's features."""

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        parts: Any = model
        feature, state = parts.backbone.trace(images, **context)
        return parts.head(feature), state

    def outputs(self, parts: Mapping[str, nn.Module]) -> int:
        head: Any = parts["head"]
        return int(head.fc.out_features)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    parts = {
        "backbone": Root("vit_tiny_patch16_224", SMALL),
        "head": Root("test_verbs_head", {"channels": 12, "classes": 10}),
    }
    folder = tmp_path_factory.mktemp("parts") / "run"
    model = compose(Headed(), parts)
    save(model, folder, preprocess=Preprocess.of(model), classes=list("0123456789"))
    return folder


def test_it_is_trained_compressed_measured_and_reported(run: Path, tmp_path: Path) -> None:
    dense, lean = tmp_path / "dense", tmp_path / "lean"
    train(str(run), DATA, limit=20, settings={"epochs": 1, "batch_size": 10}, out=dense)
    given = {"limit": 20, "latency_batch": 1, "recovery": Recovery(epochs=1, batch_size=10)}
    done = compress(dense, [ToMe(r=2)], DATA, out=lean, **given)
    assert done.label == "tome (backbone)" and done.comparison is not None
    (plan,) = load_run(lean).model.history.plans
    assert (plan.slug, plan.part) == ("tome", "backbone")
    measured = measure(lean, DATA, against=[dense], limit=20, rounds=3, latency_batch=1, out=tmp_path / "m.json")
    assert [row.name for row in measured.comparison.rows] == ["dense", "tome (backbone)"]
    page = write_report([lean, dense], tmp_path / "page.html").read_text()
    assert 'id="tokens"' in page and "test_verbs_headed(backbone=vit_tiny_patch16_224, head=test_verbs_head)" in page


def test_methods_are_not_compared_on_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"run is a model of parts: apply methods to one of them.*--part NAME"):
        compare_methods(run, DATA, ["tome"], limit=20, out=tmp_path / "here")
    assert not (tmp_path / "here").exists()
