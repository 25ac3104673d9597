"""Ways to train in a recovery: what they give to it, what is refused, and the bits of one that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import digits
from torch import Tensor

from contract.toys import toys
from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Data, Recovery, Root, compress, create, load_recipe, parse_with, register
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.training import CrossEntropy, Objective

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}
NUMBERS = {"epochs": 1, "batch_size": 10, "lr": 1e-2}
EVIT = EViT(keep_rate=0.5, blocks=(1,))


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys():
        yield


@pytest.fixture(scope="module")
def model() -> OpenModel:
    torch.manual_seed(0)
    return create(Root("vit_tiny_patch16_224", SMALL)).eval()


@pytest.fixture(scope="module")
def data(model: OpenModel) -> Data:
    return Data(digits(), Preprocess.of(model))


class Killed(BaseException):
    """Stands for SIGKILL."""


class KillAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Any) -> None:
        if run.step == self.step:
            raise Killed


TAUGHT: list[Any] = []
STEPS: list[int] = []


@register("test_pull", title="Pulled", summary="learns the teacher's answers", kind="train")
@dataclass(frozen=True)
class Pull:
    """Has an objective that needs a teacher, any but one."""

    refused: Any = None

    def check_teacher(self, model: Any, teacher: Any) -> None:
        if teacher is self.refused:
            raise Refused("a strange teacher")

    def objective(self, model: Any, data: Any, config: Any) -> Objective:
        TAUGHT.append(data.teacher)
        return CrossEntropy()


@register("test_noting", title="Notes", summary="notes the steps", kind="train")
@dataclass(frozen=True)
class Noting:
    """Has callbacks alone."""

    def callbacks(self, model: Any) -> list[object]:
        return [self]

    def after_step(self, run: Any) -> None:
        STEPS.append(run.step)


def smooth(text: str = "toy_smooth:smoothing=0.3,until=2") -> Any:
    return parse_with(text)


def recovery(*methods: Any, **numbers: Any) -> Recovery:
    return Recovery(**{**NUMBERS, "settings": {"save_every": 1}, **numbers}, methods=methods)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_an_objective_takes_the_place_of_distillation_and_callbacks_join(model, data) -> None:
    usual = compress(model, [EVIT], data, recovery=recovery()).state_dict()
    own = compress(model, [EVIT], data, recovery=recovery(smooth())).state_dict()
    later = compress(model, [EVIT], data, recovery=recovery(smooth("toy_smooth:smoothing=0.3"))).state_dict()
    assert own.keys() == usual.keys(), "no part of the objective stays"
    assert not same(own, usual) and not same(own, later), "its callback ends the smoothing at step 2"


def test_a_killed_recovery_goes_on_with_the_same_way_only(model, data, tmp_path: Path) -> None:
    whole = compress(model, [EVIT], data, recovery=recovery(smooth())).state_dict()
    with pytest.raises(Killed):
        compress(model, [EVIT], replace(data, callbacks=(KillAt(3),)), recovery=recovery(smooth()), out=tmp_path)
    for ways, says in (
        ((smooth("toy_smooth:smoothing=0.2,until=2"),), r"methods\[0\].knobs.smoothing was 0.3 and is now 0.2"),
        ((), r'recovery.methods was \[\{"slug": "toy_smooth".*\] and is now null'),
    ):
        with pytest.raises(BadInput, match=says):
            compress(model, [EVIT], data, recovery=recovery(*ways), out=tmp_path, resume=True)
    again = compress(model, [EVIT], data, recovery=recovery(smooth()), out=tmp_path, resume=True)
    assert same(again.state_dict(), whole)


def test_without_ways_the_record_is_that_of_before() -> None:
    assert "methods" not in recovery().to_json() and "methods" not in recovery(smooth()).numbers()
    assert Recovery.of(recovery().numbers()).to_json() == recovery().to_json()


def test_its_objective_gets_the_teacher(model, data) -> None:
    strange, other = (create(Root("vit_tiny_patch16_224", SMALL)).eval() for _ in range(2))
    with pytest.raises(Refused, match="a strange teacher"):
        compress(model, [EVIT], data, recovery=recovery(Pull(strange)), teacher=strange)
    TAUGHT.clear()
    compress(model, [EVIT], data, recovery=recovery(Pull()), teacher=other)
    compress(model, [EVIT], data, recovery=recovery(Pull()))
    assert TAUGHT[0] is other and same(TAUGHT[1].state_dict(), model.state_dict()), "else the dense model"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: recovery(smooth(), smooth()), Refused, "toy_smooth and toy_smooth each bring the objective of"),
        (lambda: recovery(EVIT), BadInput, "evit is a method that makes a trained model leaner, not a way to train"),
        (lambda: recovery(parse_with("gmm_mask")), BadInput, r"gmm_mask puts parts into the model.*--with gmm_mask"),
        (lambda: recovery(type(smooth())), BadInput, r"methods\[0\] is <class.*accepted: a method"),
        (lambda: Recovery(methods=smooth()), BadInput, r"methods is one method; accepted: a list of them"),
        (lambda: Recovery(methods="toy_smooth"), BadInput, "accepted: a list of methods"),
        (lambda: Recovery.of({"methods": 1}), BadInput, "no setting 'methods': ways to train.*--recover-with"),
    ],
)
def test_what_is_no_way_of_a_recovery_is_refused_when_it_is_made(make, error, says) -> None:
    with pytest.raises(error, match=says):
        make()


def test_what_does_not_go_with_it_is_refused_before_any_work(model, data) -> None:
    seen: list[str] = []
    note = {"on_step": lambda label, model: seen.append(label)}
    for given, error, says in (
        (((SiT(stages=(1, 1)),), recovery(smooth())), Refused, "sit and toy_smooth each bring the objective"),
        (((EVIT,), recovery(smooth(), alpha=0.2)), BadInput, "alpha is 0.2, but toy_smooth brings the objective"),
        (((EVIT,), recovery(smooth(), distillation="hard")), BadInput, "distillation is 'hard', but toy_smooth brings"),
        (((smooth(),), None), BadInput, "a way to train; accepted.*--recover EPOCHS --recover-with toy_smooth"),
    ):
        with pytest.raises(error, match=says):
            compress(model, given[0], data, recovery=given[1], **note)
    assert not seen


def test_a_recipe_file_names_its_ways(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'model = "run"\n[[method]]\nslug = "evit"\n[recovery]\nepochs = 2\n'
        '[[recovery.method]]\nslug = "toy_smooth"\nsmoothing = 0.4\n'
    )
    made = load_recipe(file).recovery
    assert made is not None and made.epochs == 2 and made.methods == (smooth("toy_smooth:smoothing=0.4"),)
    file.write_text(file.read_text().replace("toy_smooth", "evit"))
    with pytest.raises(BadInput, match=r"recipe.toml: .*'evit' has no knob 'smoothing'"):
        load_recipe(file)


def test_a_way_of_callbacks_alone_leaves_distillation_in_place(model, data) -> None:
    usual = compress(model, [EVIT], data, recovery=recovery(alpha=0.3)).state_dict()
    noted = compress(model, [EVIT], data, recovery=recovery(Noting(), alpha=0.3)).state_dict()
    assert same(noted, usual) and STEPS == [1, 2, 3, 4]
