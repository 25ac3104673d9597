"""What is asked of every paper of the kind "train": its class has a step of the protocol, and `fit` runs with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contract.toys import of_kind
from leanvit.anatomy import open_model
from leanvit.cards import paper
from leanvit.errors import BadInput
from leanvit.kinds import KINDS
from leanvit.recipe import Data, make_method
from leanvit.recipe.registry import knobs_of, method_class
from leanvit.training import FitConfig, Objective, fit
from training.tiny_training import make_data, make_model, make_preprocess

CONFIG = FitConfig(epochs=1, batch_size=4, lr=1e-3)
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
def test_a_model_trains_with_it(slug: str) -> None:
    """Some step with its objective and callbacks; every parameter of the model is trained, and stays finite."""
    made, data, preprocess = small(slug), make_data(8), make_preprocess()
    model: Any = open_model(make_model())
    if hasattr(made, "shape"):
        made.shape(model, made.learn(model, Data(data, preprocess)))
    objective = made.objective(model, Data(data, preprocess), CONFIG) if hasattr(made, "objective") else None
    assert objective is None or isinstance(objective, Objective)
    callbacks = made.callbacks(model) if hasattr(made, "callbacks") else []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = fit(model, data, preprocess=preprocess, config=CONFIG, objective=objective, callbacks=callbacks)
    assert result.steps == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
