"""A published run: small, measured, whole, and without anyone's folders."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from two_stages import LIMIT, Stages

from leanvit.data import loader, open_dataset
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused
from leanvit.files import file_sha256
from leanvit.measure import accuracy, agreement, count, predict
from leanvit.recipe import load_run
from leanvit.recipe.catalogue import read_record
from leanvit.runs.commands import commands_of
from leanvit.runs.logs import training_logs
from leanvit.verbs import publish
from leanvit.verbs.publishing import _placeless, _placeless_command, _recipes, _thinned


def test_the_copy_is_the_run_rounded(stages: Stages) -> None:
    run, copy = load_run(stages.second), load_run(stages.published.folder)
    assert copy.stored_as == "float16" and run.stored_as == ""
    assert (copy.preprocess, copy.classes) == (run.preprocess, run.classes)
    theirs = copy.model.state_dict()
    for key, tensor in run.model.state_dict().items():
        assert theirs[key].dtype == torch.float32 and torch.equal(theirs[key], tensor.half().float()), key


def test_the_record_is_what_can_be_measured_again(stages: Stages) -> None:
    record = read_record(stages.published.folder)
    assert record == stages.published.record
    run, copy = load_run(stages.second), load_run(stages.published.folder)
    val = open_dataset("digits", "val", limit=LIMIT)
    before, after = (predict(r.model, loader(val, run.preprocess, batch_size=32)) for r in (run, copy))
    assert 30 < record.score[0] == round(100 * accuracy(before).value, 2), "better than chance"
    assert record.stored_score[0] == round(100 * accuracy(after).value, 2)
    assert record.agreement_percent == round(100 * agreement(before, after).value, 2)
    cost = count(run.model, run.preprocess.input_size)
    assert (record.parameters, record.macs, record.images) == (cost.params, cost.macs, len(val))
    assert record.weights_sha256 == file_sha256(next(stages.published.folder.glob("weights-*")))


def test_the_record_says_how_it_was_made(stages: Stages) -> None:
    record = stages.published.record
    ends = [json.loads(log.read_text().splitlines()[-1]) for log in training_logs(stages.second)]
    assert record.epochs == 14
    assert record.training_seconds == pytest.approx(sum(end["seconds"] for end in ends), abs=0.06)
    assert record.presets == ("tiny", "tiny_finish") and record.licence == "Apache-2.0"
    assert record.trained_on == "a machine" and record.seed == 0
    assert record.commands == (
        "leanvit train vit_tiny_patch16_224 --data digits --out a",
        "leanvit train a --out b",
    )


def test_recipes_are_those_that_the_run_names() -> None:
    stages = [{"recipe": {"name": "cifar10_vit"}}, {"training": {}}]
    assert _recipes({"stages": stages, "recipe": {"name": "cifar10_vit_finish"}}) == (
        "cifar10_vit",
        "cifar10_vit_finish",
    )
    assert _recipes({"data": "digits"}) == ()


def test_nobodys_folders_are_published(stages: Stages) -> None:
    place = str(stages.first.parent)
    for path in stages.published.folder.iterdir():
        assert place.encode() not in path.read_bytes(), path.name
    assert [c.verb for c in commands_of(stages.published.folder)] == ["train", "train", "publish"]


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("/home/me/photos", "photos"),
        ("list:/home/me/my files/a.csv", "list:a.csv"),
        ("wds:/data/{000..010}.tar", "wds:{000..010}.tar"),
        ("/data/photos?classes=a,b", "photos?classes=a,b"),
        ("--data=/data/photos", "--data=photos"),
        ("/photos/", "photos/"),
        ("runs/a/b", "runs/a/b"),
        ("./runs/a", "./runs/a"),
        ("../b", "../b"),
        ("hf:someone/set", "hf:someone/set"),
        ("https://host/a/b", "https://host/a/b"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_name(word: str, left: str) -> None:
    assert _placeless({"data": [word]}) == {"data": [left]}
    assert _placeless_command(f"leanvit train --title 'a b' '{word}'") in (
        f"leanvit train --title 'a b' '{left}'",
        f"leanvit train --title 'a b' {left}",
    )


def test_logs_are_thinned_and_keep_their_epochs() -> None:
    rows = [{"event": "start"}, *({"event": "step", "step": i} for i in range(1000)), {"event": "epoch"}]
    kept = _thinned(rows)
    assert [row["event"] for row in kept].count("step") == 334 and kept[0] == rows[0] and kept[-1] == rows[-1]
    assert [row["step"] for row in kept if row["event"] == "step"][:3] == [0, 3, 6]
    assert _thinned(rows[:300]) == rows[:300]


def test_float32_changes_nothing(stages: Stages, tmp_path) -> None:
    found = publish(stages.second, "digits", tmp_path / "exact", store="float32", limit=20)
    assert found.record.stored_as == "" and found.record.agreement_percent == 100.0
    run, copy = load_run(stages.second).model.state_dict(), load_run(tmp_path / "exact").model.state_dict()
    assert all(torch.equal(run[key], copy[key]) for key in run)
    assert found.record.trained_on == load_run(stages.second).info["machine"]
    assert stages.published.size_bytes < 0.8 * found.size_bytes


def test_what_takes_too_much_is_not_written(stages: Stages, tmp_path) -> None:
    with pytest.raises(Refused, match=r"takes 0\.\d\d MB; --most-mb accepts 0.01"):
        publish(stages.second, "digits", tmp_path / "copy", most_mb=0.01, limit=20)
    assert not (tmp_path / "copy").exists()


def test_a_copy_is_replaced_whole_or_not_at_all(stages: Stages, tmp_path, monkeypatch) -> None:
    out = tmp_path / "copy"
    publish(stages.first, "digits", out, limit=20)
    with pytest.raises(BadInput, match="not empty"):
        publish(stages.second, "digits", out, limit=20)
    publish(stages.second, "digits", out, limit=20, overwrite=True)
    assert len(list(out.glob("weights-*"))) == 1
    assert torch.equal(load_run(out).model.head.weight, load_run(stages.published.folder).model.head.weight)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leanvit.verbs.publishing._copy", full)
    with pytest.raises((LeanvitError, OSError), match="No space left"):
        publish(stages.first, "digits", tmp_path / "other", limit=20)
    assert not (tmp_path / "other").exists()


def test_a_damaged_log_is_said(stages: Stages, tmp_path) -> None:
    run = shutil.copytree(stages.second, tmp_path / "run")
    (run / "train.jsonl").write_text('{"event": "epoch"}\n')
    with pytest.raises(CheckpointError, match=r"train\.jsonl is not a log of training"):
        publish(run, "digits", tmp_path / "copy", limit=20)
    assert not (tmp_path / "copy").exists()
