"""The docs' task of one's own: short, right by its definition, and through every verb by the commands of its page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import amount
import pytest
import timm
import torch
from amount import Amount
from typer.testing import CliRunner

import leanvit as lv
from leanvit.cli.main import app
from leanvit.data import Batch, open_dataset
from leanvit.errors import BadInput, CheckpointError
from leanvit.tasks import registry

PAGE = Path(__file__).parents[2] / "docs/own-task.md"
SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1, "num_classes": 1}
PREPROCESS = lv.Preprocess((1, 8, 8), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)


def commands() -> list[list[str]]:
    """The lines of the page's first block of commands."""
    block = re.search(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_it_is_short() -> None:
    assert len(Path(amount.__file__).read_text().splitlines()) <= 80


def test_it_is_the_mean_absolute_error() -> None:
    task, outputs = Amount(values=(0.0, 1.0, 5.0)), torch.tensor([[0.5], [1.0], [2.0]])
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 2, 1]), ["a", "b", "c"])
    rows = task.rows(outputs, batch)
    assert task.score(rows)[0] == pytest.approx((0.5 + 4 + 1) / 3)
    assert task.interval(rows).unit == "steps" and task.metric.better == "lower"
    assert Amount().fitted(open_dataset("digits", "val", limit=10)).values == tuple(range(10))


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    digits = open_dataset("digits", "train", limit=64)
    many = timm.create_model("vit_tiny_patch16_224", **{**SIZES, "num_classes": 10})
    config = lv.FitConfig(epochs=1, batch_size=16)
    with pytest.raises(BadInput, match=r"amount\): the model has 10 outputs; accepted: one"):
        lv.fit(many, digits, preprocess=PREPROCESS, config=config, task=Amount())
    named: Any = digits.take(range(64))
    object.__setattr__(named, "classes", [f"kind {i}" for i in range(10)])
    one = timm.create_model("vit_tiny_patch16_224", **SIZES)
    with pytest.raises(BadInput, match="the label 'kind 0' is no number"):
        lv.fit(one, named, preprocess=PREPROCESS, config=config, task=Amount())


@pytest.mark.e2e
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    verbs = []
    for line in commands():
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, (line, done.output, done.exception)
        verbs.append(line[2])
    assert verbs == ["train", "compress", "measure", "predict", "export", "report", "publish"]
    measured = json.loads((tmp_path / "runs/lean/measure.json").read_text())
    assert measured["format"] == 2 and measured["metrics"][0]["name"] == "mae"
    dense = measured["rows"][0]["scores"][0]
    assert 0 < dense["value"] < 2.2 and dense["unit"] == "steps", "a constant is off by 2.5"
    answers = (tmp_path / "answers.csv").read_text().splitlines()
    assert answers[0].split(",")[:2] == ["image", "amount"] and len(answers) > 300
    assert "mean absolute error" in (tmp_path / "runs/amount/report.html").read_text()
    assert 'metric = "mean absolute error"' in (tmp_path / "published/reference.toml").read_text()
    page = CliRunner().invoke(
        app, ["--import", "amount", "compare-methods", "runs/amount", "--data", "digits", "--macs", "0.7"]
    )
    assert page.exit_code == 0, page.output


@pytest.mark.e2e
def test_the_calls_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    train, val = (open_dataset("digits", split, limit=200) for split in ("train", "val"))
    torch.manual_seed(0)
    model, config = timm.create_model("vit_tiny_patch16_224", **SIZES), lv.FitConfig(epochs=2, batch_size=32, lr=3e-3)
    opened = lv.open_model(model)
    result = lv.fit(opened, train, validate=val, preprocess=PREPROCESS, config=config, task=Amount())
    task = Amount().fitted(train)
    assert result.score == result.history[-1]["mae"] and result.task == opened.task == task
    lean = lv.compress(opened, [lv.ToMe(r=1)], lv.Data(train, PREPROCESS))
    table = lv.compare({"dense": opened, "lean": lean}, val, rounds=3)
    assert table.row("dense").score.value == pytest.approx(result.score)
    assert table.row("lean").change_points is not None and table.metrics[0].unit == "steps"
    lv.save(lean, tmp_path / "run", preprocess=PREPROCESS)
    assert lv.load(tmp_path / "run").task == task
    monkeypatch.setattr(registry, "_TASKS", {k: v for k, v in registry._TASKS.items() if k != "amount"})
    with pytest.raises(CheckpointError, match=r"task 'amount' is not leanvit's, .* --import 'amount'"):
        lv.load(tmp_path / "run")
