"""A per-pixel model through every verb, on the command line: trained, made lean, measured, exported, handed on."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_pixels import BACKBONE, HEAD, PREPROCESS, Segmenter, digits
from typer.testing import CliRunner

import leanvit as lv
from leanvit.cli.main import app

NAMES = ("none", "faint", "full")
TASK = "segmentation:classes=[none,faint,full]"


def png(pixels: np.ndarray) -> dict[str, bytes]:
    kept = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(kept, "png")
    return {"bytes": kept.getvalue()}


def table(file: Path, split: str, limit: int) -> None:
    """Digits and their masks as a parquet file."""
    rows = list(digits(split))[:limit]
    images = [png(np.asarray(sample.image)) for sample in rows]
    masks = [png(sample.fields["mask"]) for sample in rows]
    pq.write_table(pa.table({"image": images, "mask": masks}), file)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inks").mkdir()
    table(tmp_path / "inks/train.parquet", "train", 320)
    table(tmp_path / "inks/val.parquet", "val", 64)
    torch.manual_seed(0)
    lv.save(lv.compose(Segmenter(), {"backbone": BACKBONE, "head": HEAD}), tmp_path / "fresh", preprocess=PREPROCESS)
    return tmp_path


def run(line: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == code, (line, done.output, done.exception)
    return done.output


DATA = "--data inks?labels=none&mask=mask"


@pytest.mark.e2e
def test_every_verb(place: Path, one_thread: None) -> None:
    said = run(f"train fresh {DATA} --task {TASK} --epochs 6 --batch-size 32 --lr 0.003 --keep best --out dense")
    assert "mean IoU" in said and "task: Segmentation(field='mask', classes=('none', 'faint', 'full')" in said
    assert json.loads((place / "dense/leanvit.json").read_text())["info"]["task"]["name"] == "segmentation"
    methods = "--with tome:r=8 --with nvit:macs=0.85,interval=4,max_steps=8 --with int8:images=32"
    run(f"compress dense {DATA} {methods} --recover 2 --recover-lr 0.001 --out lean")
    run(f"compress lean {DATA} --part head --with int8:images=32 --no-measure --out rounded")
    said = run(f"measure rounded {DATA} --against dense --runtime torch --runtime openvino --rounds 3")
    assert "mean IoU" in said and "top-1" not in said
    found: Any = json.loads((place / "rounded/measure.json").read_text())
    scores = {row["name"]: row["scores"][0]["value"] for row in found["rows"]}
    assert [one["title"] for one in found["metrics"]] == ["mean IoU", "pixels right"]
    assert found["format"] == 2 and found["task"] == "segmentation" and min(scores.values()) > 60
    agreement = next(row for row in found["rows"] if row["name"].endswith("(openvino)") and "dense" not in row["name"])
    assert agreement["agreement_percent"]["value"] > 90 and agreement["change_points"]["lost"] is None
    run("export rounded --to openvino --out artefact")
    run("predict artefact inks?labels=none --split val --out answers.csv")
    run("predict rounded inks?labels=none --split val --out direct.csv")
    header = (place / "answers.csv").read_text().splitlines()[0].split(",")
    assert {"image", "share_none", "share_faint", "share_full", "mask"} <= {*header}
    masks = [sorted((place / f"{name}-masks").rglob("*.png")) for name in ("answers", "direct")]
    assert len(masks[0]) == len(masks[1]) == 64
    pairs = [tuple(np.asarray(Image.open(file)) for file in both) for both in zip(*masks, strict=True)]
    assert np.mean([(one == other).mean() for one, other in pairs]) > 0.98 and pairs[0][0].max() <= 2
    said = run(f"publish rounded {DATA} --out published")
    assert "mean IoU" in said and 'metric = "mean IoU"' in (place / "published/reference.toml").read_text()
    run("report dense lean rounded --out page.html")
    page = (place / "page.html").read_text()
    assert "Mean IoU and cost" in page and "validation mean IoU by epoch" in page and "faint" in page
    assert "top-1" not in page and "Accuracy and cost" not in page and "validation accuracy" not in page


def test_what_does_not_fit_is_refused_before_work(place: Path) -> None:
    for line, says in (
        (f"train fresh {DATA} --epochs 1", "--task"),
        ("train fresh --data inks?labels=none --task segmentation --epochs 1", "needs the field 'mask'"),
        (f"train fresh {DATA}&ignore=7 --task segmentation:ignore=9 --epochs 1", "give both the same"),
        (f"train fresh {DATA} --task segmentation:classes=[a,b] --epochs 1", "tells 3 classes of pixels"),
        (f"measure fresh {DATA} --task multi_label", "tells classes of images apart"),
        (f"compress fresh {DATA} --task segmentatio --with tome", "did you mean 'segmentation'"),
        ("predict fresh inks?labels=none --task segmentation --top 2", "top"),
        (f"publish fresh {DATA} --out out", "--task"),
        (f"compare-methods fresh {DATA} --task segmentation", "a model of parts"),
    ):
        done = CliRunner().invoke(app, line.split())
        assert done.exit_code == 2 and says in " ".join(done.output.split()), (line, done.output)
    assert sorted(path.name for path in place.iterdir()) == ["fresh", "inks"]
