"""What is asked of every paper whose class has `shape`, whatever its kind. The knobs are those of its card.

The plain ViT is asked in `make test`, the other families where the method runs in `make test-e2e`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.toys import CARDS, toys
from leanvit import cards
from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess, open_dataset
from leanvit.deploy import export, load_artefact
from leanvit.errors import Refused
from leanvit.recipe import Data, Root, compress, create, load, make_method, missed, replay, save
from leanvit.recipe.protocol import AtMacs
from leanvit.recipe.registry import check_knobs, knobs_of, method_class, shaping_methods
from leanvit.verbs.shares import Tally
from pages.support import Example, examples

with toys():
    SLUGS = shaping_methods()
    PLAIN, *OTHERS = examples()


@cache
def dense(name: str) -> OpenModel:
    """A small model of a family with random parameters, also where a fresh model has zeros."""
    example = next(one for one in (PLAIN, *OTHERS) if one.name == name)
    torch.manual_seed(0)
    model = create(Root(example.name, example.kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def data_of(model: OpenModel) -> Data:
    digits = open_dataset("digits", "train", limit=32, classes=[str(digit) for digit in range(7)])
    return Data(digits, Preprocess.of(model), batch_size=16)


@cache
def lean(slug: str, name: str) -> tuple[OpenModel, Tally]:
    """The method with its small knobs on a family, and what it achieved. Raises `Refused` where it does not run."""
    methods = [make_method(slug, cards.paper(slug).knobs.small)]
    tally = Tally(methods)
    return compress(dense(name), methods, data_of(dense(name)), on_step=tally.take), tally


def images(model: OpenModel) -> torch.Tensor:
    return torch.randn(2, *model.probe_size(), generator=torch.Generator().manual_seed(1))


def _pairs() -> Iterator[object]:
    for slug in SLUGS:
        yield pytest.param(slug, PLAIN, id=slug)
        for other in OTHERS:
            yield pytest.param(slug, other, id=f"{slug}-{other.name}", marks=pytest.mark.e2e)


methods = pytest.mark.parametrize("slug", SLUGS)
# an export takes seconds: one of float steps, one of integers, one in segments for every run
exports = pytest.mark.parametrize(
    "slug",
    [slug if slug in ("evit", "int8", "lgvit") else pytest.param(slug, marks=pytest.mark.e2e) for slug in SLUGS],
)
pairs = pytest.mark.parametrize(("slug", "family"), _pairs())


def made(slug: str, family: Example) -> OpenModel:
    try:
        return lean(slug, family.name)[0]
    except Refused as refusal:
        assert family is not PLAIN, f"the plain ViT is a family of every method: {refusal}"
        pytest.skip(f"refused: {refusal}")


def test_every_card_of_the_kind_has_a_class_with_shape() -> None:
    assert {card.slug for card in CARDS if "compress" in card.kinds} <= set(SLUGS)
    assert all(cards.paper(slug).is_method for slug in SLUGS)


@methods
def test_off_is_exact(slug: str) -> None:
    knobs = cards.paper(slug).knobs.off
    if knobs is None:
        pytest.skip(f"{slug} has no setting that changes nothing")
    model = dense(PLAIN.name)
    with torch.no_grad():
        off = compress(model, [make_method(slug, knobs)], data_of(model))
        assert torch.equal(off(images(model)), model(images(model)))


@pairs
def test_save_and_load_bit_for_bit(slug: str, family: Example, tmp_path: Path) -> None:
    model = made(slug, family)
    save(model, tmp_path)
    again = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images(model)), model(images(model)))
    want, got = model.state_dict(), again.state_dict()
    assert want.keys() == got.keys() and all(torch.equal(got[key], tensor) for key, tensor in want.items())


@pairs
def test_shape_builds_the_same_on_the_meta_device(slug: str, family: Example) -> None:
    model = made(slug, family)
    hollow = replay(model.history.root, model.history.plans, device="meta")
    assert all(tensor.is_meta for tensor in hollow.parameters())
    shapes = [{key: (t.shape, t.dtype) for key, t in one.state_dict().items()} for one in (model, hollow)]
    assert shapes[0] == shapes[1]


@pairs
def test_knobs_and_structure_are_json(slug: str, family: Example) -> None:
    (plan,) = made(slug, family).history.plans
    said = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert said["structure"] == plan.structure and said["knobs"] == plan.knobs
    again = make_method(slug, said["knobs"])
    assert again == plan.method() and knobs_of(again) == said["knobs"]


@pairs
def test_what_was_achieved_is_json_and_targets_are_met(slug: str, family: Example) -> None:
    model = made(slug, family)
    tally = lean(slug, family.name)[1]
    assert hasattr(method_class(slug), "achieved") == (tally.achieved(0) is not None)
    json.dumps([tally.achieved(0), tally.share(0)], allow_nan=False)
    if family is PLAIN:
        assert missed(model) == []


@exports
def test_it_exports_as_declared(slug: str, tmp_path: Path) -> None:
    declared = method_class(slug).export  # type: ignore[attr-defined]
    model = made(slug, PLAIN)
    how: dict[str, Any] = {"to": "openvino", "preprocess": Preprocess.of(dense(PLAIN.name)), "batch": 1}
    if declared == "none":
        with pytest.raises(Refused):
            export(model, tmp_path / "artefact", **how)
        return
    export(model, tmp_path / "artefact", **how)
    assert (tmp_path / "artefact" / "segment-0").is_dir() == (declared == "segments")
    got = torch.as_tensor(load_artefact(tmp_path / "artefact")(images(model)[:1]))
    assert got.shape == (1, 7) and torch.isfinite(got).all()  # `export` compared it with PyTorch


@methods
def test_the_knobs_that_set_its_cost_are_knobs_of_it(slug: str) -> None:
    cost = cards.paper(slug).knobs.cost
    check_knobs(slug, cost)
    assert bool(cost) or not (isinstance(method_class(slug), AtMacs) or cards.paper(slug).knobs.compared)
