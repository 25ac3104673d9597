"""Names of references: what is one, what is a folder, what is neither."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import catalogue, load, reference, references
from leanvit.recipe.catalogue import read_record, reference_name, run_folder
from record_example import record


@pytest.fixture
def two(tmp_path: Path, monkeypatch) -> Path:
    """Two references, and an empty working directory."""
    for name in ("digits_vit", "digits_swin"):
        folder = tmp_path / "references" / name
        folder.mkdir(parents=True)
        (folder / "leanvit.json").write_text("{}")
        (folder / "reference.toml").write_text(record(title=name).to_toml(), encoding="utf-8")
    (tmp_path / "references" / "half-written").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path / "references")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "references"


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / "reference.toml").write_text(record().to_toml(), encoding="utf-8")
    assert read_record(tmp_path) == record()
    assert tomllib.loads(record().to_toml())["presets"] == ["digits_vit"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("title = ", "is not a record"),
        (record().to_toml().replace("stored_as", "stored_at"), "unknown key 'stored_at': did you mean 'stored_as'"),
        (record().to_toml().replace("images = 359", 'images = "many"'), "images: .*integer"),
        (record().to_toml().replace("seed = 0\n", ""), "seed: .*required|seed: .*[Mm]issing"),
    ],
)
def test_a_damaged_record_is_said(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "reference.toml").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"reference\.toml(.|\n)*({says})"):
        read_record(tmp_path)


def test_references_are_the_folders_that_hold_a_run(two: Path) -> None:
    assert [one.spec for one in references()] == ["leanvit/digits_swin", "leanvit/digits_vit"]
    assert reference("digits_vit") == reference("leanvit/digits_vit")
    assert reference("digits_vit").size_bytes == sum(p.stat().st_size for p in (two / "digits_vit").iterdir())


def test_a_name_leads_into_the_package(two: Path) -> None:
    assert run_folder("leanvit/digits_vit") == two / "digits_vit"
    assert run_folder("runs/mine") == Path("runs/mine")
    assert run_folder(Path("leanvit/digits_vit")) == Path("leanvit/digits_vit"), "a Path is a place on disk"
    assert reference_name("leanvit/../secret") is None and reference_name("leanvit/a/b") is None
    assert reference_name("vit_tiny_patch16_224") is None


def test_an_unknown_name_gives_the_nearest(two: Path, monkeypatch) -> None:
    with pytest.raises(BadInput, match="unknown reference 'leanvit/digits_vti': did you mean 'leanvit/digits_vit'"):
        load("leanvit/digits_vti")
    with pytest.raises(BadInput, match="did you mean 'leanvit/digits_vit'"):
        reference("leanvit/digit_vit")
    monkeypatch.setattr(catalogue, "FOLDER", two / "half-written")
    with pytest.raises(BadInput, match="without references"):
        load("leanvit/digits_vit")


def test_a_folder_of_the_same_path_is_never_mistaken_for_a_reference(two: Path) -> None:
    Path("leanvit/digits_vit").mkdir(parents=True)
    Path("leanvit/mine").mkdir()
    with pytest.raises(BadInput, match=r"a reference of leanvit and a folder here: give \./leanvit/digits_vit"):
        run_folder("leanvit/digits_vit")
    assert run_folder("./leanvit/digits_vit") == Path("leanvit/digits_vit")
    assert run_folder("leanvit/mine") == Path("leanvit/mine"), "no reference has this name"
    assert run_folder("leanvit/digits_swin") == two / "digits_swin"
