"""Knobs: one check by annotations, one form of words, and one grammar of values on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from math import inf, nan
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.errors import BadInput
from leanvit.knobs import (
    DISTINCT,
    RISING,
    Blocks,
    Choice,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Rule,
    Share,
    Words,
    check,
    check_fields,
    field_hints,
    knob,
    words,
)
from leanvit.recipe import create, method_class, own_methods, parse_with
from leanvit.recipe.roots import Root
from leanvit.recipe.structure import BlockRow
from leanvit.values import Duration, read_value, split_values, write_value
from leanvit.verbs.explaining import Explanation, explain

SELECTIONS = {"attention": 1, "random": 2}
Select = Annotated[str, Choice(SELECTIONS)]
Several = Share | Annotated[tuple[Share, ...], MinLen(1)]

ACCEPTED: list[tuple[Any, Any, Any]] = [  # annotation, value, what is kept
    (Share, 1, 1),
    (Share, 0.5, 0.5),
    (float, 10**300, 10**300),
    (Index, 0, 0),
    (bool, False, False),
    (Several, [0.5, 1], (0.5, 1)),
    (Select, "random", "random"),
    (Annotated[str, Choice(lambda: ["a", "b"])], "b", "b"),
    (Count | None, None, None),
    (tuple[tuple[int, ...], ...], [[1], (2, 3), []], ((1,), (2, 3), ())),
    (tuple[str, ...], "head", ("head",)),
    (Blocks, [3, 1], (3, 1)),
    (Annotated[tuple[Index, ...], RISING], [1, 3], (1, 3)),
    (Annotated[tuple[int, ...], Len(2, 3)], [1, 3], (1, 3)),
    (dict[str, Count], {"a": 1}, {"a": 1}),
    (Any, [1], [1]),
]
REFUSED: list[tuple[Any, Any, str]] = [  # annotation, value, words
    (Share, 0, "a number above 0, up to 1"),
    (Share, True, "a number above 0, up to 1"),
    (float, 10**310, "a number"),
    (Share, nan, "a number above 0, up to 1"),
    (Positive, inf, "a number above 0"),
    (NonNegative, "1", "a number, 0 or more"),
    (Fraction, -0.1, "a number from 0 to 1"),
    (Annotated[float, Ge(0), Lt(1)], 1, "a number from 0, below 1"),
    (Annotated[float, Gt(0), Lt(1)], 1, "a number above 0, below 1"),
    (Annotated[float, Le(1)], 2, "a number, up to 1"),
    (Annotated[float, Lt(1)], 1, "a number, below 1"),
    (Count, 1.0, "a whole number, 1 or more"),
    (Annotated[int, Ge(1), Le(64)], 65, "a whole number from 1 to 64"),
    (bool, 1, "true or false"),
    (bool | None, 0, "true or false, or null"),
    (str, 3, "text"),
    (Select, ["random"], "attention or random"),
    (Several, [0.5, 2], "a number above 0, up to 1, or a list of such, one or more"),
    (Several, [], "a number above 0, up to 1, or a list of such, one or more"),
    (Count | tuple[Count, ...] | None, 0, "a whole number, 1 or more; a list of such; or null"),
    (tuple[float, float], [1.0], "a list of 2, each a number"),
    (tuple[int, str], [1], "a list of 2: a whole number; text"),
    (Blocks, [1, 1], "a list of different block numbers, from 0"),
    (Annotated[tuple[Index, ...], DISTINCT], (1, 1), "a list, each a whole number, 0 or more, none twice"),
    (Annotated[tuple[int, ...], RISING], [3, 1], "a list, each a whole number, each more than the last"),
    (Annotated[tuple[int, ...], Len(0, 1)], [3, 1], "a list, each a whole number"),
    (Annotated[int, Rule(lambda n: n % 2 == 0, "even")], 3, "a whole number, even"),
    (Annotated[int, Ge(1), Words("a side")], 0, "a side"),
    (dict[str, int], {1: 1}, "an object"),
    (BlockRow, 3, "an object"),
]


@pytest.mark.parametrize(("hint", "value", "kept"), ACCEPTED)
def test_what_is_accepted_is_kept_as_it_is_but_for_lists(hint: Any, value: Any, kept: Any) -> None:
    found = check("it", value, hint)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(("hint", "value", "said"), REFUSED)
def test_what_is_refused_is_said_in_one_form(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(BadInput) as error:
        check("it", value, hint)
    shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:197]}..."
    assert str(error.value) == f"it is {shown}; accepted: {said}"


def test_the_nearest_choice_is_suggested() -> None:
    with pytest.raises(BadInput, match=r"accepted: attention or random; did you mean 'attention'\?$"):
        check("select", "atention", Select)
    with pytest.raises(BadInput, match=r"did you mean 'random'\?$"):
        check("select", ["attention", "randon"], tuple[Select, ...] | None)


@dataclass(frozen=True)
class Knobs:
    rates: Several = knob(0.5, "how many stay")
    lr: Positive = None  # type: ignore[assignment]
    select: Select = "random"

    def __post_init__(self) -> None:
        check_fields(self, "knobs of ")


def test_fields_of_a_frozen_dataclass_are_checked_and_lists_are_tuples() -> None:
    assert Knobs(rates=[0.5, 1]).rates == (0.5, 1)  # type: ignore[arg-type]
    assert Knobs().lr is None and Knobs().rates == 0.5  # a default of None is accepted
    with pytest.raises(BadInput, match=r"^knobs of rates is \(0.5, 2\); accepted: a number above 0, up to 1, or"):
        Knobs(rates=(0.5, 2))
    with pytest.raises(BadInput, match=r"^knobs of lr is 0; accepted: a number above 0$"):
        Knobs(lr=0)


@dataclass(frozen=True)
class Row(BlockRow):
    rate: Share
    tokens: Count | None = None

    def __post_init__(self) -> None:
        if self.tokens == 13:
            raise BadInput("tokens is 13; accepted: others")


@dataclass(frozen=True)
class Plan:
    blocks: Annotated[tuple[Row, ...], RISING]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"block": 3, "rate": 2}], "rate of block 3 is 2; accepted: a number above 0, up to 1"),
        ([{"block": 3, "rate": 1, "tokens": 13}], "block 3: tokens is 13; accepted: others"),
        ([{"block": -1, "rate": 1}], r"block of blocks\[0\] is -1; accepted: a whole number, 0 or more"),
        ([{"block": 3}], r"blocks\[0\] lacks rate"),
        ([{"block": 3, "rate": 1, "token": 1}], r"blocks\[0\] has no key 'token': did you mean 'tokens'"),
        ([{"block": 3, "rate": 1}, {"block": 3, "rate": 1}], "blocks is .*; accepted: .*each more than the last"),
        ({}, "blocks is {}; accepted: a list"),
    ],
)
def test_rows_of_a_plan_are_checked_by_the_same_annotations_and_named_by_block(rows: Any, said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said}"):
        check("", {"blocks": rows}, Plan)


def test_a_record_is_made_of_a_mapping() -> None:
    plan = check("", {"blocks": [{"block": 1, "rate": 1}, {"block": 4, "rate": 0.5, "tokens": 2}]}, Plan)
    assert plan == Plan((Row(1, 1), Row(4, 0.5, 2)))
    with pytest.raises(BadInput, match=r"^it has no key 'block': did you mean 'blocks'"):
        check("", {"block": []}, Plan)


def test_a_model_names_the_blocks_that_it_has() -> None:
    model = create(Root("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 1}))
    assert model.block(1) is model.blocks[1]
    for number in (2, -1, True, "1"):
        with pytest.raises(BadInput, match=f"block is {number!r}; accepted: 0 to 1"):
            model.block(number)


def test_they_are_light() -> None:
    code = "import sys, leanvit.knobs, leanvit.values; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- what is printed of methods ----------------------------------------------------


@pytest.mark.parametrize("slug", own_methods())
def test_every_example_that_is_printed_is_accepted(slug: str) -> None:
    payload = explain(slug)
    assert isinstance(payload, Explanation)
    made = parse_with(payload.example)
    for one in payload.knobs:
        assert one.meaning and one.accepts and one.example.startswith(f"{one.name}=")
        assert _is_accepted(f"{slug}:{one.example}") or _is_accepted(f"{payload.example},{one.example}"), one.example
    for field in fields(made):
        if field.default is not None:
            assert check(field.name, field.default, field_hints(method_class(slug))[field.name]) == field.default


def _is_accepted(text: str) -> bool:
    try:
        return parse_with(text) is not None
    except BadInput:
        return False


def test_words_of_every_knob_name_null_where_it_is_the_default() -> None:
    for slug in own_methods():
        for name, hint in field_hints(method_class(slug)).items():
            if getattr(method_class(slug), name, 0) is None:
                assert words(hint).endswith("or null"), f"{slug}.{name}"


# --- values as text ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7", 0.7),
        ("true", True),
        ("null", None),
        ("[0.5, 1]", [0.5, 1]),
        ('{"a": [1]}', {"a": [1]}),
        ("random", "random"),
        (" random ", "random"),
        ("None", "None"),
        ("", ""),
        ("10/255", 10 / 255),
        ("-1/3", -1 / 3),
        ("1/0", "1/0"),
        ("runs/1", "runs/1"),
        ("50%", 0.5),
        ("12.5%", 0.125),
        ("5ms", Duration(0.005)),
        ("20us", Duration(2e-5)),
        ("2s", Duration(2.0)),
        ("4k", 4000),
        ("1.82G", 1_820_000_000),
        ("0.0005k", 0.5),
        ("86M", 86_000_000),
        (".485", 0.485),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".5%", 0.005),
        ("+5", 5),
        (".", "."),
        ("007", "007"),
        ("-007", "-007"),
        ("٥%", "٥%"),
        ("1.2.3", "1.2.3"),
        ("3a", "3a"),
        ("5px", "5px"),
        ("5 ms", "5 ms"),
        ("1.82g", "1.82g"),
        ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
        ("[lph_dw,gah2]", ["lph_dw", "gah2"]),
        ("(1,2)", [1, 2]),
        ("[]", []),
        ("()", []),
        ("{}", {}),
        ("[(1,2),[random,{a: 50%}]]", [[1, 2], ["random", {"a": 0.5}]]),
        ("{crop: pad, scale: [0.5,1]}", {"crop": "pad", "scale": [0.5, 1]}),
        ("{'a': 1}", {"a": 1}),
        ('"a,b"', "a,b"),
        ("'a,b'", "a,b"),
        ('["a,b",c]', ["a,b", "c"]),
        ("['10/255',\"5ms\"]", ["10/255", "5ms"]),
        ('["a\\",b",c]', ['a",b', "c"]),
        ("it's", "it's"),
        ("fc(1,2)", "fc(1,2)"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_values_are_read(text: str, value: Any) -> None:
    found = read_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1,2", "lacks a closing ]"),
        ("[(1,2]", "lacks a closing )"),
        ("{a: 1", "lacks a closing }"),
        ("'a", "lacks a closing '"),
        ('["a]', 'lacks a closing "'),
        ("[1,,2]", "an empty place"),
        ("[1,]", "an empty place"),
        ("1,2", "a comma outside brackets"),
        ("{a}", "'a' is not name: value"),
        ("[" * 50_000, "opens more than 50 brackets"),
        ("[" * 50_000 + "]" * 50_000, "opens more than 50 brackets"),
    ],
)
def test_what_is_not_closed_or_empty_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        read_value(text)
    assert said in str(error.value) and len(str(error.value)) < 300


def test_a_duration_is_no_share() -> None:
    with pytest.raises(BadInput, match=r"^latency is 0.005s; accepted: a number above 0"):
        parse_with("nvit:latency=5ms")


def test_a_method_with_such_values() -> None:
    made = parse_with("evit:keep_rate=(50%,1/2,1,1),select=random,fuse=false")
    assert made.keep_rate == (0.5, 0.5, 1, 1) and made.select == "random" and made.fuse is False
    assert split_values('a="x,y",b=[1,(2,3)],c') == ['a="x,y"', "b=[1,(2,3)]", "c"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@QUICK
@given(JSON)
def test_json_is_read_as_json(value: Any) -> None:
    assert read_value(json.dumps(value)) == value


@QUICK
@given(JSON)
def test_what_is_written_is_read_back(value: Any) -> None:
    text = write_value(value)
    assert read_value(text) == value
    assert read_value(f"[{text},x]") == [value, "x"]
    assert split_values(f"a={text},b=1") == [f"a={text}", "b=1"]
