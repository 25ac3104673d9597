"""The one way in which a compressed run is saved: every row of its methods, and the log of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanvit.data import Preprocess
from leanvit.recipe import Root, create, load_run
from leanvit.recipe.steps import STEPS
from leanvit.runs.layout import TRAINING_LOG
from leanvit.runs.record import read_run
from leanvit.runs.saving import TargetRow, asked_rows, save_compressed

ROOT = Root(
    "vit_tiny_patch16_224",
    {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "in_chans": 1, "num_classes": 2},
)
BEFORE = TargetRow("evit", {"keep_rate": 0.7}, {"macs": 0.8}, ("macs 0.8 of 0.7",), {"macs": 0.8, "macs_total": 0.8})
NOW = TargetRow("int8", {}, {"products": 9})


def saved(folder: Path, info: dict[str, Any]) -> Path:
    model = create(ROOT)
    save_compressed(model, folder, [NOW], preprocess=Preprocess.of(model), info=info, data="digits")
    return folder


def test_rows_of_before_stay_with_what_they_missed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", {"asked": [BEFORE.to_json()], "data": "other", "top1": 0.5})
    assert read_run(folder).asked == (BEFORE, NOW)
    assert load_run(folder).info["asked"][0]["missed"] == ["macs 0.8 of 0.7"]
    assert (read_run(folder).data, load_run(folder).info["top1"]) == ("digits", 0.5)


def test_what_a_run_says_of_its_own_making_is_not_handed_on(tmp_path: Path) -> None:
    info = load_run(saved(tmp_path / "run", {"made_with": {"torch": "0.1"}, "steps": "a", "frozen": ["b"]})).info
    assert "steps" not in info and "frozen" not in info and info["made_with"]["torch"] != "0.1"


def test_the_log_of_the_last_step_becomes_the_runs(tmp_path: Path) -> None:
    for number, text in ((1, "first"), (2, "last")):
        step = tmp_path / "run" / STEPS / f"{number}-recovery"
        step.mkdir(parents=True)
        (step / "train.jsonl").write_text(text)
    assert (saved(tmp_path / "run", {}) / TRAINING_LOG).read_text() == "last"


@pytest.mark.parametrize("asked", [None, "x", [1, "x", None], [{"share": {"macs": "0.5"}, "missed": 3, "asked": []}]])
def test_rows_of_another_shape_are_read_as_far_as_they_go(asked: Any) -> None:
    assert all(row == TargetRow("", {}, {}) for row in asked_rows({"asked": asked}))
