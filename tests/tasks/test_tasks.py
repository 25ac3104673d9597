"""What every task says of itself, and how a task is chosen, named and recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leanvit import tasks
from leanvit.data import Batch, Masks, open_dataset
from leanvit.errors import BadInput, Refused
from leanvit.measure import Predictions, accuracy, accuracy_change, agreement, label_accuracy, map_interval
from leanvit.tasks import Classification, Head, Heads, Metric, MultiLabel, Segmentation, Task, read_task
from leanvit.tasks.intervals import Change, Interval
from leanvit.tasks.metric import joined, resamples, summed
from leanvit.tasks.objectives import BinaryCrossEntropy, BinaryDistillation, CrossEntropy, SoftDistillation


def batch_of(targets: Any, **fields: Any) -> Batch:
    count = len(targets)
    return Batch(torch.zeros(count, 1, 4, 4), targets, [f"k{i}" for i in range(count)], fields=fields)


def drawn(count: int, classes: int, *, several: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    if several:
        return logits, (torch.rand(count, classes, generator=generator) < 0.4).float()
    return logits, torch.randint(classes, (count,), generator=generator)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_classification_judges_as_measure_does() -> None:
    task, (one, truth), (other, _) = (
        Classification(),
        drawn(60, 5, several=False, seed=0),
        drawn(60, 5, several=False, seed=1),
    )
    first, second = (task.rows(logits, batch_of(truth)) for logits in (one, other))
    keys = tuple(batch_of(truth).keys)
    a, b = Predictions(one, truth, keys), Predictions(other, truth, keys)
    assert task.interval(first) == accuracy(a) and vars(task.change(first, second)) == vars(accuracy_change(a, b))
    assert task.agreement(task.answers(one), task.answers(other)) == agreement(a, b)
    assert task.score(first)[0] == accuracy(a).value == task.score(summed(joined([first[:13], first[13:]])))[0]


def test_multi_label_judges_as_measure_does() -> None:
    task, (one, truth), (other, _) = (
        MultiLabel(),
        drawn(40, 4, several=True, seed=0),
        drawn(40, 4, several=True, seed=1),
    )
    first, second = (task.rows(logits, batch_of(truth)) for logits in (one, other))
    keys = tuple(batch_of(truth).keys)
    a, b = Predictions(one, truth, keys), Predictions(other, truth, keys)
    assert task.interval(first) == map_interval(a) and task.interval(first, "labels") == label_accuracy(a)
    assert task.interval(first, "exact") == accuracy(a)
    assert vars(task.change(first, second)) == vars(accuracy_change(a, b))
    assert task.agreement(task.answers(one), task.answers(other)) == agreement(a, b)
    assert task.score(first, None, "exact")[0] == pytest.approx(accuracy(a).value)


@pytest.mark.parametrize(("task", "several"), [(Classification(), False), (MultiLabel(), True)])
def test_losses_of_labels_are_those_of_their_objectives(task: Any, several: bool) -> None:
    logits, truth = drawn(8, 5, several=several, seed=0)
    taught, _ = drawn(8, 5, several=several, seed=1)
    batch, made = batch_of(truth), task.objective()
    assert type(made) is (BinaryCrossEntropy if several else CrossEntropy)
    assert torch.equal(task.loss(logits, batch), made.of(logits, truth))
    teacher = nn.Identity()
    soft = task.distillation(teacher, preprocess=SimpleNamespace(), temperature=3.0)
    assert type(soft) is (BinaryDistillation if several else SoftDistillation) and soft.temperature == 3
    assert torch.equal(task.divergence(logits, taught, batch, temperature=3.0), soft.term(logits, taught))
    assert float(task.divergence(logits, logits, batch)) == pytest.approx(0, abs=1e-7)


def test_a_class_may_be_in_another_field() -> None:
    task, (logits, angle) = Classification(field="angle"), drawn(12, 4, several=False, seed=0)
    batch = batch_of(torch.zeros(12, dtype=torch.long), angle=angle)
    assert torch.equal(task.loss(logits, batch), nn.functional.cross_entropy(logits, angle))
    assert task.rows(logits, batch)[:, 0].tolist() == (logits.argmax(1) == angle).long().tolist()
    assert task.label_kind == "" and task.recorded()["task"]["field"] == "angle" and not Classification().recorded()
    assert Classification().mixes and not task.mixes


# --- pixels ----------------------------------------------------------------------------------------------------------


def masks_of(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(classes, (count, 6, 6), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    return torch.randn(count, classes, 6, 6, generator=generator), mask


def test_mean_iou_is_that_of_its_definition() -> None:
    logits, mask = masks_of(5, 4)
    mask[mask == 3] = 0  # a class that no mask holds, but answers do
    task = Segmentation()
    rows = task.rows(logits, batch_of(torch.zeros(5), mask=mask))
    answer, counted = logits.argmax(1), mask != 255
    shares = []
    for kind in range(4):
        found, there = (answer == kind) & counted, (mask == kind) & counted
        shares.append(((found & there).sum() / (found | there).sum()).item())
    assert task.score(rows)[0] == pytest.approx(np.mean(shares)) and shares[3] == 0
    right = ((answer == mask) & counted).sum() / counted.sum()
    assert task.score(rows, None, "pixels")[0] == pytest.approx(right.item())
    assert rows.dtype == np.int64 and task.score(summed(rows))[0] == task.score(rows)[0]
    weights = np.array([[2.0, 0, 1, 0, 0]])
    again = task.rows(logits[[0, 0, 2]], batch_of(torch.zeros(3), mask=mask[[0, 0, 2]]))
    assert task.score(rows, weights)[0] == pytest.approx(task.score(again)[0])


def test_a_class_that_is_nowhere_does_not_count() -> None:
    logits, mask = torch.zeros(1, 5, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    logits[:, 0] = 1
    assert Segmentation().score(Segmentation().rows(logits, batch_of(torch.zeros(1), mask=mask)))[0] == 1.0


def test_the_loss_is_a_mean_over_pixels_that_count() -> None:
    logits, mask = masks_of(6, 3)
    task, whole = Segmentation(), batch_of(torch.zeros(6), mask=mask)
    cuts = (slice(0, 2), slice(2, 6))
    parts = [(logits[cut], batch_of(torch.zeros(len(mask[cut])), mask=mask[cut])) for cut in cuts]
    mean = sum(float(task.loss(*part)) * task.terms(part[1]) for part in parts) / task.terms(whole)
    assert float(task.loss(logits, whole)) == pytest.approx(mean, rel=1e-6)
    assert float(task.loss(logits, whole)) == pytest.approx(
        float(nn.functional.cross_entropy(logits, mask, ignore_index=255)), rel=1e-6
    )
    none = batch_of(torch.zeros(1), mask=torch.full((1, 6, 6), 255))
    assert float(task.loss(logits[:1], none)) == 0 == task.terms(none)


def test_outputs_of_another_size_are_resized_to_the_mask() -> None:
    logits, mask = masks_of(2, 3)
    small = nn.functional.avg_pool2d(logits, 2)
    rows = Segmentation().rows(small, batch_of(torch.zeros(2), mask=mask))
    assert rows[:, 2].sum() == (mask != 255).sum() and Segmentation().answers(small).shape == (2, 3, 3)
    with pytest.raises(BadInput, match=r"outputs of shape \(2, 3\); accepted: logits of each pixel"):
        Segmentation().loss(torch.zeros(2, 3), batch_of(torch.zeros(2), mask=mask))


def test_a_mask_beyond_the_classes_is_named() -> None:
    logits, mask = masks_of(2, 3)
    mask[1, 0, 0] = 7
    for judged in (Segmentation().rows, Segmentation().loss):
        with pytest.raises(BadInput, match=r"a mask of 'k1' holds 7; accepted: 0 to 2, .* or 255, .*\?ignore=N"):
            judged(logits, batch_of(torch.zeros(2), mask=mask))


def test_maps_are_shown_as_they_are_judged() -> None:
    logits, mask = masks_of(2, 3)
    small, batch = nn.functional.avg_pool2d(logits, 2), batch_of(torch.zeros(2), mask=mask)
    task = Segmentation()
    answer, counted = task.answers(task.sized(small, mask.shape[1:])), mask != 255
    assert task.score(task.rows(small, batch), None, "pixels")[0] == (answer == mask)[counted].double().mean().item()
    both = Heads({"a": task, "b": Classification()}).sized({"a": small, "b": logits[:, :, 0, 0]}, (12, 12))
    assert both["a"].shape[2:] == (12, 12) and both["b"].shape == (2, 3)


def test_a_task_of_other_labels_than_the_data_has_is_refused() -> None:
    digits = open_dataset("digits", "val", limit=8)
    with pytest.raises(BadInput, match="the task multi_label is given, and data 'digits' is one class an image"):
        tasks.of(None, digits, MultiLabel())
    for given in (None, Classification(), Segmentation()):
        tasks.of(None, digits, given)
    assert tasks.of(None, open_dataset("digits", "val", limit=8, labels=False), MultiLabel()) == MultiLabel()


def test_masks_whose_classes_are_others_are_refused() -> None:
    data: Any = open_dataset("digits", "val", limit=8, labels=False)
    masks = [np.zeros((8, 8), int)] * len(data)
    named = data.with_field("mask", Masks(masks, classes=("road", "sky")))
    for given in (("sky", "road"), ("sky", "road", "tree")):
        with pytest.raises(BadInput, match=r"the classes are sky, road.* and those of data .* road, sky: pixels are"):
            Segmentation(classes=given).check("measure", dataset=named)
    Segmentation(classes=("road", "sky")).check("measure", dataset=named)
    Segmentation(classes=("sky", "road")).check("measure", dataset=data.with_field("mask", Masks(masks)))


def test_segmentation_takes_what_the_data_says() -> None:
    data: Any = open_dataset("digits", "val", limit=8, labels=False)
    masked = data.with_field("mask", Masks([np.zeros((8, 8), int)] * len(data), ignore=11))
    assert Segmentation().fitted(masked).ignore == 11 and Segmentation(ignore=3).fitted(masked).ignore == 3
    with pytest.raises(BadInput, match=r"train \(segmentation\) needs the field 'mask' .* has none"):
        Segmentation().check("train", dataset=data)
    with pytest.raises(BadInput, match=r"ignore is 3, and the masks of data 'digits.labels=none' say 11"):
        Segmentation(ignore=3).check("train", dataset=masked)
    model = SimpleNamespace(num_classes=12, wiring=object())
    with pytest.raises(BadInput, match="pixels of 11 are ignored, and the model has a class of that number"):
        Segmentation(ignore=11).check("train", model=model, dataset=masked)
    with pytest.raises(BadInput, match="tells 12 classes of pixels, the masks have 2"):
        Segmentation(classes=("a", "b")).check("train", model=model)


# --- several heads ---------------------------------------------------------------------------------------------------


def heads() -> Heads:
    return Heads({"class": Classification(), "angle": Classification(field="angle")})


def test_heads_add_losses_and_tell_each_figure() -> None:
    task, (one, truth), (two, angle) = heads(), drawn(20, 5, several=False, seed=0), drawn(20, 4, several=False, seed=1)
    batch, outputs = batch_of(truth, angle=angle), {"class": one, "angle": two}
    own = task.at("class").loss(one, batch) + task.at("angle").loss(two, batch)
    assert torch.equal(task.loss(outputs, batch), own) and task.terms(batch) is None
    rows = task.rows(outputs, batch)
    assert [metric.name for metric in task.metrics] == ["class.top1", "angle.top1"]
    assert task.score(rows)[0] == task.at("class").score(rows["class"])[0]
    assert task.interval(rows, "angle.top1") == task.at("angle").interval(rows["angle"])
    assert task.score(summed(joined([rows, rows])), None, "angle.top1") == task.score(rows, None, "angle.top1")
    assert task.reads == ("label", "angle") and tasks.of_record(task.recorded()) == task
    with pytest.raises(BadInput, match=r"no head 'angle' \(the model gave class\)"):
        task.loss({"class": one}, batch)
    with pytest.raises(BadInput, match="head"):
        task.at("depth")


def test_heads_of_different_means_count_each_their_own() -> None:
    task, masks = Heads({"class": Classification(), "mask": Segmentation()}), torch.zeros(2, 4, 4, dtype=torch.long)
    masks[0, :2] = 255
    batch = batch_of(torch.zeros(2, dtype=torch.long), mask=masks)
    assert task.terms(batch) == (2, 24)
    outputs = {"class": torch.randn(2, 3), "mask": torch.randn(2, 3, 4, 4)}
    losses = [one.loss(outputs[name], batch) for name, one in task.tasks.items()]
    assert task.loss(outputs, batch) == losses[0] + losses[1]
    scaled = task.loss(outputs, replace(batch, scales=(0.5, 2.0)))
    torch.testing.assert_close(scaled, 0.5 * losses[0] + 2 * losses[1])
    with pytest.raises(BadInput, match="needs all rows at once"):
        Heads({"labels": MultiLabel()})
    with pytest.raises(BadInput, match="is of several tasks itself"):
        Heads({"both": task})


def test_a_head_runs_all_of_the_model() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)
            self.task = heads()

        def forward(self, images: Any) -> Any:
            return {"class": self.one(images), "angle": self.two(images)}

    whole, images = Both(), torch.randn(5, 4)
    runner = Head(whole, "angle")
    assert torch.equal(runner(images), whole.two(images)) and runner.task == Classification(field="angle")
    assert len(list(runner.parameters())) == 4
    with pytest.raises(BadInput, match="no heads by name"):
        Head(nn.Linear(2, 2), "angle")


# --- names, records, choice ------------------------------------------------------------------------------------------


def test_tasks_are_read_from_text() -> None:
    assert read_task("segmentation:ignore=11,classes=[sky,road]") == Segmentation(classes=("sky", "road"), ignore=11)
    assert read_task("classification") == Classification() and read_task(None) is None
    for text, says in (
        ("segmentatoin", "did you mean 'segmentation'"),
        ("segmentation:ignored=3", "the task segmentation has no field 'ignored': did you mean 'ignore'"),
        ("segmentation:ignore", "takes field=value"),
        ("segmentation:ignore=[1]", r"segmentation\.ignore is \(1,\); accepted: a whole number"),
    ):
        with pytest.raises(BadInput, match=says):
            read_task(text)


def test_records_give_the_task_back() -> None:
    for task in (MultiLabel(), Segmentation(classes=("a", "b"), ignore=3), heads()):
        assert tasks.of_record(task.recorded()) == task
    assert MultiLabel().recorded() == {"multi_label": True} and tasks.of_record({}) is None
    with pytest.raises(BadInput, match="registered by the module 'elsewhere': import that module before loading"):
        tasks.of_record({"task": {"name": "edges", "module": "elsewhere"}})
    with pytest.raises(BadInput, match="registered by the module 'elsewhere'"):
        tasks.of_record({"task": {"name": "heads", "tasks": {"edges": {"name": "edges", "module": "elsewhere"}}}})
    with pytest.raises(BadInput, match="did you mean"):
        tasks.of_record({"task": {"name": "segmentatio"}})


def test_the_task_is_the_given_one_the_models_or_that_of_the_labels() -> None:
    digits: Any = open_dataset("digits", "val", limit=8)
    own = SimpleNamespace(task=Segmentation())
    assert tasks.of(None, digits) == Classification() == tasks.of(SimpleNamespace(task=MultiLabel()), digits)
    assert tasks.of(own, digits) == Segmentation() and tasks.of(None, digits, heads()) == heads().fitted(digits)
    assert tasks.of(SimpleNamespace(task=MultiLabel())) == MultiLabel() and tasks.of() == Classification()


def test_a_task_of_other_labels_than_the_data_is_refused() -> None:
    digits: Any = open_dataset("digits", "val", limit=8)
    with pytest.raises(BadInput, match=r"the task multi_label is given, and data 'digits' is one class an image"):
        tasks.of(None, digits, MultiLabel())
    several = SimpleNamespace(label_kind="several", field_names=("label", "angle"), fields={}, spec="photos")
    with pytest.raises(BadInput, match=r"head 'class': an image of data 'photos' may have several classes"):
        heads().check("train", dataset=several)


def test_labels_of_images_have_no_task_of_ones_own() -> None:
    class Focal(Classification):
        pass

    with pytest.raises(BadInput, match=r"task 'focal': .*Focal is of labels of images.* objective of your own"):
        tasks.task("focal")(Focal)


def test_a_task_without_words_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.tasks.registry._TASKS", {})

    @tasks.task("edges")
    class Edges(Task):
        pass

    assert Edges().words == "of the task edges" and not Task.words


def test_a_task_is_a_registered_class() -> None:
    @dataclass(frozen=True)
    class Unnamed(Task):
        pass

    with pytest.raises(BadInput, match="the task heads needs its field 'tasks', as heads:tasks=VALUE"):
        read_task("heads")
    for given, says in ((Unnamed(), "is not registered"), (object(), "is a object; accepted: a task")):
        with pytest.raises(BadInput, match=says):
            tasks.require_task(given)
    with pytest.raises(BadInput, match=r"registered by leanvit\.tasks\.segmentation already"):
        tasks.task("segmentation")(Unnamed)
    with pytest.raises(BadInput, match="accepted: a Python name"):
        tasks.task("no name")(Unnamed)


def test_what_a_task_does_not_say_is_refused_by_name() -> None:
    bare, batch = Task(), batch_of(torch.zeros(1))
    for call in (lambda: bare.rows(0, batch), lambda: bare.divergence(0, 0, batch)):
        with pytest.raises(BadInput, match=r"judges no model|has no divergence"):
            call()
    for task in (bare, Heads({"kind": Classification(field="kind"), "own": bare})):
        with pytest.raises(BadInput, match=r"measure: the task .* judges no model; accepted: one with rows"):
            task.check_judging("measure")
    for untaught in (bare, Heads({"a": Segmentation(), "b": bare})):
        with pytest.raises(BadInput, match=r"has no divergence from a teacher, .* leave the recovery out"):
            untaught.check_distillation("soft")
    with pytest.raises(BadInput, match="distillation is 'hard'; accepted for the task segmentation: soft"):
        Segmentation().check_distillation("hard")
    with pytest.raises(BadInput, match="multi-label: a teacher decides for one class"):
        MultiLabel().check_distillation("hard")
    with pytest.raises(BadInput, match="distillation is 'hard'; accepted for the task classification: soft"):
        Classification(field="ink").check_distillation("hard")
    assert Classification().mixes and not Classification(field="ink").mixes
    with pytest.raises(BadInput, match=r"label_smoothing=0\.1: the task segmentation has none"):
        Segmentation().objective(label_smoothing=0.1)
    with pytest.raises(Refused, match="needs a model that tells classes"):
        Classification().check("measure", model=SimpleNamespace(classifies=False, wiring=SimpleNamespace(name="w")))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_a_metric_knows_its_direction_and_unit() -> None:
    error, top1 = Metric("mae", "error", better="lower", unit="m"), Metric("top1", "top-1")
    assert error.improves(1, 2) and not error.improves(2, 2) and top1.improves(0.5, None)
    assert not top1.improves(float("nan"), None) and not top1.improves(0.5, 0.5)
    assert top1.text(0.812) == "top-1 81.2 %" and error.text(0.25) == "error 0.25 m" and error.shown(0.25) == 0.25
    with pytest.raises(BadInput, match="better is 'more'"):
        Metric("a", "a", better="more")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="unit is 'percent'; accepted: '%' for a fraction"):
        Metric("a", "a", unit="percent")


def test_a_bootstrapped_change_is_of_the_same_draws() -> None:
    logits, mask = masks_of(30, 3)
    batch, task = batch_of(torch.zeros(30), mask=mask), Segmentation()
    rows = task.rows(logits, batch)
    same = task.change(rows, rows)
    assert same == Change(0.0, 0.0, 0.0, 30, "points")
    better = task.rows(logits + nn.functional.one_hot(mask.clamp(max=2), 3).permute(0, 3, 1, 2), batch)
    change, before = task.change(rows, better), task.interval(rows)
    assert change.value == pytest.approx(100 * (task.score(better)[0] - before.value)) and change.low > 0
    assert isinstance(before, Interval) and before.low < before.value < before.high and before.unit == "fraction"
    assert resamples(30).sum(axis=1).tolist() == [30.0] * 200


def test_a_head_of_labels_has_their_names_and_goes_by_their_order() -> None:
    digits = open_dataset("digits", "val", limit=30)
    task = Heads({"digit": Classification(), "mask": Segmentation(classes=("none", "some"))}).fitted(digits)
    assert task.at("digit").classes == tuple(digits.classes) and task.map_classes == ("none", "some")
    assert not list(task.at("digit").problems(None, digits))
    other = Classification(classes=tuple(reversed(digits.classes)))
    assert any("give both the same names in the same order" in one for one in other.problems(None, digits))
    answer = {"digit": 3, "mask": np.ones((2, 2), np.uint8)}
    assert np.array_equal(task.picture(answer), answer["mask"])
    assert task.columns(answer, ()) == {"digit_class": "3", "mask_share_none": 0.0, "mask_share_some": 1.0}
