"""What changed between dense and lean, image by image: by class, from which answer to which, and the worst of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leanvit.measure import Comparison
from leanvit.report.token_pictures import class_name
from leanvit.runs.disagreements import Disagreement, worst
from leanvit.runs.evidence import Evidence
from leanvit.runs.measurements import pairs
from leanvit.runs.thumbnails import data_uri
from leanvit.tasks.intervals import tango

CLASSES_SHOWN = 24  # of more classes, those that changed most
SWITCHES_SHOWN = 12
FEW = 30  # images of a class; below, its interval is more informative than its figure


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of one class, dense and lean, in percent; the change in points with its 95 % interval (Tango's)."""

    name: str
    images: int
    dense: float
    lean: float
    change: float
    low: float
    high: float

    @property
    def few(self) -> bool:
        return self.images < FEW


@dataclass(frozen=True)
class Switch:
    """Images whose answer went from one class to another."""

    dense: str
    lean: str
    images: int
    lost: int
    gained: int


@dataclass(frozen=True)
class Shown:
    """One disagreement, ready to show."""

    key: str
    kind: str
    source: str  # data URI; empty: no picture was kept
    target: str
    dense: str
    dense_percent: float
    lean: str
    lean_percent: float


@dataclass(frozen=True)
class Changes:
    """One lean model against dense in the same runtime."""

    model: str
    dense_model: str
    runtime: str
    images: int
    same: int
    lost: int
    gained: int
    other: int  # both wrong, differently
    classes: tuple[ClassChange, ...]  # from the greatest loss to the greatest gain
    classes_left_out: int
    span: float  # points; the widest interval's reach, for the bars
    switches: tuple[Switch, ...]
    switches_left_out: int
    worst: tuple[Shown, ...]


def changes(
    comparison: Comparison, evidence: Evidence, classes: Sequence[str], pictures: Mapping[str, str]
) -> list[Changes]:
    """Every lean row against dense in its own runtime."""
    return [_of_pair(comparison, evidence, dense, lean, classes, pictures) for dense, lean in pairs(comparison)]


def _of_pair(
    comparison: Comparison,
    evidence: Evidence,
    dense: str,
    lean: str,
    classes: Sequence[str],
    pictures: Mapping[str, str],
) -> Changes:
    before, after = evidence.right(dense), evidence.right(lean)
    same = evidence.answers[dense].classes == evidence.answers[lean].classes
    by_class = class_changes(evidence, dense, lean, classes)
    shown = _ends(by_class)
    found = switches(evidence, dense, lean, classes)
    return Changes(
        model=comparison.row(lean).model,
        dense_model=comparison.row(dense).model,
        runtime=comparison.runtime_label(comparison.row(lean)),
        images=len(evidence.keys),
        same=int(same.sum()),
        lost=int((before & ~after).sum()),
        gained=int((~before & after).sum()),
        other=int((~same & ~before & ~after).sum()),
        classes=shown,
        classes_left_out=len(by_class) - len(shown),
        span=max((max(abs(c.low), abs(c.high)) for c in shown), default=1.0),
        switches=tuple(found[:SWITCHES_SHOWN]),
        switches_left_out=len(found[SWITCHES_SHOWN:]),
        worst=tuple(_shown(d, classes, pictures) for d in worst(evidence, dense, lean)),
    )


def class_changes(evidence: Evidence, dense: str, lean: str, classes: Sequence[str]) -> list[ClassChange]:
    """Every class that occurs, from the greatest loss to the greatest gain."""
    before, after = evidence.right(dense), evidence.right(lean)
    found = []
    for target in np.unique(evidence.targets):
        of_class = evidence.targets == target
        n = int(of_class.sum())
        gained, lost = int((~before & after & of_class).sum()), int((before & ~after & of_class).sum())
        low, high = tango(gained, lost, n)
        found.append(
            ClassChange(
                name=class_name(int(target), classes),
                images=n,
                dense=100 * int(before[of_class].sum()) / n,
                lean=100 * int(after[of_class].sum()) / n,
                change=100 * (gained - lost) / n,
                low=100 * low,
                high=100 * high,
            )
        )
    return sorted(found, key=lambda c: (c.change, -c.images))


def switches(evidence: Evidence, dense: str, lean: str, classes: Sequence[str]) -> list[Switch]:
    """From which answer to which, most frequent first."""
    a, b = evidence.answers[dense].classes, evidence.answers[lean].classes
    changed = np.flatnonzero(a != b)
    ways = [(int(a[i]), int(b[i])) for i in changed]
    lost = Counter(way for way, i in zip(ways, changed, strict=True) if way[0] == evidence.targets[i])
    gained = Counter(way for way, i in zip(ways, changed, strict=True) if way[1] == evidence.targets[i])
    return [
        Switch(class_name(way[0], classes), class_name(way[1], classes), n, lost[way], gained[way])
        for way, n in sorted(Counter(ways).items(), key=lambda item: (-item[1], item[0]))
    ]


def _ends(by_class: Sequence[ClassChange]) -> tuple[ClassChange, ...]:
    """All; of many, those that changed, and of many such the half with the greatest losses and that with the gains."""
    if len(by_class) <= CLASSES_SHOWN:
        return tuple(by_class)
    changed = [one for one in by_class if one.change]
    half = CLASSES_SHOWN // 2
    return tuple(changed if len(changed) <= CLASSES_SHOWN else (*changed[:half], *changed[-half:]))


def _shown(found: Disagreement, classes: Sequence[str], pictures: Mapping[str, str]) -> Shown:
    picture = pictures.get(found.key, "")
    return Shown(
        key=found.key,
        kind=found.kind,
        source=data_uri(picture) if picture else "",
        target=class_name(found.target, classes),
        dense=class_name(found.dense, classes),
        dense_percent=100 * found.dense_confidence,
        lean=class_name(found.lean, classes),
        lean_percent=100 * found.lean_confidence,
    )
