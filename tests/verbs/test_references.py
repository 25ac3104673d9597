"""References by name, in Python and on the command line; and every reference that comes with the package."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from two_stages import Stages
from typer.testing import CliRunner, Result

import leanvit as lv
from leanvit.cli.main import app
from leanvit.data import loader, open_dataset
from leanvit.errors import BadInput
from leanvit.files import file_sha256
from leanvit.measure import accuracy, count, predict
from leanvit.recipe import Reference, catalogue, load_run, references
from leanvit.recipe.store import STORED_AS
from leanvit.runs.commands import commands_of
from leanvit.runs.logs import training_logs
from leanvit.verbs.models import load_model

DIGITS = ["--data", "digits", "--limit", "40"]


def run(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result


def files(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in [folder, *folder.rglob("*")]}


# --- by name ----------------------------------------------------------------------------------------------------------


def test_python_loads_it_by_name(named: Stages) -> None:
    by_name, by_path = lv.load("leanvit/tiny"), lv.load(named.published.folder)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(by_name(x), by_path(x))
    loaded = load_model("leanvit/tiny")
    assert (loaded.name, loaded.base, loaded.reference, loaded.home) == ("leanvit/tiny", "tiny", "tiny", None)
    with pytest.raises(BadInput, match="leanvit/tiny is a reference: model arguments can only be given"):
        load_model("leanvit/tiny", model_args={"depth": 1})


def test_it_is_measured_under_its_name_and_the_package_stays_as_it_was(named: Stages) -> None:
    before = files(named.published.folder)
    against = ["--against", str(shutil.copytree(named.second, "mine")), "--rounds", "3"]
    payload = json.loads(run("measure", "leanvit/tiny", *against, *DIGITS, "--json").stdout)
    assert [row["name"] for row in payload["comparison"]["rows"]] == ["dense", "leanvit/tiny"]
    assert payload["file"] is None
    run("export", "leanvit/tiny", "--to", "torch")
    assert Path("runs/tiny-torch/artefact.json").is_file()
    assert files(named.published.folder) == before


def test_what_is_made_from_it_says_so(named: Stages) -> None:
    run("compress", "leanvit/tiny", "--with", "tome:r=4", "--out", "lean")
    lean = load_run("lean")
    assert lean.info["reference"] == "leanvit/tiny" and [p.slug for p in lean.model.history.plans] == ["tome"]
    assert lean.stored_as == "", "a run of one's own is kept as it is"
    assert [c.verb for c in commands_of(Path("lean"))] == ["train", "train", "publish", "compress"]
    run("report", "lean", "leanvit/tiny", "--out", "page.html")
    page = Path("page.html").read_text()
    assert "vit_tiny_patch16_224 (leanvit/tiny)" in page
    refused = CliRunner().invoke(app, ["report", "leanvit/tiny"])
    assert refused.exit_code == 2 and "--out is needed" in refused.stderr


def test_it_can_be_trained_on(named: Stages) -> None:
    run("train", "leanvit/tiny", *DIGITS, "--epochs", "1", "--batch-size", "20", "--out", "own")
    info = load_run("own").info
    assert info["from"] == "leanvit/tiny" and len(info["stages"]) == 2 and "reference" not in info
    assert [log.name for log in training_logs(Path("own"))] == ["train-1.jsonl", "train-2.jsonl", "train.jsonl"]


def test_the_program_lists_it(named: Stages) -> None:
    shown = run("references").stdout
    record = named.published.record
    assert "leanvit/tiny" in shown and f"top-1 {record.stored_score[0]:.2f} %" in shown
    (row,) = json.loads(run("references", "--json").stdout)
    assert row["name"] == "leanvit/tiny" and row["weights_sha256"] == record.weights_sha256
    one = run("references", "tiny").stdout
    assert "tiny_finish" in one and "licence: Apache-2.0" in one
    assert json.loads(run("references", "leanvit/tiny", "--json").stdout) == row


def test_none_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    assert run("references").stdout == "this leanvit comes without references\n"
    assert json.loads(run("references", "--json").stdout) == []


# --- those of the package ---------------------------------------------------------------------------------------------

PACKAGED = references()


@pytest.fixture(params=PACKAGED or [None], ids=lambda one: one.name if one else "none")
def packaged(request: pytest.FixtureRequest) -> Reference:
    if request.param is None:
        pytest.skip("no reference in this checkout yet: leanvit publish RUN --out src/leanvit/references/NAME")
    return request.param


def test_a_packaged_reference_is_small_sealed_and_in_half_precision(packaged: Reference, monkeypatch) -> None:
    monkeypatch.setattr("socket.socket", None)  # offline
    assert packaged.size_bytes <= catalogue.MOST_BYTES
    loaded = load_run(packaged.spec)
    record = packaged.record
    assert loaded.stored_as == record.stored_as == "float16" and loaded.stored_as in STORED_AS
    assert file_sha256(next(packaged.folder.glob("weights-*"))) == record.weights_sha256
    cost = count(loaded.model, record.input_size)
    assert 2e6 <= cost.params <= 6e6
    assert (cost.params, cost.macs) == (record.parameters, record.macs)
    assert loaded.preprocess is not None and loaded.preprocess.input_size == record.input_size
    assert len(loaded.classes) == record.classes and training_logs(packaged.folder)
    assert record.licence and record.data_source and record.trained_on != "not recorded"


def test_a_packaged_reference_names_recipes_that_exist(packaged: Reference) -> None:
    presets = Path(lv.__file__).parent / "presets"
    for name in packaged.record.presets:
        assert tomllib.loads((presets / f"{name}.toml").read_text(encoding="utf-8"))


@pytest.mark.e2e
def test_a_packaged_reference_is_as_good_as_its_record_says(packaged: Reference, shared: Path) -> None:
    """On 400 images of its data: within four standard errors of the figure of all of them."""
    folder = shared / "data" / packaged.record.data
    if not folder.is_dir():
        pytest.skip(f"no {packaged.record.data} in the shared data")
    loaded = load_run(packaged.spec)
    sample = open_dataset(str(folder), "val", limit=400)
    found = 100 * accuracy(predict(loaded.model, loader(sample, loaded.preprocess, batch_size=50))).value
    said = packaged.record.stored_score[0]
    assert abs(found - said) <= 400 * (said / 100 * (1 - said / 100) / 400) ** 0.5


@pytest.mark.e2e
def test_a_packaged_reference_runs_from_the_command_line(packaged: Reference, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert packaged.spec in run("references").stdout
    run("export", packaged.spec, "--to", "torch", "--batch", "2", "--out", "artefact")
