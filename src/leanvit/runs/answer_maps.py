"""Answers that are maps, beside the truth, of some images of a measurement; scores of classes. Kept as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from leanvit.errors import CheckpointError
from leanvit.files import JSON_LIMIT, read_strict, write_atomic
from leanvit.runs.thumbnails import encoded_map, encoded_pixels

if TYPE_CHECKING:
    from leanvit.data import AnyDataset
    from leanvit.measure import Comparison
    from leanvit.measure.judged import Judged
    from leanvit.tasks import Task

FORMAT = 1
IMAGES = 6
SIDE = 144  # pixels of a picture's longer side
LARGEST = 1e18


@dataclass(frozen=True)
class MapPicture:
    """One image as preprocessing leaves it, its truth and its answers: base64 of PNG or JPEG."""

    key: str
    image: str
    truth: str  # "": the data says none
    answers: dict[str, str]  # by name of the row


@dataclass(frozen=True)
class AnswerMaps:
    """What some models of a comparison answered on some images."""

    classes: tuple[str, ...]  # names, in the order of the colours; empty where nobody gave them
    known: int  # classes in the pictures
    title: str  # of the figure in `per_class`, with its unit
    per_class: dict[str, tuple[float | None, ...]]  # by name of the row; None: the class is not there
    pictures: tuple[MapPicture, ...]
    of: str = ""  # sha256 of the comparison's file
    format: int = FORMAT

    # How pydantic reads the JSON, nested dataclasses included.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def save(self, path: Path, *, comparison: bytes) -> None:
        """Write it as JSON, atomically. comparison: the content of the file that it is of."""
        content = asdict(replace(self, of=hashlib.sha256(comparison).hexdigest()))
        write_atomic(path, json.dumps(content, allow_nan=False).encode())

    @classmethod
    def load(cls, path: Path) -> AnswerMaps | None:
        """Read what `save` wrote, strictly; None if there is none. Raises `CheckpointError`."""
        if not path.is_file():
            return None
        if path.stat().st_size > JSON_LIMIT:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; accepted: up to {JSON_LIMIT}")
        found = read_strict(cls, path.read_bytes(), f"{path} holds no answers that are maps")
        if found.format != FORMAT:
            raise CheckpointError(f"{path}: answers of format {found.format}; this leanvit reads format {FORMAT}")
        figures = [figure for one in found.per_class.values() for figure in one if figure is not None]
        if not 0 <= found.known <= 10**6 or not all(abs(figure) <= LARGEST for figure in figures):
            raise CheckpointError(f"{path} holds no answers that are maps: a figure that cannot be")
        return found


def answer_maps(
    comparison: Comparison, runners: Mapping[str, Any], judged: Mapping[str, Judged], dataset: AnyDataset
) -> AnswerMaps | None:
    """What the models of a comparison answer on `IMAGES` images of a data set, and the score of each class of all.

    runners: by name of the row, each with `preprocess`; of a model with several rows the first is taken. judged: what
    `compare` said of them (`on_judged`). Returns None where the task's answers are no maps.
    """
    from leanvit.data import loader
    from leanvit.measure.table import titled

    task = next(iter(judged.values())).task
    if task.label_kind:
        return None
    firsts: dict[str, str] = {}
    for row in comparison.rows:
        firsts.setdefault(row.model, row.name)
    runners = {name: runners[name] for name in firsts.values()}
    chosen = dataset.limited(IMAGES).cached()  # read once: what cannot be read is left out here and in the pictures
    answers, known = {}, len(task.map_classes)
    for name, runner in runners.items():
        found = _maps(task, runner, loader(chosen, runner.preprocess, batch_size=IMAGES))
        maps = [one for one in found.values() if one is not None]
        if not maps:
            return None
        answers[name] = found
        known = max([known, *(int(np.max(one)) + 1 for one in maps)])
    first = next(iter(runners.values())).preprocess
    truths = _truths(task, loader(chosen, first, batch_size=IMAGES))
    transform = first.u8_transform()
    pictures = tuple(
        MapPicture(
            sample.key,
            encoded_pixels(transform(sample.image), side=SIDE),
            _map(truths.get(sample.key), known),
            {name: _map(own[sample.key], known) for name, own in answers.items()},
        )
        for sample in chosen
        if all(sample.key in own for own in answers.values())  # the loader leaves out what preprocessing cannot take
    )
    return AnswerMaps(
        classes=tuple(task.map_classes),
        known=known,
        title=titled(task.metric),
        per_class=_per_class({name: judged[name] for name in runners}),
        pictures=pictures,
    )


def _maps(task: Any, runner: Any, batches: Any) -> dict[str, Any]:
    """By key the map of each image, None where an answer is none."""
    from leanvit.measure.runners import evaluating, outputs_of
    from leanvit.tasks import image_by_image

    found: dict[str, Any] = {}
    with evaluating(runner), torch.inference_mode():
        for batch in batches:
            outputs = outputs_of(runner, batch.images, batch.keys, task.run)
            answers = task.answers(task.sized(outputs, batch.images.shape[2:]))
            each = image_by_image(answers, len(batch.keys))
            found |= dict(zip(batch.keys, map(task.picture, each), strict=True))
    return found


def _truths(task: Task, batches: Iterable[Any]) -> dict[str, Any]:
    """What the data says of each image, as a map, by key."""
    from leanvit.tasks import image_by_image

    found: dict[str, Any] = {}
    for batch in batches:
        each = image_by_image(task.truth(batch), len(batch.keys))
        found |= {key: task.picture(one) for key, one in zip(batch.keys, each, strict=True) if one is not None}
    return found


def _per_class(judged: Mapping[str, Judged]) -> dict[str, tuple[float | None, ...]]:
    found = {name: own.task.per_class(own.rows) for name, own in judged.items()}
    metric = next(iter(judged.values())).task.metric
    return {
        name: tuple(metric.shown(float(figure)) if np.isfinite(figure) else None for figure in own)
        for name, own in found.items()
        if own is not None
    }


def _map(classes: Any, known: int) -> str:
    return "" if classes is None else encoded_map(np.asarray(classes), known=known, side=SIDE)
