"""Models judged by their task: figures in any unit and direction, several heads, maps of pixels, old comparisons."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from leanvit.data import Batch
from leanvit.errors import BadInput, CheckpointError
from leanvit.measure import Comparison, compare, count
from leanvit.measure import judged as module
from leanvit.measure.judged import Judged, judge_all
from leanvit.tasks import Classification, Head, Heads, Metric, Segmentation, Task

SAVED = Path(__file__).parents[1] / "saved" / "comparisons"
QUICK = {"rounds": 3, "min_seconds": 1e-4}
IMAGES = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def batches(**fields: Any) -> list[Batch]:
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    return [
        Batch(IMAGES[own], None, [f"k{n}" for n in range(12)][own], fields={k: v[own] for k, v in fields.items()})
        for own in parts
    ]


@dataclass(frozen=True)
class Distance(Task):
    """A distance in metres, judged by its root mean squared error."""

    name: ClassVar[str] = "distance"
    needs: ClassVar[tuple[str, ...]] = ("far",)
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("rmse", "RMSE", "lower", "m"),)

    def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
        return torch.stack([(outputs[:, 0] - batch["far"]) ** 2, torch.ones(len(outputs))], dim=1).double().numpy()

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        sums = rows.sum(axis=0)[None] if weights is None else weights @ rows
        return np.sqrt(sums[:, 0] / sums[:, 1])


class Off(nn.Module):
    """What is right, but for an error."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(dim=1, keepdim=True) + self.by * images[:, 0, :1, 0]


def test_a_figure_in_metres_where_lower_is_better() -> None:
    data, task = batches(far=IMAGES.flatten(1).mean(dim=1)), Distance()
    found = compare({"dense": Off(0.5), "lean": Off(1.0)}, data, task=task, **QUICK)
    dense, lean = found.rows
    off = IMAGES[:, 0, 0, 0].square().mean().sqrt().item()
    assert dense.score.value == pytest.approx(0.5 * off) and lean.score.value == pytest.approx(off)
    assert dense.score.unit == "m" and dense.score.low < dense.score.value < dense.score.high
    change = lean.change_points
    assert change is not None and (change.unit, change.lost, change.p_value) == ("m", None, None)
    assert change.value == pytest.approx(0.5 * off) and change.low > 0, "in metres, and worse"
    assert lean.agreement_percent is None, "numbers are no decisions"
    assert (found.task, found.metric, found.changed) == ("distance", task.metric, task.metric)
    assert Comparison.from_json(found.to_json()) == found
    console = Console(width=200, record=True, quiet=True)
    text = "".join(segment.text for table in (True, False) for segment in console.render(found.table(wide=table)))
    for said in ("RMSE [m]", "change [m]", "RMSE: lower is better"):
        assert said in text
    assert "points" not in text


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_comparison_of_format_1_loads_with_the_figures_that_it_has(kind: str) -> None:
    text = (SAVED / f"format-1-{kind}.json").read_text()
    was, found = json.loads(text), Comparison.from_json(text)
    names = ["map_percent", "labels_percent", "top1_percent"] if kind == "several" else ["top1_percent"]
    titles = ["mAP", "labels right", "all labels right"] if kind == "several" else ["top-1"]
    assert [one.title for one in found.metrics] == titles and found.changed.title == titles[-1]
    for old, row in zip(was["rows"], found.rows, strict=True):
        assert [score.value for score in row.scores] == [old[name]["value"] for name in names]
        assert [(s.low, s.high) for s in row.scores] == [(old[n]["low"], old[n]["high"]) for n in names]
    change = found.rows[1].change_points
    assert change is not None and change.lost == was["rows"][1]["change_points"]["lost"]
    now = json.loads(found.to_json())
    assert now["format"] == 2 and not {"multi_label", *names} & {*now, *now["rows"][0]}
    assert Comparison.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["rows"][0].pop("top1_percent"), "rows.0.scores.0"),
        (lambda d: d.update(multi_label="yes"), "multi_label is neither true nor false"),
        (lambda d: d.update(rows=3), "format 1 with TypeError"),
        (lambda d: d.update(more=3), "more: Unexpected keyword"),
    ],
)
def test_a_damaged_comparison_of_format_1_is_refused(change: Any, says: str) -> None:
    content = json.loads((SAVED / "format-1-one.json").read_text())
    change(content)
    with pytest.raises(CheckpointError, match=says):
        Comparison.from_json(json.dumps(content))


