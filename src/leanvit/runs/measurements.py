"""A measurement as it is kept: `measure.json`, and beside it the answers behind it and pictures of disagreements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from leanvit.files import write_atomic
from leanvit.measure import Comparison
from leanvit.runs.answer_maps import AnswerMaps
from leanvit.runs.disagreements import pictures, save_pictures, worst
from leanvit.runs.evidence import Evidence
from leanvit.runs.layout import answer_maps_file, evidence_file, measurement_number, pictures_file
from leanvit.tasks import Classification

if TYPE_CHECKING:
    from leanvit.data import AnyDataset
    from leanvit.measure import Predictions


def pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """(dense, lean) names of rows that are compared image by image: each row with the baseline in its own runtime."""
    found = []
    for row in comparison.rows:
        reference = comparison.reference(row)
        if reference is not None and reference.name != row.name:
            found.append((reference.name, row.name))
    return found


def keep(
    comparison: Comparison,
    predictions: Mapping[str, Predictions],
    dataset: AnyDataset,
    file: Path,
    *,
    maps: AnswerMaps | None = None,
) -> None:
    """Write a comparison to `file`; beside it, if it is a run's measurement, its answers and the worst disagreements,
    or of a task whose answers are maps a few of them.

    A comparison too large for its answers to be kept (`evidence.LIMIT_BYTES`) is written alone, and so is one of
    several labels an image, whose answers are no single class. The comparison comes last: what lies beside an older one
    names that one, and is not taken for this one's.
    """
    content = comparison.to_json().encode()
    if measurement_number(file.name) is None:
        write_atomic(file, content)
        return
    if maps is not None:
        maps.save(answer_maps_file(file), comparison=content)
    if predictions and comparison.task == Classification.name:
        evidence = Evidence.of_predictions(predictions, data=dataset.spec, comparison=content)
        if evidence.save(evidence_file(file)):
            shown = [d.key for dense, lean in pairs(comparison) for d in worst(evidence, dense, lean)]
            save_pictures(pictures_file(file), pictures(dataset, shown))
    write_atomic(file, content)
