"""Answers of a model, image by image: as values, as lines of a file, as a table on the terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from leanvit.errors import BadInput, LeanvitError, printable
from leanvit.recipe.training_steps import counted

ENDINGS = (".csv", ".jsonl")
OWN_COLUMNS = frozenset({"image", "exit", "mask", "error"})  # beside those of a task
SHOWN = 20  # answers and bad images that are named one by one
SHOWN_COLUMNS = 6  # of a task, on the terminal


@dataclass(frozen=True)
class Answer:
    """What a model says of one image: names and probabilities, the most probable first.

    One class an image: softmax, the `top` of all. Multi-label: sigmoid of each class by itself, those above 0.5, or
    the `top` of all; `every` then holds all of them. Any other task: `answer`, as `leanvit.tasks.Task.answers` gives
    it, and its `columns` in a table. An image that cannot be read has an `error` and nothing else.
    """

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    exit: int | None = None  # blocks that the image passed, in a model with early exits
    error: str = ""
    every: Mapping[str, float] | None = None  # of a multi-label model: the probability of each class
    columns: Mapping[str, Any] | None = None  # of a task that is not about classes of images
    answer: Any = field(default=None, compare=False, repr=False)  # likewise: an array, or one by the name of each head
    mask: str = ""  # of an answer that is a map and was written: the picture, from the file of answers

    @property
    def label(self) -> str:
        """The most probable class; empty where there is none."""
        return self.classes[0] if self.classes else ""

    @property
    def probability(self) -> float:
        """That of `label`; 0.0 where there is none."""
        return self.probabilities[0] if self.probabilities else 0.0

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"image": self.image, "error": self.error}
        if self.columns is None:
            found: dict[str, Any] = {"image": self.image, "classes": self.classes, "probabilities": self.probabilities}
        else:
            found = {"image": self.image, **self.columns}
        found |= {} if self.exit is None else {"exit": self.exit}
        found |= {"mask": self.mask} if self.mask else {}
        return found | ({} if self.every is None else {"every": dict(self.every)})


@dataclass(frozen=True)
class Predicted:
    """Answers in a file, or without one in memory."""

    file: Path | None
    images: int
    bad: tuple[Answer, ...]  # the first of those that could not be read
    failed: int  # how many they are
    answers: tuple[Answer, ...]  # all of them without a file, else the first

    def to_json(self) -> dict[str, Any]:
        counts = {"images": self.images, "failed": self.failed}
        if self.file is not None:
            return {"file": str(self.file), **counts, "bad": [one.to_json() for one in self.bad]}
        return {**counts, "answers": [one.to_json() for one in self.answers]}

    def shown(self) -> Iterator[Any]:
        """A short table where nothing was written, what could not be read, and the count."""
        if self.file is None:
            shown = self.answers[:SHOWN]
            yield _task_table(shown) if any(one.columns is not None for one in shown) else _table(shown)
            if self.images > SHOWN:
                yield f"… and {self.images - SHOWN} more: --out answers.csv keeps all of them"
        if self.failed:
            yield f"{counted(self.failed, 'image')} could not be read:"
            yield from (Text(f"  {printable(one.error)}") for one in self.bad[:SHOWN])
            if self.failed > SHOWN:
                yield f"  … and {self.failed - SHOWN} more"
        where = "" if self.file is None else f"{printable(str(self.file))}: "
        yield Text(f"{where}{self.images - self.failed} of {self.images} images answered")

    def require_some(self) -> None:
        """Raise `LeanvitError` if no image at all could be read."""
        if self.failed and self.failed == self.images:
            which = "the image could not" if self.images == 1 else f"none of the {self.images} images could"
            raise LeanvitError(f"{which} be read")


# --- the terminal ---------------------------------------------------------------------------------------------------


def _table(answers: Sequence[Answer]) -> Table:
    ranks = max((len(answer.classes) for answer in answers), default=1)
    table = Table("image", *(name for rank in range(max(1, ranks)) for name in (_ranked(rank), "%")))
    exits = any(answer.exit is not None for answer in answers)
    if exits:
        table.add_column("exit")
    for answer in answers:
        cells = [Text(printable(answer.image))]
        for name, chance in zip(answer.classes, answer.probabilities, strict=True):
            cells += [Text(printable(name)), Text(f"{100 * chance:.1f}")]
        if answer.error or not answer.classes:
            cells.append(Text("cannot be read" if answer.error else "none", style="dim"))
        cells += [Text("")] * (1 + 2 * max(1, ranks) - len(cells))
        table.add_row(*cells, *([Text(str(answer.exit or ""))] if exits else []))
    return table


def _task_table(answers: Sequence[Answer]) -> Table:
    """The first columns of a task; how many more there are is the last header."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.columns or ()))
    shown, more = names[:SHOWN_COLUMNS], len(names) - SHOWN_COLUMNS
    table = Table("image")
    for name in [*map(printable, shown), *([f"… {more} more"] if more > 0 else [])]:
        table.add_column(Text(name))
    for answer in answers:
        cells = [printable(_cell((answer.columns or {}).get(name), digits=4)) for name in shown]
        if answer.error:
            table.add_row(Text(printable(answer.image)), Text("cannot be read", style="dim"))
        else:
            table.add_row(Text(printable(answer.image)), *map(Text, cells))
    return table


