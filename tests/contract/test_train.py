"""What is asked of every paper of the kind "train": its class has a step of the protocol, and `train` takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit as lv
from contract.toys import of_kind
from leanvit.cards import paper
from leanvit.errors import BadInput
from leanvit.kinds import KINDS
from leanvit.recipe import load_run, make_method
from leanvit.recipe.registry import knobs_of, method_class

MODEL = "vit_tiny_patch16_224"
ARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 1}
SETTINGS = {"epochs": 2, "batch_size": 10}
methods = pytest.mark.parametrize("slug", [card.slug for card in of_kind("train")])


def small(slug: str) -> Any:
    return make_method(slug, paper(slug).knobs.small)


@methods
def test_its_class_has_a_step_of_the_protocol(slug: str) -> None:
    assert any(hasattr(method_class(slug), step) for step in KINDS["train"].steps)


@methods
def test_knobs_are_json(slug: str) -> None:
    made = small(slug)
    assert make_method(slug, knobs_of(made)) == made
    with pytest.raises(BadInput, match=f"method '{slug}' has no knob 'no_such_knob'"):
        make_method(slug, {"no_such_knob": 1})


@methods
def test_a_model_trains_with_it(slug: str, tmp_path: Path) -> None:
    """Parameters change and stay finite; the run keeps the method's parts of the model, and nothing else of it."""
    made = small(slug)
    lv.train(MODEL, "digits", methods=[made], settings=SETTINGS, adapt=True, model_args=ARGS, limit=20, out=tmp_path)
    run = load_run(tmp_path)
    assert run.info["methods"] == [{"slug": slug, "knobs": knobs_of(made)}]
    assert [plan.slug for plan in run.model.history.plans] == ([slug] if hasattr(made, "shape") else [])
    lv.train(MODEL, "digits", settings=SETTINGS, adapt=True, model_args=ARGS, limit=20, out=tmp_path / "usual")
    usual, trained = load_run(tmp_path / "usual").model.state_dict(), run.model.state_dict()
    assert all(value.isfinite().all() for value in trained.values() if value.is_floating_point())
    assert hasattr(made, "shape") or trained.keys() == usual.keys()
    assert any(not torch.equal(trained[name], usual[name]) for name in usual), "it changes the training"
