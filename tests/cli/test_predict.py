"""`leanvit predict` as a user types it: what is printed, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import leanvit as lv
from leanvit.recipe import create
from leanvit.tasks import Segmentation
from task_models import PREPROCESS, pixels

ODD = "[red]x\x1b[31m.png"  # markup, and a control sequence of terminals


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("predict")
    size = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 2}
    model = create(lv.Root("vit_tiny_patch16_224", size))
    lv.save(model, place / "run", preprocess=lv.Preprocess.of(model), classes=["ant", "[b]bee"])
    (place / "photos").mkdir()
    for name in ("a.png", ODD, *(f"more{i:02}.png" for i in range(20))):
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(place / "photos" / name)
    (place / "photos" / "bad.jpg").write_bytes(b"")
    return place


def test_without_a_file_a_short_table_is_printed_and_names_are_escaped(place: Path, invoke) -> None:
    done = invoke("predict", place / "run", place / "photos", "--top", "2")
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output and r"[red]x\x1b[31m.png" in done.stdout and "[b]bee" in done.stdout
    assert "22 of 23 images answered" in done.stdout and "1 image could not be read:" in done.stdout
    assert "… and 3 more: --out answers.csv keeps all of them" in done.stdout and "more19" not in done.stdout


def test_json_on_stdout_holds_every_answer(place: Path, invoke) -> None:
    payload = json.loads(invoke("predict", place / "run", place / "photos", "--json").stdout)
    assert (payload["images"], payload["failed"], len(payload["answers"])) == (23, 1, 23)
    assert {"image": ODD, "classes": payload["answers"][0]["classes"]}.items() <= payload["answers"][0].items()


@pytest.mark.parametrize(
    ("images", "code", "said"),
    [
        (["photos/bad.jpg"], 1, "the image could not be read"),
        (["photos/bad.jpg", "photos/a.png"], 0, "1 of 2 images answered"),
        (["-"], 2, "images is '-'; accepted"),
        (["fotos"], 2, "did you mean 'photos'"),
        ([], 2, "IMAGES"),
    ],
)
def test_how_it_ends(place: Path, invoke, tmp_path: Path, monkeypatch, images: list[str], code: int, said: str) -> None:
    monkeypatch.chdir(place)
    file = tmp_path / "a.csv"
    done = invoke("predict", "run", *images, "--out", file)
    assert done.exit_code == code and said in done.output
    assert file.exists() == (code < 2)


def test_columns_of_a_task_are_shown_and_masks_said(place: Path, invoke, tmp_path: Path) -> None:
    model = pixels()
    model.task = Segmentation(classes=("none", "[b]faint", "full"))
    lv.save(model, tmp_path / "run", preprocess=PREPROCESS)
    done = invoke("predict", tmp_path / "run", place / "photos")
    assert done.exit_code == 0 and "share_[b]faint" in done.stdout and "22 of 23 images answered" in done.stdout
    shown = json.loads(invoke("predict", tmp_path / "run", place / "photos" / "a.png", "--json").stdout)["answers"][0]
    assert list(shown) == ["image", "share_none", "share_[b]faint", "share_full"]
    written = invoke("predict", tmp_path / "run", place / "photos", "--out", tmp_path / "a.csv")
    assert "a-masks: 22 masks, whose values are the classes: 0 none, 1 [b]faint, 2 full" in " ".join(
        written.stderr.split()
    )


def test_a_task_is_said_for_a_model_that_does_not(place: Path, invoke, tmp_path: Path) -> None:
    model = pixels(task=False)
    lv.save(model, tmp_path / "run", preprocess=PREPROCESS)
    refused = invoke("predict", tmp_path / "run", place / "photos")
    assert refused.exit_code == 2 and "--task NAME" in refused.stderr
    told = invoke("predict", tmp_path / "run", place / "photos", "--task", "segmentation:classes=[a,b,c]", "--json")
    answer = json.loads(told.stdout)["answers"][0]
    assert list(answer) == ["image", "share_a", "share_b", "share_c"] and told.exit_code == 0