def _cell(value: Any, *, digits: int = 6) -> str:
    """A JSON value in a cell: numbers shortened, text as it is, nothing for None."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _ranked(rank: int) -> str:
    return "class" if rank == 0 else f"class {rank + 1}"


# --- files ----------------------------------------------------------------------------------------------------------


class Tally:
    """Counts answers on their way to the file, and keeps the first ones."""

    def __init__(self) -> None:
        self.images = self.failed = 0
        self.first: list[Answer] = []
        self.bad: list[Answer] = []

    def note(self, answer: Answer) -> Answer:
        self.images += 1
        self.failed += bool(answer.error)
        for kept, wanted in ((self.first, True), (self.bad, bool(answer.error))):
            if wanted and len(kept) < SHOWN:
                kept.append(answer)
        return answer


def write_answers(path: Path, answers: Iterable[Answer], *, ending: str, top: int, every: bool) -> None:
    """Fill a file, a line an image, as the answers come.

    Args:
        ending: ".csv" or ".jsonl".
        top: classes of an answer; with `every`, those above 0.5 and the probability of each class.
    """
    # names of files need not be text: their bytes are written as they are
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        if ending == ".jsonl":
            file.writelines(f"{json.dumps(answer.to_json())}\n" for answer in answers)
        else:
            _write_table(file, iter(answers), top=top, every=every)


def _write_table(file: IO[str], answers: Iterator[Answer], *, top: int, every: bool) -> None:
    """Columns are known with the first image that can be read; those before it wait."""
    waiting = []
    first = None
    for answer in answers:
        waiting.append(answer)
        if not answer.error:
            first = answer
            break
    of_task = first is not None and first.columns is not None
    columns = list(first.columns or ()) if first is not None and of_task else _label_columns(first, top, every)
    ends = [name for name in ("exit", "mask") if first is not None and getattr(first, name) not in (None, "")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", *columns, *ends, "error"])
    for answer in chain(waiting, answers):
        if answer.error:
            writer.writerow([answer.image, *[""] * (len(columns) + len(ends)), answer.error])
            continue
        cells = _task_cells(answer, columns) if of_task else _label_cells(answer, every)
        writer.writerow([answer.image, *cells, *(getattr(answer, name) for name in ends), ""])


def _label_columns(first: Answer | None, top: int, every: bool) -> list[str]:
    names = tuple(first.every or ()) if first is not None and every else ()
    ranks = [] if every else range(2, top + 1)
    columns = ["class", *([] if every else ["probability"])]
    columns += [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
    return columns + [f"p_{name}" for name in names]


def _label_cells(answer: Answer, every: bool) -> list[Any]:
    if every:
        return ["|".join(answer.classes), *(f"{chance:.6g}" for chance in (answer.every or {}).values())]
    pairs = zip(answer.classes, answer.probabilities, strict=True)
    return [cell for name, chance in pairs for cell in (name, f"{chance:.6g}")]


def _task_cells(answer: Answer, columns: Sequence[str]) -> list[str]:
    own = answer.columns or {}
    for name in own:
        if name not in columns:
            raise BadInput(
                f"{answer.image!r} has a column {name!r}, which the first image does not have; accepted: the same "
                "columns for every image (name the classes), or a .jsonl file"
            )
    return [_cell(own.get(name)) for name in columns]
