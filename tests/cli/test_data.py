"""`leanvit data`, and the data options of the other verbs, as typed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from leanvit.recipe import load_run

TINY = ["--model-arg", "depth=2", "--model-arg", "embed_dim=24", "--model-arg", "num_heads=2"]


def noise(number: int, size: int = 8) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def tagged(tmp_path):
    """100 grey images with two labels each; one of them is cut short."""
    lines = ["image,bright,wide,split"]
    for number in range(100):
        noise(number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},{number % 3 == 0:d},{'val' if number >= 80 else 'train'}")
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:60])
    return tmp_path


def test_data_says_what_there_is(invoke, tagged) -> None:
    shown = invoke("data", tagged / "tags.csv", "--grid", tagged / "g.png")
    assert shown.exit_code == 0, shown.output
    for part in ("csv table, grey, 2 classes, several labels an image", "image '7.png' cannot be decoded", "no leak"):
        assert part in shown.stdout, part
    payload = json.loads(invoke("data", tagged / "tags.csv", "--all", "--json").stdout)
    assert [split["images"] for split in payload["splits"]] == [80, 20] and payload["splits"][0]["per_class"][
        "bright"
    ] == 40


def test_several_labels_are_trained_compressed_and_measured(invoke, tagged) -> None:
    data = ["--data", tagged / "tags.csv", "--on-bad", "skip"]
    small = ["--adapt", *TINY, "--epochs", "1", "--batch-size", "10"]
    trained = invoke("train", "vit_tiny_patch16_224", *data, *small, "--out", tagged / "run")
    assert trained.exit_code == 0, trained.output
    assert "mAP" in trained.stdout and "1 image could not be read, left out:" in trained.stderr
    slim = [
        "--with",
        "evit:blocks=[1]",
        "--with",
        "int8:images=8",
        "--recover",
        "1",
        "--batch",
        "2",
        "--out",
        tagged / "slim",
        "--json",
    ]
    done = invoke("compress", tagged / "run", *data, *slim)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["comparison"]["rows"]
    assert [row["name"] for row in rows] == ["dense", "+ evit", "+ recovery", "+ int8"]
    assert all(0 < row["scores"][0]["value"] <= 100 and row["scores"][1]["n"] == 20 for row in rows)
    assert load_run(tagged / "slim").classes == ("bright", "wide")
    refused = invoke("train", "vit_tiny_patch16_224", *data, *small, "--set", "mixup=0.2", "--out", tagged / "no")
    assert refused.exit_code == 2 and "multi-label" in refused.stderr


def test_a_bad_image_stops_a_run_unless_it_is_skipped(invoke, tagged) -> None:
    small = ["--adapt", *TINY, "--epochs", "1", "--batch-size", "10", "--out", tagged / "run"]
    stopped = invoke("train", "vit_tiny_patch16_224", "--data", tagged / "tags.csv", *small)
    assert stopped.exit_code == 2 and "image '7.png' cannot be decoded" in stopped.stderr


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--classes", "1,eleven"], "'eleven' is no class"),
        (["--shots", "0"], "shots='0'"),
        (["--on-bad", "skipp"], "did you mean 'skip'"),
    ],
)
def test_a_wrong_choice_ends_with_2(invoke, options, hint) -> None:
    result = invoke("train", "vit_tiny_patch16_224", "--data", "digits", "--adapt", *options)
    assert result.exit_code == 2 and hint in result.stderr, result.output


def test_classes_and_shots_are_part_of_the_record(invoke, tmp_path) -> None:
    chosen = ["--classes", "3,8", "--shots", "6", "--adapt", *TINY, "--epochs", "1", "--batch-size", "6"]
    done = invoke("train", "vit_tiny_patch16_224", "--data", "digits", *chosen, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    run = load_run(tmp_path / "run")
    assert run.classes == ("3", "8") and run.info["data"] == "digits?classes=3,8&shots=6"
