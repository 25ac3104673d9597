"""What the fields of a data set hold, counted sample by sample: classes of masks and objects, texts, depths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from leanvit.data.fields import Boxes, Depths, Field, Masks, Texts

_SHOWN = 30  # classes with a bar
_BAR = 40  # characters


@dataclass(frozen=True)
class FieldFound:
    """What a field holds in the samples that were read.

    counts: of a mask the pixels of each class, of objects the boxes of each class; largest first without names of
    classes, else in their order. numbers: what else there is to say, by name.
    """

    kind: str  # "Masks", "Boxes", ...
    samples: int
    counts: dict[str, int]
    numbers: dict[str, float]

    @property
    def text(self) -> str:
        """The numbers, for a person."""
        words = ((name.replace("_", " "), value) for name, value in self.numbers.items())
        return ", ".join(
            f"{name} {100 * value:.1f}%" if name.endswith("share") else f"{name} {value:.4g}" for name, value in words
        )


@dataclass
class Contents:
    """Counts what one field of a split holds."""

    kind: Field
    samples: int = 0
    counts: Counter[int] = field(default_factory=Counter)  # class -> pixels, or boxes
    rows: list[tuple[float, ...]] = field(default_factory=list)  # of texts and depths, a row a sample

    def add(self, value: Any) -> None:
        """Take in the checked value of one sample."""
        self.samples += 1
        if isinstance(self.kind, Masks):
            values, pixels = np.unique(value, return_counts=True)
            self.counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        elif isinstance(self.kind, Boxes):
            self.counts.update(value["labels"].tolist())
        elif isinstance(self.kind, Texts):
            self.rows.append((len(value), sum(len(text.split()) for text in value)))
        elif isinstance(self.kind, Depths):
            known = value[value != self.kind.missing]
            ends = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
            self.rows.append((*ends, known.size / value.size))

    def found(self) -> FieldFound:
        """What was found in all samples."""
        numbers = self._numbers() if self.samples else {}
        counted = Counter(self.counts)
        if isinstance(self.kind, Masks):
            counted.pop(self.kind.ignore, None)
        names: tuple[str, ...] = getattr(self.kind, "classes", ())
        if names:
            counts = {name: counted[index] for index, name in enumerate(names) if index != self._ignored}
        else:
            counts = {str(index): count for index, count in counted.most_common()}
        return FieldFound(type(self.kind).__name__, self.samples, counts, numbers)

    @property
    def _ignored(self) -> int | None:
        return self.kind.ignore if isinstance(self.kind, Masks) else None

    def _numbers(self) -> dict[str, float]:
        if isinstance(self.kind, Masks):
            return {"ignored_share": self.counts[self.kind.ignore] / max(1, self.counts.total())}
        if isinstance(self.kind, Boxes):
            return {"boxes_per_image": self.counts.total() / self.samples}
        if isinstance(self.kind, Texts):
            texts, words = map(float, np.sum(self.rows, axis=0))
            return {"texts_per_image": texts / self.samples, "words_per_text": words / max(1.0, texts)}
        if isinstance(self.kind, Depths):
            lows, highs, shares = zip(*self.rows, strict=True)
            ends = {"nearest": min(lows), "farthest": max(highs)} if max(shares) else {}
            return {**ends, "missing_share": 1 - float(np.mean(shares))}
        return {}


def shown(fields: Mapping[str, Mapping[str, FieldFound]]) -> Iterator[Any]:
    """Rich tables and lines for a person. fields: by split, then by field."""
    for name in next(iter(fields.values()), {}):
        of_splits = {split: found[name] for split, found in fields.items()}
        yield from _shown(name, of_splits)


def _shown(name: str, of_splits: Mapping[str, FieldFound]) -> Iterator[Any]:
    for split, found in of_splits.items():
        yield Text(f"{split}: field {name} ({found.kind}) of {found.samples} images{found.text and ': '}{found.text}")
    classes = list(dict.fromkeys(one for found in of_splits.values() for one in found.counts))
    if not classes:
        return
    first = next(iter(of_splits.values()))
    most = max(first.counts.values(), default=0) or 1
    table = Table(f"class of {name}", *of_splits, "")
    for one in classes[:_SHOWN]:
        cells = [_share(found, one) for found in of_splits.values()]
        bar = "█" * round(_BAR * first.counts.get(one, 0) / most) or "▏"[: first.counts.get(one, 0)]
        table.add_row(Text(one), *cells, Text(bar, style="cyan"))
    if len(classes) > _SHOWN:
        table.add_row("…", *("" for _ in of_splits), Text(f"{len(classes) - _SHOWN} more"))
    yield table


def _share(found: FieldFound, name: str) -> str:
    count = found.counts.get(name, 0)
    if found.kind != "Masks":
        return str(count)
    return f"{100 * count / max(1, sum(found.counts.values())):.1f}%"
