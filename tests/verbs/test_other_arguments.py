"""Training on from a run with other constructor arguments: image size, drop path, classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from two_stages import LIMIT, Stages

from leanvit.errors import BadInput, Refused
from leanvit.recipe import compress, load_run, rebuilt, save
from leanvit.tokens.evit import EViT
from leanvit.verbs import dry_run, export, train

STILL = {"epochs": 1, "batch_size": 20, "lr": 1e-30, "min_lr": 0.0}  # changes no weight
WIDE = {"img_size": 16, "drop_path_rate": 0.2}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder).model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_is_trained_on_at_another_size(stages: Stages, tmp_path) -> None:
    said: list[str] = []
    train(stages.first, "digits", model_args=WIDE, settings=STILL, limit=20, out=tmp_path / "wide", log=said.append)
    before, after = load_run(stages.first), load_run(tmp_path / "wide")
    assert same(after.model.state_dict(), rebuilt(before.model, WIDE).state_dict())
    root = before.model.history.root
    assert after.model.history.root.kwargs == {**root.kwargs, **WIDE} and after.model.history.plans == ()
    assert after.preprocess.input_size == (1, 16, 16) and before.preprocess.input_size == (1, 8, 8)
    assert after.classes == before.classes and after.info["from"] == "a"
    assert "pos_embed resized, a grid of 4x4 to 8x8, bicubic with antialias" in said
    assert "images are prepared at 16x16, before at 8x8" in said
    assert any(line.startswith("rebuilt vit_tiny_patch16_224 with img_size=16, drop_path_rate=0.2: ") for line in said)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_it_is_resumed(stages: Stages, tmp_path, monkeypatch) -> None:
    def run(out: str, **more: Any) -> None:
        settings = {"epochs": 2, "batch_size": 20, "lr": 1e-3, "save_every": 1}
        train(stages.first, "digits?classes=0,1,2", settings=settings, limit=60, out=tmp_path / out, **more)

    changed = {**WIDE, "num_classes": 3}
    run("whole", model_args=changed)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("leanvit.verbs.progress.EpochLines.end_epoch", _stop)
        run("killed", model_args=changed)
    with pytest.raises(BadInput, match="preprocess"):
        run("killed", model_args={**changed, "img_size": 24}, resume=True)
    run("killed", model_args=changed, resume=True)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert load_run(tmp_path / "whole").classes == ("0", "1", "2")


def test_classes_that_are_given_and_those_of_adapt_go_together(stages: Stages, tmp_path) -> None:
    three = "digits?classes=0,1,2"
    train(stages.first, three, model_args={"img_size": 16}, adapt=True, settings=STILL, limit=20, out=tmp_path / "a")
    run = load_run(tmp_path / "a")
    assert run.classes == ("0", "1", "2") and run.model.history.root.kwargs["img_size"] == 16
    with pytest.raises(BadInput, match="the model has 4, the data 3"):
        train(stages.first, three, model_args={"num_classes": 4}, settings=STILL, limit=20, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_reference_and_a_dry_run_take_them_too(named: Stages, tmp_path) -> None:
    found = dry_run("leanvit/tiny", "digits", model_args={"img_size": 16}, settings=STILL, limit=20)
    assert found.to_json() and not list(tmp_path.iterdir())
    train("leanvit/tiny", "digits", model_args={"img_size": 16}, settings=STILL, limit=20, out=tmp_path / "on")
    assert load_run(tmp_path / "on").model.history.root.kwargs["img_size"] == 16


def test_a_lean_run_keeps_its_plans_where_its_recipe_trains_it_on(stages: Stages, tmp_path) -> None:
    run = load_run(stages.first)
    for name, method in (("share", EViT(keep_rate=0.7)), ("counts", EViT(tokens=(16, 9)))):
        save(compress(run.model, [method]), tmp_path / name, classes=run.classes, preprocess=run.preprocess)
    recipe = tmp_path / "on.toml"
    recipe.write_text('title = "on"\n[model]\nstarts_from = "evit"\n[fit]\nepochs = 1\n')
    given: dict[str, Any] = {"model_args": {"img_size": 16}, "limit": LIMIT, "out": tmp_path / "on"}
    with pytest.raises(Refused, match="is not dense"):
        train(tmp_path / "share", "digits", **given)
    with pytest.raises(Refused, match="'evit' is tied to its grid of 4x4 tokens, which becomes 8x8"):
        train(tmp_path / "counts", "digits", recipe=recipe, **given)
    assert not (tmp_path / "on").exists()
    train(tmp_path / "share", "digits", recipe=recipe, settings=STILL, **given)
    lean = load_run(tmp_path / "on").model
    assert [plan.slug for plan in lean.history.plans] == ["evit"] and lean.grid() == (8, 8)
    assert lean.patch_tokens()[-1] < 64


def test_other_verbs_take_a_run_as_it_is(stages: Stages, tmp_path) -> None:
    with pytest.raises(BadInput, match=r"with a timm name \(train takes model arguments of a run"):
        export(stages.first, model_args={"img_size": 16}, out=tmp_path / "x")
