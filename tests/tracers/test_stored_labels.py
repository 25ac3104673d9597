"""Tracer: labels that a teacher stored are found by key: in another order, on other processes, after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import leanvit as lv
from leanvit.data import Values
from leanvit.tasks import Task, task

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on

SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "in_chans": 1, "num_classes": 4}
PREPROCESS = lv.Preprocess((1, 8, 8), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)


def stored(key: str) -> list[float]:
    """The label of a key: four numbers that no other key has."""
    return np.random.default_rng(list(key.encode())).random(4).round(4).tolist()


@task("tracer_stored")
@dataclass(frozen=True)
class Stored(Task):
    """Learn what was stored, and check of each image that it is its own."""

    needs: ClassVar[tuple[str, ...]] = ("stored",)

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        own = torch.tensor([stored(key) if key else [0.0] * 4 for key in batch.keys])
        assert torch.allclose(batch["stored"], own), "each image has the label of its key"
        return F.mse_loss(outputs, batch["stored"])


def shards(folder: Path, found: Any) -> str:
    """The images in four shards."""
    for number in range(4):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for sample in list(found)[number::4]:
                content = BytesIO()
                sample.image.save(content, "png")
                info = tarfile.TarInfo(f"{sample.key.replace('.', '_')}.png")
                info.size = content.tell()
                tar.addfile(info, BytesIO(content.getvalue()))
    return f"wds:{folder}/part-{{0..3}}.tar?labels=none"


def data(where: str, seed: int) -> Any:
    """The data set with its labels in an order of the seed."""
    found: Any = lv.open_dataset(where, "train", **({"limit": 192} if where == "digits" else {}))
    keys = [sample.key for sample in found]
    order = np.random.default_rng(seed).permutation(len(keys))
    kept = np.array([stored(keys[i]) for i in order], dtype=np.float32)
    return found.without_labels().with_field("stored", Values(kept, keys=[keys[i] for i in order]))


def train(where: str, out: Path, seed: int, dies_at: int = 0) -> None:
    def after_step(run: Any) -> None:
        if run.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZES)
    config = lv.FitConfig(epochs=3, batch_size=32, lr=1e-2, optimizer="sgd", save_every=2, augment="light")
    callbacks = (SimpleNamespace(after_step=after_step),)
    resume = (out / "training/state.safetensors").is_file()
    lv.fit(
        model, data(where, seed), preprocess=PREPROCESS, config=config, task=Stored(), out=out, callbacks=callbacks,
        resume=resume,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(model.state_dict(), out / "weights.pt")


def weights(out: Path) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = torch.load(out / "weights.pt", weights_only=True)
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("source", ["digits", "shards"])
def test_found_by_key_wherever_they_are(one_thread: None, tmp_path: Path, source: str) -> None:
    where = source if source == "digits" else shards(tmp_path, lv.open_dataset("digits", "train", limit=192))
    assert run_on(1, train, where, tmp_path / "whole", 0) == [0]
    assert run_on(1, train, where, tmp_path / "killed", 1, 9) == [-signal.SIGKILL]
    assert run_on(1, train, where, tmp_path / "killed", 2) == [0]  # goes on, and the labels lie in another order
    assert run_on(2, train, where, tmp_path / "two", 3) == [0, 0]
    whole, again, two = (weights(tmp_path / name) for name in ("whole", "killed", "two"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert all(torch.allclose(tensor, two[name], atol=1e-5) for name, tensor in whole.items())
    logs = [(tmp_path / name / "train.jsonl").read_text().splitlines()[-1] for name in ("whole", "two")]
    one, other = (json.loads(line)["loss"] for line in logs)
    assert other == pytest.approx(one, abs=1e-6) and one < 0.2
