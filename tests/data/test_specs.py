from __future__ import annotations

import os

import pytest

from leanvit.data import open_dataset
from leanvit.data.specs import parse_spec, with_options
from leanvit.errors import BadInput
from pictures import write_folder


def test_a_spec_is_a_place_and_options():
    spec = parse_spec("list:a/train.txt?val=a/val%26.txt&root=pics&on_bad=skip&classes=cat,a%2Cb")
    assert (spec.kind, spec.where) == ("list", "a/train.txt")
    assert spec.options["val"] == "a/val&.txt" and spec.names("classes") == ("cat", "a,b")
    assert parse_spec("wds:t-{0..9}.tar?resampled&epoch=10").whole("epoch") == 10
    assert [parse_spec(text).kind for text in ("digits", "x.csv", "x.TSV", "hf:a:b", "x")] == [
        "digits", "csv", "csv", "hf", "parquet",
    ]  # fmt: skip


def test_a_file_whose_name_has_a_question_mark(tmp_path):
    (tmp_path / "what?.csv").write_text("")
    assert parse_spec(str(tmp_path / "what?.csv")).kind == "csv"


@pytest.mark.parametrize("name", ["what?", "a?b", "?", "a?shots=1", "a&b", "100%2C", "a b", "a\nb", "~x?"])
def test_a_folder_of_any_name_opens_with_and_without_options(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, {"cat": 3, "dog": 3})
    for spec in (name, f"{name}?", f"./{name}", str(tmp_path / name)):
        dataset = open_dataset(spec, classes=["dog"], shots=2, on_bad="skip")
        assert (dataset.classes, len(dataset)) == (["dog"], 2) and "?classes=dog&shots=2&on_bad=skip" in dataset.spec
        assert open_dataset(dataset.spec).keys == dataset.keys


def test_a_name_that_is_no_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(path)
    with pytest.raises(BadInput, match="is no UTF-8 text"):
        open_dataset(path)


def test_added_options_open_the_same_again():
    few = open_dataset("digits", "train", classes=("3", "1"), shots=2, on_bad="skip")
    assert few.spec == "digits?classes=3,1&shots=2&on_bad=skip"
    again = open_dataset(few.spec, "train")
    assert again.keys == few.keys and again.classes == ["3", "1"] and len(few) == 4
    assert with_options("digits?shots=2", {"shots": 2, "classes": None}) == "digits?shots=2"
    assert parse_spec(with_options("digits", {"classes": ("a,b", "c&d")})).names("classes") == ("a,b", "c&d")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "data is empty; accepted forms:"),
        ("?shots=2", "names nothing before its options"),
        ("a\0b", "holds a zero byte"),
        ("caf\udce9", "does not exist"),
        ("~nobody-of-this-name/x?shots=2", "does not exist"),
        ("a" * 5000 + "?shots=2", "cannot be opened: File name too long"),
        ("nothing-here?layout=classes", "does not exist"),
        ("digits?layout=classes", "unknown option"),
        ("list:", "names nothing; accepted forms:"),
        ("digits?shot=3", "unknown option of data 'digits\\?shot=3' 'shot': did you mean 'shots'"),
        ("digits?root=a", "unknown option"),
        ("digits?shots=0", "shots='0'; accepted: a whole number >= 1"),
        ("digits?shots", "option shots needs a value"),
        ("digits?classes=,", "classes is empty"),
        ("digits?on_bad=ignore", "unknown on_bad 'ignore'"),
        ("digits?classes=1,twelve", "'twelve' is no class of data .*: Known: 0, 1"),
        ("digits?classes=1,12", "'12' is no class of data .*: 0 to 9"),
        ("digits?classes=1,1", "'1' comes twice"),
        ("hf:x?streaming=no", "streaming is a switch"),
        ("hf:x?epoch=5", "epoch is for streaming"),
        ("wds:pipe:cat x", "is no local path"),
        ("wds:https://example.org/a.tar", "is no local path"),
        ("wds:nothing-{0..2}.tar", "3 of its 3 shards do not exist: nothing-0.tar, nothing-1.tar"),
        ("list:nothing.txt", "nothing.txt does not exist"),
    ],
)
def test_a_spec_that_is_not_understood(spec, text):
    with pytest.raises(BadInput, match=text):
        open_dataset(spec)


def test_an_option_that_is_given_twice_must_agree():
    with pytest.raises(BadInput, match="has shots=3, but shots=4 is given, too"):
        open_dataset("digits?shots=3", shots=4)
