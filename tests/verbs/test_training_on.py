"""Training on from a run: a fresh optimiser on its weights, the record of both stages, the root as it was."""

from __future__ import annotations

import json

import pytest
import torch
from two_stages import LIMIT, Stages

from leanvit.data import open_dataset
from leanvit.errors import BadInput, Refused
from leanvit.recipe import compress, load_run, save
from leanvit.runs.commands import commands_of
from leanvit.runs.logs import training_logs
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, fit
from leanvit.verbs import train
from zeroing import Zeros, zeros_of


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


def test_a_run_with_pruned_weights_is_trained_on_and_keeps_its_zeros(stages: Stages, tmp_path) -> None:
    """Its structure is that of the dense model; what else made a model lean is refused."""
    lean = compress(load_run(stages.first).model, [Zeros()])
    save(lean, tmp_path / "lean", classes=load_run(stages.first).classes)
    settings = {"epochs": 1, "batch_size": 10, "lr": 1e-3}
    train(tmp_path / "lean", "digits", settings=settings, limit=20, out=tmp_path / "on")
    model = load_run(tmp_path / "on").model
    assert model.sparse == lean.sparse and [plan.slug for plan in model.history.plans] == ["test_zeros"]
    after = zeros_of(model)
    assert all(torch.equal(zeros, after[name]) for name, zeros in zeros_of(lean).items())
    assert not torch.equal(model.get_parameter("head.weight"), lean.get_parameter("head.weight"))
    save(compress(lean, [EViT(keep_rate=0.5, blocks=(1,))]), tmp_path / "both")
    with pytest.raises(Refused, match=r"both is not dense \(test_zeros \+ evit\)"):
        train(tmp_path / "both", "digits", settings=settings, limit=20, out=tmp_path / "off")


def test_a_run_gets_a_fresh_classifier_for_other_classes(stages: Stages, tmp_path) -> None:
    settings = {"epochs": 1, "batch_size": 10, "lr": 1e-30, "min_lr": 0.0, "backbone_lr_scale": 0.5}
    three = "digits?classes=0,1,2"
    with pytest.raises(BadInput, match=r"the model has 10, the data 3(.|\n)*new classifier.*--adapt"):
        train(stages.first, three, settings=settings, limit=20, out=tmp_path / "b")
    train(stages.first, three, settings=settings, limit=20, adapt=True, out=tmp_path / "b")
    before, after = load_run(stages.first), load_run(tmp_path / "b")
    old, new = before.model.state_dict(), after.model.state_dict()
    assert after.model.num_classes == after.model.history.root.kwargs["num_classes"] == len(after.classes) == 3
    assert new["head.weight"].shape[0] == 3 and set(old) == set(new)
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("head."))
    train(stages.first, three, settings=settings, limit=20, adapt=True, out=tmp_path / "again")
    assert torch.equal(load_run(tmp_path / "again").model.state_dict()["head.weight"], new["head.weight"])
    train(stages.first, "digits", settings=settings, limit=20, adapt=True, out=tmp_path / "same")
    assert torch.equal(load_run(tmp_path / "same").model.state_dict()["head.weight"], old["head.weight"])


def test_a_lean_run_keeps_its_classes(stages: Stages, tmp_path) -> None:
    run = load_run(stages.first)
    save(compress(run.model, [EViT(keep_rate=0.7)]), tmp_path / "lean", classes=run.classes)
    recipe = tmp_path / "on.toml"
    recipe.write_text('title = "on"\n[model]\nstarts_from = "evit"\n[fit]\nepochs = 1\n')
    with pytest.raises(Refused, match=r"is not dense.*has other classes"):
        train(tmp_path / "lean", "digits?classes=0,1,2", recipe=recipe, adapt=True, limit=20, out=tmp_path / "b")


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
