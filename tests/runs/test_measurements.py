"""What verbs keep for the page: whole, small, bound to its comparison, and read with care."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from leanvit.data import open_dataset
from leanvit.errors import BadInput, CheckpointError
from leanvit.measure import Predictions
from leanvit.runs import disagreements
from leanvit.runs.disagreements import load_pictures, pictures, save_pictures
from leanvit.runs.evidence import Answers, Evidence
from leanvit.runs.logs import read_curve
from leanvit.runs.measurements import keep
from leanvit.runs.thumbnails import data_uri, encoded


def test_evidence_comes_back_as_it_was(evidence, tmp_path) -> None:
    assert evidence.save(tmp_path / "p.safetensors")
    found = Evidence.load(tmp_path / "p.safetensors")
    assert (found.data, found.of, found.keys, list(found.answers)) == (
        evidence.data,
        evidence.of,
        evidence.keys,
        list(evidence.answers),
    )
    for name, one in evidence.answers.items():
        assert np.array_equal(found.answers[name].classes, one.classes)
        assert np.array_equal(found.answers[name].confidence, one.confidence)


def test_evidence_of_logits_pairs_by_key() -> None:
    a = Predictions(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), ("x", "y"))
    b = Predictions(torch.tensor([[0.0, 3.0], [0.0, 1.0]]), torch.tensor([1, 0]), ("y", "x"))
    found = Evidence.of_predictions({"a": a, "b": b}, data="d", comparison=b"{}")
    assert found.answers["b"].classes.tolist() == [1, 1]
    assert found.answers["b"].confidence.tolist() == pytest.approx([0.7310586, 0.9525741])
    assert found.right("b").tolist() == [False, True]


def test_too_much_evidence_is_not_written(evidence, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("leanvit.runs.evidence.LIMIT_BYTES", 50)
    assert not evidence.save(tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [10, 300])
def test_truncated_evidence_is_named(evidence, tmp_path, size) -> None:
    path = tmp_path / "p.safetensors"
    evidence.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"p\.safetensors cannot be read as evidence"):
        Evidence.load(path)


def test_foreign_tensors_are_refused(tmp_path) -> None:
    save_file({"targets": np.zeros(2, np.int32)}, tmp_path / "x", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds no evidence.*'pt'"):
        Evidence.load(tmp_path / "x")


def test_answers_that_do_not_fit_are_refused(evidence) -> None:
    short = Answers(np.zeros(3, np.int32), np.zeros(3, np.float32))
    with pytest.raises(BadInput, match="evidence of slim: 4 keys"):
        replace(evidence, answers={"slim": short})
    unlikely = Answers(np.zeros(4, np.int32), np.full(4, 1.5, np.float32))
    with pytest.raises(BadInput, match="must be probabilities"):
        replace(evidence, answers={"slim": unlikely})


def predictions(dataset, flip: int) -> Predictions:
    """Right everywhere, but for the first `flip` images, which are taken for the next class."""
    targets = torch.from_numpy(dataset.targets)
    answers = targets.clone()
    answers[:flip] = (answers[:flip] + 1) % 10
    return Predictions(torch.nn.functional.one_hot(answers, 10).float() * 5, targets, dataset.keys)


def test_keep_writes_answers_and_pictures_of_disagreements(make_row, compare_rows, tmp_path) -> None:
    digits = open_dataset("digits", "val", limit=12)
    comparison = replace(compare_rows(make_row("dense"), make_row("slim")), images=12)
    file = tmp_path / "measure-2.json"
    keep(comparison, {"dense": predictions(digits, 0), "slim": predictions(digits, 3)}, digits, file)
    assert Evidence.load(tmp_path / "predictions-2.safetensors").data == "digits"
    made = load_pictures(tmp_path / "disagreements-2.json")
    assert set(made) == set(digits.keys[:3])
    assert all(data_uri(text).startswith("data:image/png;base64,") for text in made.values())


def test_a_file_of_another_name_is_kept_alone(comparison, tmp_path) -> None:
    digits = open_dataset("digits", "val", limit=12)
    keep(comparison, {"dense": predictions(digits, 0)}, digits, tmp_path / "mine.json")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_pictures_stop_when_they_are_full(monkeypatch) -> None:
    digits = open_dataset("digits", "val", limit=12)
    one = len(encoded(digits[0].image, side=disagreements.SIDE))
    monkeypatch.setattr(disagreements, "MOST_BYTES", one + 1)
    assert list(pictures(digits, [digits.keys[0], "not there", *digits.keys[1:]])) == [digits.keys[0]]


def test_photos_are_small_jpegs_and_drawings_exact_pngs() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise), side=120)
    assert data_uri(photo).startswith("data:image/jpeg") and len(photo) < 15_000
    assert data_uri(encoded(Image.new("L", (8, 8)), side=120)).startswith("data:image/png")


@pytest.mark.parametrize("content", ["[]", '{"format": 9, "pictures": {}}', '{"format": 1, "pictures": {"a": 3}}', "{"])
def test_foreign_pictures_are_refused(tmp_path, content) -> None:
    path = tmp_path / "disagreements.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"disagreements\.json does not hold pictures"):
        load_pictures(path)
    save_pictures(path, {"a": "x"})
    assert load_pictures(path) == {"a": "x"}


def test_a_log_of_training_gives_its_curve(tmp_path) -> None:
    rows = [
        {"event": "start", "step": 0},
        {"event": "step", "step": 10, "epoch": 0, "lr": 0.1, "loss": 2.0},
        {"event": "step", "step": 20, "epoch": 0, "lr": 0.2, "loss": float("nan")},
        {"event": "epoch", "epoch": 0, "step": 20, "lr": 0.2, "loss": 1.9, "top1": 0.5},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "st')
    curve = read_curve(path)
    assert curve.loss == ((10.0, 2.0),), "a loss that is not finite is not drawn"
    assert curve.lr == ((10.0, 0.1), (20.0, 0.2))
    assert curve.score == ((20.0, 50.0),)
    assert read_curve(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize(
    ("start", "key", "score", "title"),
    [
        ({}, "map", 50.0, "mAP"),
        ({"metric": {"name": "miou", "title": "mean IoU", "better": "higher", "unit": "%"}}, "miou", 50.0, "mean IoU"),
        ({"metric": {"name": "rmse", "title": "RMSE", "better": "lower", "unit": "m"}}, "rmse", 0.5, "RMSE"),
    ],
)
def test_a_log_says_its_metric(tmp_path, start, key, score, title) -> None:
    rows = [{"event": "start", "step": 0, **start}, {"event": "epoch", "step": 20, "loss": 1.9, key: 0.5}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_curve(path)
    assert (curve.score, curve.metric.title) == (((20.0, score),), title)
    path.write_text(json.dumps({"event": "start", "metric": {"name": "a"}}) + "\n")
    with pytest.raises(CheckpointError, match=r"train\.jsonl is not a log of training"):
        read_curve(path)


def test_a_damaged_log_is_named(tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"train\.jsonl is not a log of training"):
        read_curve(path)
