"""Training on from a run: a fresh optimiser on its weights, the record of both stages, the root as it was."""

from __future__ import annotations

import json

import pytest
import torch
from two_stages import LIMIT, Stages

from leanvit.data import open_dataset
from leanvit.recipe import load_run
from leanvit.training import FitConfig, fit
from leanvit.verbs import train
from leanvit.verbs.folders import commands_of, training_logs


def test_the_second_stage_starts_from_the_weights_of_the_first(stages: Stages, tmp_path) -> None:
    settings = {"epochs": 1, "batch_size": 10, "lr": 1e-30, "min_lr": 0.0}
    train(stages.first, "digits", settings=settings, limit=20, out=tmp_path / "same")
    first, same, second = (load_run(f).model.state_dict() for f in (stages.first, tmp_path / "same", stages.second))
    assert all(torch.equal(first[key], same[key]) for key in first), "a rate of nothing changes nothing"
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_the_root_keeps_its_patch_dropout(stages: Stages) -> None:
    for folder in (stages.first, stages.second, stages.published.folder):
        model = load_run(folder).model
        assert model.history.root.kwargs["patch_drop_rate"] == 0.5
        assert model.history.plans == ()


def test_the_second_stage_sees_every_patch(stages: Stages) -> None:
    """`train_mode=eval` keeps patch dropout off; with `train` half the patches are dropped."""
    run = load_run(stages.first)
    counted: dict[str, set[int]] = {}
    for mode in ("train", "eval"):
        seen: list[int] = []
        norm = run.model.blocks[0].norm1
        hook = norm.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.shape[1]))
        data = open_dataset("digits", "train", limit=20)
        fit(run.model, data, preprocess=run.preprocess, config=FitConfig(epochs=1, batch_size=10, train_mode=mode))
        hook.remove()
        counted[mode] = set(seen)
    assert counted == {"train": {1 + 8}, "eval": {1 + 16}}


def test_the_optimiser_is_fresh(stages: Stages) -> None:
    starts = [json.loads(log.read_text().splitlines()[0]) for log in training_logs(stages.second)]
    assert [(s["step"], s["epochs"], s["lr"], s["train_mode"]) for s in starts] == [
        (0, 12, 2e-3, "train"),
        (0, 2, 1e-4, "eval"),
    ]


def test_the_run_says_both_stages(stages: Stages) -> None:
    info, before = load_run(stages.second).info, load_run(stages.first).info
    assert info["from"] == "a" and "from" not in before
    assert info["training"]["train_mode"] == "eval" and info["training"]["epochs"] == 2
    (stage,) = info["stages"]
    assert stage == {key: before[key] for key in ("data", "training", "top1", "machine")}
    assert [c.verb for c in commands_of(stages.second)] == ["train", "train"]
    assert commands_of(stages.second)[0] == commands_of(stages.first)[0]
    logs = training_logs(stages.second)
    assert [log.name for log in logs] == ["train-1.jsonl", "train.jsonl"]
    assert logs[0].read_bytes() == (stages.first / "train.jsonl").read_bytes()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_second_stage_goes_on(stages: Stages, tmp_path, monkeypatch) -> None:
    settings = {"epochs": 2, "batch_size": 20, "lr": 1e-4, "train_mode": "eval", "save_every": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("leanvit.verbs.progress.EpochLines.end_epoch", _stop)
        train(stages.first, "digits", settings=settings, limit=LIMIT, out=tmp_path / "b")
    train(stages.first, "digits", settings=settings, limit=LIMIT, out=tmp_path / "b", resume=True)
    ours, theirs = (load_run(f).model.state_dict() for f in (tmp_path / "b", stages.second))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [log.name for log in training_logs(tmp_path / "b")] == ["train-1.jsonl", "train.jsonl"]
