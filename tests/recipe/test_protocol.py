"""The steps that methods have, and how they are asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from gates import Gates, digits

import leanvit as lv
from leanvit.data import Preprocess
from leanvit.errors import BadInput
from leanvit.recipe import Data, method_class, own_methods, protocol
from leanvit.training import CrossEntropy

SRC = Path(lv.__file__).parent
STEPS = {
    name: kind
    for name, kind in vars(protocol).items()
    if getattr(kind, "_is_runtime_protocol", False) and name != "Method"
}
OF_ALL = {"Achieves", "Checks", "Learns", "Tied"}
HAS = {
    "evit": OF_ALL | {"AtMacs", "FillsSlots", "Schedules"},
    "tome": OF_ALL | {"AtMacs", "FillsSlots"},
    "diffrate": OF_ALL | {"AtMacs", "ChecksFit", "ChoosesKnobs", "ForeseesTraining", "FillsSlots"},
    "sit": OF_ALL | {"AtMacs", "BringsObjective", "ChecksTeacher", "Folds", "FillsSlots"},
    "stvit": OF_ALL | {"AtMacs", "Folds"},
    "int8": OF_ALL | {"ChecksFit", "Folds"},
    "nvit": OF_ALL | {"AtMacs", "ChecksFit", "ChoosesKnobs", "Folds", "ForeseesTraining"},
    "lgvit": OF_ALL | {"AtMacs", "ChecksFit", "ChoosesKnobs", "ForeseesTraining", "Retunes", "Tunes"},
    "gmm_mask": {"Achieves", "Learns", "Folds", "Tied"},
}


@pytest.mark.parametrize("slug", own_methods())
def test_a_method_has_the_steps_that_it_is_known_for(slug: str) -> None:
    assert {name for name, kind in STEPS.items() if issubclass(method_class(slug), kind)} == HAS[slug]


def test_a_method_from_outside_is_one_by_its_decorator_alone() -> None:
    gates = Gates()
    assert isinstance(gates, protocol.Method) and gates.tunable == () and not isinstance(gates, protocol.Folds)
    assert isinstance(gates, protocol.Prepares) and isinstance(gates, protocol.Finishes)
    assert not isinstance(object(), protocol.Method)


def test_every_step_says_what_it_is() -> None:
    for name, kind in STEPS.items():
        own = [getattr(kind, key) for key in vars(kind) if not key.startswith("_")]
        assert kind.__doc__ and own and all(callable(step) and step.__doc__ for step in own), name


def test_nobody_feels_for_a_step() -> None:
    """No `hasattr` for a step of a method."""
    steps = {key for kind in STEPS.values() for key in vars(kind) if not key.startswith("_")}
    for path in [*(SRC / "recipe").glob("*.py"), *(SRC / "verbs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                name = ast.unparse(node.args[1]).strip("'")
                assert name not in steps, f"{path.name}:{node.lineno} {name}"


# --- training with what a method is given ----------------------------------------------


class Seen:
    """Callback: the step that the run says it ends at, and the one at which it did."""

    def start(self, run) -> None:
        self.ends_at, self.seed = run.ends_at, run.config.seed

    def finish(self, run) -> None:
        self.step, self.epochs = run.step, run.config.epochs


def test_a_method_trains_for_steps_and_goes_on(tmp_path: Path, tiny) -> None:
    model = tiny(img_size=8, patch_size=4, in_chans=1, num_classes=10)
    mine, theirs = Seen(), Seen()
    data = Data(digits(40), Preprocess.of(model), seed=3, out=tmp_path, callbacks=(theirs,))
    assert data.steps_per_epoch(model, batch_size=10) == 4 and not data.resume
    data.fit(model, CrossEntropy(), steps=6, callbacks=[mine], batch_size=10, lr=0.01, save_every=1)
    assert (mine.ends_at, mine.step, mine.epochs, mine.seed) == (6, 6, 2, 3) == (theirs.ends_at, theirs.step, 2, 3)
    assert data.resume


def test_images_that_fill_no_batch_are_refused(tiny) -> None:
    model = tiny(img_size=8, patch_size=4, in_chans=1, num_classes=10)
    data = Data(digits(40), Preprocess.of(model))
    with pytest.raises(BadInput, match="batch_size"):
        data.fit(model, steps=2, batch_size=64)
