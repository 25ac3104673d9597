"""A model's classes and a data set's: what is matched, what is refused, and that targets follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanvit.data import match_classes, open_dataset
from leanvit.data.classes import Matched, own_names
from leanvit.data.matching import for_model
from leanvit.errors import BadInput

PETS = ("cat", "dog", "newt")


@pytest.mark.parametrize(
    ("known", "outputs", "found", "positions", "said"),
    [
        (PETS, 3, PETS, (0, 1, 2), ""),
        (PETS, 3, ("newt", "cat", "dog"), (2, 0, 1), "another order"),
        (PETS, 3, ("newt", "cat"), (2, 0), "2 of the 3 classes"),
        (PETS, 3, ("dog",), (1,), "no answer can be wrong"),
        ((), 3, ("a", "b", "c"), (0, 1, 2), "no names"),
        (("x", "y"), 3, ("a", "b", "c"), (0, 1, 2), "no names"),  # a run that names fewer than it has outputs
        ((), 1000, ("n01443537", "n01440764"), (1, 0), "WordNet"),
        ((), 1000, ("n01443537_goldfish", "n01440764_tench"), (1, 0), "WordNet"),
        (("0", "10", "2"), 3, ("0", "2", "10"), (0, 2, 1), "another order"),
        (("a", "a"), 2, ("a (0)", "a (1)"), (0, 1), ""),  # a run of an older leanvit
        (("b", "e\u0301"), 2, ("b", "\xe9"), (0, 1), ""),  # one accent, in two encodings
    ],
)
def test_what_is_matched(
    known: tuple[str, ...], outputs: int, found: tuple[str, ...], positions: tuple[int, ...], said: str
) -> None:
    matched = match_classes(known, outputs, found)
    assert matched.positions == positions and said in matched.note and bool(said) == bool(matched.note)
    assert matched.same == (positions == tuple(range(outputs)))


@pytest.mark.parametrize(
    ("known", "outputs", "found", "words"),
    [
        (PETS, 3, ("a_dog", "b_cat", "newt"), ("a_dog, b_cat", "cat, dog, newt", "by-position")),
        (PETS, 3, ("cat", "cow"), ("cow", "--classes cat")),
        (PETS, 3, ("Cat", "Dog", "Newt"), ("Cat, Dog, Newt", "by-position")),
        (PETS, 3, ("cow",), ("cow", "the model has 3, the data 1", "num_classes=1")),
        ((), 3, ("a", "b"), ("has 3", "num_classes=2")),
        ((), 3, ("1", "3"), ("has 3", "num_classes=2")),
        ((), 12, ("10", "3"), ("has 12", "num_classes=2", "by-position")),
        (("a", "a", "b"), 3, ("a", "b"), ("'a' twice",)),
    ],
)
def test_what_is_refused_names_both_sides(
    known: tuple[str, ...], outputs: int, found: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput) as error:
        match_classes(known, outputs, found)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_by_position_needs_as_many_and_says_what_it_took() -> None:
    assert "b as cat" in match_classes(PETS, 3, ("b", "dog", "newt"), class_names="by-position").note
    numbers = match_classes((), 12, ("10", "3"), class_names="by-position")
    assert numbers.positions == (10, 3) and "numbers of its outputs" in numbers.note
    with pytest.raises(BadInput, match="3 outputs"):
        match_classes(PETS, 3, ("a", "b"), class_names="by-position")
    with pytest.raises(BadInput, match="by-name"):
        match_classes(PETS, 3, PETS, class_names="by-nmae")


@pytest.mark.parametrize("found", [("10", "3"), ("n01443537", "n01440764")])
def test_a_training_needs_as_many_classes_as_outputs(found: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="num_classes=2"):
        match_classes((), 1000, found, exact=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_a_matched_class_is_the_one_of_its_name(data: st.DataObject) -> None:
    known = data.draw(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6, unique=True))
    found = data.draw(st.lists(st.sampled_from([*known, "?other?"]), min_size=1, max_size=6, unique=True))
    if "?other?" in found:
        with pytest.raises(BadInput):
            match_classes(known, len(known), found)
        return
    matched = match_classes(known, len(known), found)
    assert [known[i] for i in matched.positions] == found
    assert matched.names(known, found) == known


def test_targets_follow_in_data_sets_of_both_kinds() -> None:
    digits = open_dataset("digits", "val").take(range(8))
    matched = Matched(tuple(reversed(range(10))), 10)
    turned = digits.onto(matched, list(reversed(digits.classes)))
    assert [turned.classes[t] for t in turned.targets] == [digits.classes[t] for t in digits.targets]
    from dataclasses import replace

    several = replace(digits, targets=np.eye(10, dtype=np.float32)[digits.targets])
    turned = several.onto(Matched(tuple(range(2, 12)), 12), [str(i) for i in range(12)])
    assert turned.targets.shape == (8, 12)
    assert (turned.targets[:, 2:] == several.targets).all() and not turned.targets[:, :2].any()


class _Named(torch.nn.Module):
    num_classes = 3
    classes = PETS


def test_names_of_a_model_are_never_replaced() -> None:
    assert own_names(_Named(), None) == own_names(_Named(), PETS) == own_names(_Named(), ()) == PETS
    for given_names, words in (
        (("a", "b", "c"), "model.classes"),
        (("cat", "dog"), "has 3 classes"),
        ("cat", "a list"),
    ):
        with pytest.raises(BadInput, match=words):
            own_names(_Named(), given_names)
    with pytest.raises(BadInput, match="twice"):
        own_names(torch.nn.Identity(), ("a", "a"))


def test_for_model_says_what_it_matched_once() -> None:
    lines: list[str] = []
    digits = open_dataset("digits", "val").take(range(8))
    assert for_model(digits, torch.nn.Identity(), log=lines.append) is digits and not lines
    model = torch.nn.Identity()
    model.num_classes, model.classes = 10, tuple(reversed(digits.classes))  # type: ignore[assignment]
    assert for_model(digits, model, log=lines.append).classes == list(model.classes) and len(lines) == 1


def test_names_that_come_twice_are_refused_before_a_training() -> None:
    digits = open_dataset("digits", "val").take(range(8))
    with pytest.raises(BadInput, match="'0' comes twice"):
        for_model(replace(digits, classes=["0", *digits.classes[:9]]), torch.nn.Identity())


def test_names_stay_in_their_line() -> None:
    with pytest.raises(BadInput, match=r"b\\nc") as error:
        match_classes(("a", "b"), 2, ("a", "b\nc"))
    assert "b\nc" not in str(error.value)
