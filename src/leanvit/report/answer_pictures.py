"""Answers that are maps as the page shows them: beside image and truth, with a legend, and the score of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanvit.measure import Comparison
from leanvit.report.rows import NONE
from leanvit.report.token_pictures import class_name
from leanvit.runs.answer_maps import AnswerMaps, MapPicture
from leanvit.runs.thumbnails import NOT_COUNTED, colour, data_uri

LEGEND = 40  # classes named beside the pictures; of more, the first


@dataclass(frozen=True)
class ShownMaps:
    """One image: (what, data URI) of the image, its truth and each model's answer."""

    key: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, a text for each model."""

    name: str
    colour: str
    scores: tuple[str, ...]


@dataclass(frozen=True)
class MapAnswers:
    """What one measurement shows of answers that are maps."""

    title: str
    figures: tuple[ShownMaps, ...]
    legend: tuple[tuple[str, str], ...]  # (class, colour)
    left_out: int  # classes that the legend does not name
    metric: str
    models: tuple[str, ...]  # of the columns
    classes: tuple[ClassScores, ...]


def map_answers(title: str, comparison: Comparison, maps: AnswerMaps) -> MapAnswers:
    """Pictures, legend and scores by class; models under the names of their rows."""
    models = {row.name: row.model for row in comparison.rows}
    scored = [name for name in models if name in maps.per_class]
    numbers = range(max([maps.known, *(len(maps.per_class[name]) for name in scored)]))
    legend = [(class_name(number, maps.classes), colour(number)) for number in numbers]
    return MapAnswers(
        title=title,
        figures=tuple(_figure(one, models) for one in maps.pictures),
        legend=(*legend[:LEGEND], ("not counted", NOT_COUNTED)),
        left_out=len(legend[LEGEND:]),
        metric=maps.title,
        models=tuple(models[name] for name in scored),
        classes=tuple(
            ClassScores(name, shade, tuple(_score(maps.per_class[row], number) for row in scored))
            for number, (name, shade) in enumerate(legend)
            if any(_score(maps.per_class[row], number) != NONE for row in scored)
        ),
    )


def _figure(one: MapPicture, models: dict[str, str]) -> ShownMaps:
    parts = [("image", one.image), ("truth", one.truth), *((models[name], text) for name, text in one.answers.items())]
    return ShownMaps(one.key, tuple((what, data_uri(text)) for what, text in parts if text))


def _score(scores: Sequence[float | None], number: int) -> str:
    found = scores[number] if number < len(scores) else None
    return NONE if found is None else f"{found:.2f}"
