"""Run folders: free names, nothing replaced unasked, the record of commands."""

import json

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.runs.clearing import clear_run
from leanvit.runs.commands import Stopwatch, commands_of
from leanvit.runs.folders import new_file, new_folder


def test_a_default_folder_is_the_first_free_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(new_folder(None, "vit tiny/x")) == "runs/vit-tiny-x"
    (tmp_path / "runs" / "slim").mkdir(parents=True)
    assert str(new_folder(None, "slim")) == "runs/slim-2"


def test_a_folder_that_holds_something_needs_overwrite(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        new_folder(tmp_path, "x")
    with pytest.raises(BadInput, match="not a run"):
        new_folder(tmp_path, "x", overwrite=True)
    (tmp_path / "leanvit.json").write_text("{}")
    assert new_folder(tmp_path, "x", overwrite=True) == tmp_path
    with pytest.raises(BadInput, match="is a file"):
        new_folder(tmp_path / "file", "x", overwrite=True)
    assert new_folder(tmp_path / "new", "x") == tmp_path / "new"


def test_a_file_that_exists_needs_overwrite(tmp_path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(BadInput, match="exists"):
        new_file(page, page)
    with pytest.raises(BadInput, match="is a folder"):
        new_file(tmp_path, page)
    assert new_file(page, page, overwrite=True) == page
    assert new_file(None, page) == tmp_path / "report-2.html"
    assert new_file(None, page, overwrite=True) == page
    with pytest.raises(BadInput, match="--out is needed"):
        new_file(None, None)


def test_clearing_a_run_leaves_what_is_not_a_verb_s(tmp_path) -> None:
    for name in ("measure.json", "measure-2.json", "tokens.json", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "artefacts" / "openvino").mkdir(parents=True)
    clear_run(tmp_path, overwrite=False)
    assert len(list(tmp_path.iterdir())) == 5
    clear_run(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_commands_are_recorded_after_those_before_them(tmp_path) -> None:
    dense, slim = tmp_path / "dense", tmp_path / "slim"
    dense.mkdir()
    slim.mkdir()
    Stopwatch("train", "leanvit train x").record(dense)
    Stopwatch("compress", "leanvit compress y").record(slim, wrote="measure.json", before=commands_of(dense))
    first, second = commands_of(slim)
    assert (first.verb, second.verb, second.wrote) == ("train", "compress", "measure.json")
    assert second.seconds >= 0 and "leanvit" in second.versions and second.at.endswith("+00:00")
    assert commands_of(tmp_path) == ()


@pytest.mark.parametrize("line", ["{", "[]", '{"verb": "x"}', "null"])
def test_a_damaged_record_is_named(tmp_path, line) -> None:
    (tmp_path / "commands.jsonl").write_text(line)
    with pytest.raises(CheckpointError, match="not a record"):
        commands_of(tmp_path)


def test_a_record_of_the_wrong_kinds_is_refused(tmp_path) -> None:
    Stopwatch("x", "y").record(tmp_path)
    row = json.loads((tmp_path / "commands.jsonl").read_text())
    (tmp_path / "commands.jsonl").write_text(json.dumps({**row, "seconds": "<script>"}))
    with pytest.raises(CheckpointError, match="seconds"):
        commands_of(tmp_path)
