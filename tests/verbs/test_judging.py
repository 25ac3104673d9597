"""measure, publish and compare-methods judge by the task of a run, or the one that is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leanvit as lv
from leanvit import verbs
from leanvit.data.fields import Values
from leanvit.errors import BadInput, Refused
from leanvit.recipe.catalogue import read_record
from leanvit.runs.record import read_run
from leanvit.tasks import Segmentation

sys.path.append(str(Path(__file__).parents[1] / "tracers"))
from test_pixels import BACKBONE, HEAD, PREPROCESS, Segmenter, digits

QUICK = {"limit": 24, "rounds": 3}
ARGS = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}


def opened(spec: str, split: str, *, limit: int | None = None, **more: Any) -> Any:
    """Digits with masks and their class as fields, without labels; `plain` has neither."""
    if spec == "plain":
        return lv.open_dataset("digits", split, limit=limit, labels=False)
    labels = np.array(lv.open_dataset("digits", split, limit=480).targets)
    return digits(split).with_field("digit", Values(labels)).take(range(limit or 480))


@pytest.fixture(autouse=True)
def with_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measuring", "publishing", "comparing"):
        monkeypatch.setattr(f"leanvit.verbs.{name}.open_split", opened)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    model: Any = lv.compose(Segmenter(), {"backbone": BACKBONE, "head": HEAD}).eval()
    model.task = Segmentation(classes=("none", "faint", "full"))
    lean = lv.compress(model, [lv.ToMe(r=8)])
    return tuple(lv.save(one, tmp_path / name, preprocess=PREPROCESS) for one, name in ((model, "a"), (lean, "b")))  # type: ignore[return-value]


def test_a_run_of_pixels_is_measured_and_published(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = verbs.measure(runs[1], "digits", against=[runs[0]], latency_batch=2, **QUICK).comparison
    assert (found.task, found.images, found.classes) == ("segmentation", 24, ("none", "faint", "full"))
    assert [one.title for one in found.metrics] == ["mean IoU", "pixels right"]
    lean = found.rows[1]
    assert lean.change_points is not None and lean.agreement_percent is not None and not lean.notes
    assert lean.macs_per_image and found.rows[0].macs_per_image
    (kept,) = read_run(runs[1]).measurements
    assert kept.maps is not None and kept.evidence is None and len(kept.maps.pictures) == 6
    assert [*kept.maps.per_class] == [row.name for row in found.rows]
    record = read_record(verbs.publish(runs[1], "digits", tmp_path / "out", limit=24).folder)
    assert (record.metric, record.unit, record.images) == ("mean IoU", "%", 24)
    assert record.score[0] == round(lean.score.value, 2) and record.agreement_percent is not None
    assert "mean IoU" in record.figure(record.stored_score) and record.figure(record.stored_score).endswith("%")


def test_what_does_not_fit_is_refused_before_any_work(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"measure \(segmentation\) needs the field 'mask' of every sample"):
        verbs.measure(runs[1], "plain", **QUICK)
    with pytest.raises(BadInput, match=r"publish \(segmentation\) needs the field 'mask'"):
        verbs.publish(runs[1], "plain", tmp_path / "new")
    with pytest.raises(Refused, match=r"compare-methods sets the MACs of a whole model"):
        verbs.compare_methods(runs[0], "digits", out=tmp_path / "new", **QUICK)
    other: Any = lv.compose(Segmenter(), {"backbone": BACKBONE, "head": HEAD}).eval()
    other.task = Segmentation(classes=("a", "b", "c"))
    lv.save(other, tmp_path / "c", preprocess=PREPROCESS)
    with pytest.raises(BadInput, match=r"judged by one task, that of c is .*'a', 'b', 'c'.* give the task \(--task\)"):
        verbs.measure(runs[0], "digits", against=[tmp_path / "c"], **QUICK)
    again = verbs.measure(runs[0], "digits", against=[tmp_path / "c"], task="segmentation:field=mask", **QUICK)
    assert again.comparison.classes == () and not (tmp_path / "new").exists()


def test_methods_are_compared_by_a_task_that_is_given(tmp_path: Path) -> None:
    found = verbs.compare_methods(
        "vit_tiny_patch16_224",
        "digits",
        ["tome", "evit"],
        task="classification:field=digit",
        model_args=ARGS,
        convert=True,
        controls=False,
        tolerance=0.5,
        out=tmp_path / "out",
        **QUICK,
    )
    assert found is not None and found.comparison.task == "classification" and not found.result.left_out
    for one in found.result.standings:
        row = found.comparison.row(one.name)
        assert one.off_the_shelf_percent == row.score and one.off_the_shelf_change == row.change_points
    loaded: Any = lv.load(tmp_path / "out" / "tome")
    assert loaded.task is not None and loaded.task.field == "digit"
