from __future__ import annotations

import numpy as np
import pytest

from leanvit.data import labels
from leanvit.data.labels import RowLocations, sorted_names
from leanvit.errors import BadInput

LINES = RowLocations("a.csv", lambda row: f"line {row + 2}")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        ([], []),
        (["2", "10", "1", "2"], ["1", "2", "10"]),
        (["10", "2", "a"], ["10", "2", "a"]),
        (["0", "00012", "7"], ["0", "7", "00012"]),
        (["9" * 5000, "1" + "0" * 5000, "8"], ["8", "9" * 5000, "1" + "0" * 5000]),
        (["²", "1"], ["1", "²"]),
    ],
)
def test_names_are_sorted_as_numbers_where_all_are(names, ordered):
    assert sorted_names(names) == ordered


def test_one_number_in_two_spellings_names_the_second_place():
    assert sorted_names(["01", "1", "one"]) == ["01", "1", "one"]
    with pytest.raises(BadInput, match="classes '01' and '1' are one number in two spellings"):
        sorted_names(["1", "01"])
    with pytest.raises(BadInput, match=r"a\.csv line 4: classes"):
        labels.names_of([(["1", "2", "01"], LINES)])


def test_keys_that_come_twice():
    assert labels.without_repeats(["a", "b", "a"], np.array([0, 1, 0]), LINES) == [0, 1]
    with pytest.raises(BadInput, match=r"a\.csv line 4: image 'a' comes twice, .*line 2, too"):
        labels.without_repeats(["a", "b", "a"], np.array([0, 1, 1]), LINES)
    with pytest.raises(BadInput, match="comes twice"):
        labels.without_repeats(["a", "a"], np.array([[0, 1], [1, 1]]), LINES)


def test_labels_that_the_record_names():
    assert labels.named_targets([1, 0.0, "bee"], ["ant", "bee"], LINES).tolist() == [1, 0, 1]
    for odd in (2, -1, None, True, 0.5, float("nan"), "cat", b"ant"):
        with pytest.raises(BadInput, match=r"a\.csv line 3 has label .*; accepted: 0 to 1"):
            labels.named_targets([0, odd], ["ant", "bee"], LINES)


@pytest.mark.parametrize(
    ("texts", "hint"),
    [
        (["clear primary", "haze primary water", "clear water", "cloudy", "haze primary"] * 3, "separator=space"),
        (["a,b", "b,c", "a,c"], "separator=%2C"),
        (["great white shark", "tiger shark", "hammerhead", "whale shark"], ""),
        (["golden retriever", "tabby cat", "cat"], ""),
        (["cat dog", "dog", "cat"], "separator=space"),
        (["['cat', 'dog']", "['cat']"], "look like lists, as \"['cat', 'dog']\""),
        ([f"photo {n}" for n in range(60)], "ids or captions"),
        ([str(n % 55) for n in range(200)], ""),
    ],
)
def test_hints_on_labels_that_are_none(texts, hint):
    assert hint in labels.hint(texts) and bool(hint) == bool(labels.hint(texts))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Cat", "cat", "dog"], [("Cat", "cat")]),
        (["cat", "cat\u200b", "a b", "a_b", "a-b"], [("cat", "cat\u200b"), ("a b", "a_b"), ("a b", "a-b")]),
        (["C", "C#", "C++", "1", "10"], []),
    ],
)
def test_names_that_look_alike(names, pairs):
    assert labels.alike(names) == pairs


def test_an_accent_has_one_encoding():
    assert labels.label_text("e\u0301") == labels.label_text("\xe9") == "\xe9"


def test_names_of_a_record_are_told_apart():
    given = ["crane", "cat", "crane", "", " "]
    assert labels.distinct_names(given) == ["crane (0)", "cat", "crane (2)", "class (3)", "class (4)"]
    assert labels.distinct_names(["a", "b"]) == ["a", "b"]