def test_scores_belong_to_metrics() -> None:
    found = Comparison.from_json((SAVED / "format-1-several.json").read_text())
    with pytest.raises(BadInput, match="row 'dense' has 3 scores; accepted: 2"):
        replace(found, metrics=found.metrics[1:])
    with pytest.raises(BadInput, match=r"unknown metric 'exakt'.*did you mean 'exact'"):
        replace(found, changes="exakt")


# --- several heads ------------------------------------------------------------------------------------------------


class Two(nn.Module):
    task = Heads({"row": Classification(field="row"), "far": Distance()})

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flatten(1)
        return {"row": self.row(x), "far": x.mean(dim=1, keepdim=True)}


def test_a_model_with_two_heads_and_each_head_by_itself() -> None:
    torch.manual_seed(0)
    model, target = Two(), torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(1))
    data = batches(row=target, far=IMAGES.flatten(1).mean(dim=1) + 1)
    whole = compare({"both": model}, data, **QUICK)
    assert [one.name for one in whole.metrics] == ["row.top1", "far.rmse"]
    right = (model(IMAGES)["row"].argmax(1) == target).double().mean().item()
    assert [score.value for score in whole.rows[0].scores] == pytest.approx([100 * right, 1.0], rel=1e-5)
    for name, metric in (("row", "top1"), ("far", "rmse")):
        alone = compare({name: Head(model, name)}, data, **QUICK)
        assert alone.metric.name == metric
        assert alone.rows[0].score.value == whole.score_of(whole.rows[0], f"{name}.{metric}").value
        assert alone.rows[0].macs_per_image == count(model, (1, 4, 4)).macs == 64
    both = compare({"both": model, "again": model}, data, **QUICK).rows[1]
    assert both.agreement_percent is not None and both.agreement_percent.value == 100 and both.change_points is not None
    with pytest.raises(BadInput, match=r"by one task, that of both is Heads.*that of row Classification"):
        compare({"both": model, "row": Head(model, "row")}, data, **QUICK)


# --- maps of pixels -----------------------------------------------------------------------------------------------

MASKS = (IMAGES[:, 0] > 0).long()


class Above(nn.Module):
    """Pixels above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.threshold - images[:, 0], images[:, 0] - self.threshold], dim=1)


class Fixed:
    """The same in another runtime: numpy, and batches of four."""

    batch, runtime, precision = 4, "other", "f32"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> np.ndarray:
        assert len(images) == 4
        return self.model(images).detach().numpy()


def test_pixels_are_judged_alike_in_every_runtime() -> None:
    lean = Above(0.5)
    found = compare(
        {"dense": Above(0.0), "lean": lean, "lean (other)": Fixed(lean)},
        batches(mask=MASKS),
        task=Segmentation(),
        **QUICK,
    )
    dense, own, other = found.rows
    assert dense.score.value == 100 and own.scores == other.scores
    share = ((IMAGES[:, 0] > 0.5).long() == MASKS).double().mean().item()
    assert own.agreement_percent is not None and own.agreement_percent.value == pytest.approx(100 * share)
    assert own.change_points is not None and own.change_points.value == pytest.approx(own.score.value - 100)
    per_class = Segmentation().per_class(judge_all(Segmentation(), {"a": lean}, batches(mask=MASKS))["a"].rows)
    assert 100 * per_class.mean() == pytest.approx(own.score.value)


def test_answers_that_are_too_large_are_not_kept_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ANSWERS_BYTES", 12 * 16 - 1)
    found = compare({"dense": Above(0.0), "lean": Above(0.5)}, batches(mask=MASKS), task=Segmentation(), **QUICK)
    lean = found.rows[1]
    assert lean.agreement_percent is None and lean.change_points is not None
    assert any(note.startswith("no agreement: its answers take more than") for note in lean.notes)


def test_images_are_paired_by_key() -> None:
    task, data = Segmentation(), batches(mask=MASKS)
    found = judge_all(task, {"dense": Above(0.0), "lean": Above(0.5)}, data)
    turned = judge_all(task, {"lean": Above(0.5)}, reversed(data))["lean"]
    assert turned.keys != found["lean"].keys
    assert found["dense"].change(turned) == found["dense"].change(found["lean"])
    assert found["dense"].agreement(turned) == found["dense"].agreement(found["lean"])
    with pytest.raises(BadInput, match="key 'k10' is missing on one side"):
        found["dense"].change(judge_all(task, {"lean": Above(0.5)}, data[:2])["lean"])
    with pytest.raises(BadInput, match="key 'k0' comes twice"):
        judge_all(task, {"lean": Above(0.5)}, [data[0], data[0]])
    with pytest.raises(BadInput, match="rows of segmentation: 12 for 2 keys"):
        Judged(task, ("a", "b"), found["lean"].rows, None)
