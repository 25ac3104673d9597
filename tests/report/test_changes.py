"""What changed, image by image, from answers that are known."""

import pytest

from leanvit.report.changes import changes, class_changes
from leanvit.runs.disagreements import worst
from leanvit.runs.evidence import Evidence
from leanvit.runs.measurements import pairs
from leanvit.runs.thumbnails import data_uri
from leanvit.tasks.intervals import tango

CLASSES = ("cat", "dog")


def test_each_row_is_paired_with_dense_in_its_runtime(comparison) -> None:
    assert pairs(comparison) == [("dense", "slim"), ("dense (openvino)", "slim (openvino)")]


def test_counts_of_what_changed(comparison, evidence) -> None:
    one = changes(comparison, evidence, CLASSES, {})[1]
    assert (one.model, one.dense_model, one.runtime) == ("slim", "dense", "openvino")
    assert (one.images, one.same, one.lost, one.gained, one.other) == (4, 1, 2, 1, 0)


def test_classes_come_from_the_greatest_loss_with_counts_and_intervals(evidence) -> None:
    cat, dog = class_changes(evidence, "dense", "slim", CLASSES)
    assert (cat.name, cat.images, cat.dense, cat.lean, cat.change) == ("cat", 2, 100.0, 50.0, -50.0)
    assert (dog.name, dog.change) == ("dog", 0.0), "one lost, one gained"
    assert (cat.low, cat.high) == pytest.approx(tuple(100 * x for x in tango(0, 1, 2)))
    assert cat.few


def test_of_many_classes_the_unchanged_ones_are_left_out(comparison, evidence, monkeypatch) -> None:
    monkeypatch.setattr("leanvit.report.changes.CLASSES_SHOWN", 1)
    one = changes(comparison, evidence, CLASSES, {})[0]
    assert [c.name for c in one.classes] == ["cat"] and one.classes_left_out == 1


def test_ways_of_changing_are_counted(comparison, evidence) -> None:
    first, second = changes(comparison, evidence, CLASSES, {})[0].switches
    assert (first.dense, first.lean, first.images, first.lost, first.gained) == ("cat", "dog", 2, 1, 1)
    assert (second.dense, second.lean, second.images, second.lost, second.gained) == ("dog", "cat", 1, 1, 0)


def test_the_worst_are_lost_ones_by_how_sure_both_were(evidence) -> None:
    found = worst(evidence, "dense", "slim")
    assert [(d.key, d.kind) for d in found] == [("b", "lost"), ("c", "lost"), ("d", "gained")]
    assert found[0].dense_confidence == pytest.approx(0.9) and found[0].lean == 1
    assert [d.key for d in worst(evidence, "dense", "slim", most=1)] == ["b"]


def test_a_picture_is_shown_where_one_was_kept(comparison, evidence) -> None:
    shown = changes(comparison, evidence, CLASSES, {"b": "iVBORw0KGgo="})[0].worst
    assert [one.source for one in shown] == [data_uri("iVBORw0KGgo="), "", ""]
    assert shown[0].source.startswith("data:image/png;base64,iVBOR")


def test_the_same_images_have_the_same_fingerprint_in_any_order(evidence) -> None:
    order = [2, 0, 3, 1]
    moved = Evidence("digits", "", tuple(evidence.keys[i] for i in order), evidence.targets[order], {})
    assert moved.fingerprint == evidence.fingerprint
    other = Evidence("digits", "", evidence.keys, 1 - evidence.targets, {})
    assert other.fingerprint != evidence.fingerprint
