"""Answers that are maps are kept beside a measurement, read with it, and shown on the page."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leanvit
from leanvit.data import Masks
from leanvit.errors import CheckpointError
from leanvit.measure import compare
from leanvit.recipe import Root, create
from leanvit.runs.answer_maps import AnswerMaps, answer_maps
from leanvit.runs.layout import answer_maps_file
from leanvit.runs.measurements import keep
from leanvit.runs.record import read_run
from leanvit.runs.thumbnails import NOT_COUNTED, colour, encoded_map
from leanvit.tasks import Segmentation

TASK = Segmentation(classes=("paper", "ink"))
PREPROCESS = leanvit.Preprocess((1, 8, 8), mean=(0.0,), std=(1.0,), crop_pct=1.0)


def runner(threshold: float) -> Any:
    def run(images: Any) -> Any:
        return torch.stack([threshold - images[:, 0], images[:, 0] - threshold], dim=1)

    run.preprocess = PREPROCESS  # type: ignore[attr-defined]
    return run


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, Any, AnswerMaps]:
    found: Any = leanvit.open_dataset("digits", "val", limit=20, labels=False)
    ink = np.stack([np.asarray(sample.image) for sample in found])
    data = found.with_field("mask", Masks(np.where(abs(ink - 128.0) < 30, 255, ink > 128)))
    judged: dict[str, Any] = {}
    both = {"dense": runner(0.5), "<b>lean": runner(0.2)}
    comparison = compare(both, data, task=TASK, rounds=3, min_seconds=1e-4, on_judged=judged.update)
    maps = answer_maps(comparison, both, judged, data)
    assert maps is not None
    kwargs = {"img_size": 8, "patch_size": 4, "in_chans": 1, "depth": 1}
    model = create(Root("vit_tiny_patch16_224", kwargs))
    leanvit.save(model, tmp_path / "run")
    keep(comparison, {}, data, tmp_path / "run" / "measure.json", maps=maps)
    return tmp_path / "run" / "measure.json", comparison, maps


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_colours_are_those_of_the_legend_and_the_rest_is_grey() -> None:
    made = pixels(encoded_map(np.array([[0, 1], [255, -1]]), known=2, side=144))
    shades = ["#" + bytes(pixel).hex() for pixel in made.reshape(-1, 3)]
    assert shades == [colour(0), colour(1), NOT_COUNTED, NOT_COUNTED] and len({colour(n) for n in range(255)}) > 200
    assert pixels(encoded_map(np.zeros((300, 150), int), known=1, side=144)).shape == (144, 72, 3)


def test_what_is_kept_is_what_the_models_answered(measured: Any) -> None:
    file, comparison, maps = measured
    read = read_run(file.parent).measurements[0].maps
    assert read is not None and replace(read, of="") == maps and answer_maps_file(file).stat().st_size < 60_000
    assert len(maps.pictures) == 6 and maps.known == 2 and maps.title == "mean IoU [%]"
    for row in comparison.rows:
        assert np.mean(maps.per_class[row.name]) == pytest.approx(row.score.value)
    one = maps.pictures[0]
    image, lean, truth = (pixels(text) for text in (one.image, one.answers["<b>lean"], one.truth))
    ink = np.array([int(colour(1)[i : i + 2], 16) for i in (1, 3, 5)])
    assert ((lean == ink).all(axis=2) == (image[..., 0] > 0.2 * 255)).all()
    assert ((truth == ink).all(axis=2) <= (lean == ink).all(axis=2)).all(), "ink is above both thresholds"


def test_the_page_shows_them_beside_each_other(measured: Any, tmp_path: Path) -> None:
    file, _, maps = measured
    page = leanvit.write_report([file.parent], tmp_path / "page.html").read_text()
    section = re.search(r'<section id="answers">.*?</section>', page, re.DOTALL)
    assert section is not None and '<a href="#answers">' in page and "<b>lean" not in page
    for text in ("&lt;b&gt;lean", "paper", colour(1), "truth", maps.pictures[0].answers["dense"]):
        assert text in section[0]
    assert 'id="calibration"' not in page and "Measuring anew keeps them" not in page
    assert "mean IoU against cost" in page


def test_those_of_another_comparison_are_not_shown_and_damage_is_named(measured: Any) -> None:
    file, _, maps = measured
    path = answer_maps_file(file)
    maps.save(path, comparison=b"another")
    assert read_run(file.parent).measurements[0].maps is None
    path.write_bytes(path.read_bytes()[:100])
    damaged = read_run(file.parent)
    assert damaged.measurements[0].maps is None and "maps.json holds no answers" in damaged.unreadable[0]
    content = json.loads(json.dumps(maps.__dict__, default=lambda one: one.__dict__))
    for change, says in (
        ({"format": 2}, "of format 2"),
        ({"known": -1}, "cannot be"),
        ({"more": 1}, "more: Unexpected"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(CheckpointError, match=says):
            AnswerMaps.load(path)
    other = replace(maps, per_class={"other": (1.0,)})
    other.save(path, comparison=file.read_bytes())
    assert "answers of ['other'], which were not measured" in read_run(file.parent).unreadable[0]


def test_a_task_without_maps_keeps_none() -> None:
    judged = {"dense": SimpleNamespace(task=SimpleNamespace(label_kind="one"))}
    assert answer_maps(None, {}, judged, None) is None  # type: ignore[arg-type]
