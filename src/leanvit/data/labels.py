"""What a label is, in every source, and from labels to targets: class indices, or vectors of 0 and 1 over the classes.

A label is a name of 1 to `MOST_CHARACTERS` characters without control characters, or a whole number from 0. Blanks
around it do not count, nor how an accent is encoded (texts are in Unicode's NFC); 2.0 is 2, and True and False are
names. Refused, with its location: what is empty or missing, a negative number, one with a fraction, nan.
The classes of a data set are the distinct labels of all its splits: in the order of numbers if every one is a whole
number, else in the order of texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

import numpy as np

from leanvit.errors import BadInput

MOST_CLASSES = 100_000  # of a data set
MOST_CELLS = 2**31  # of the vectors of a multi-label split: 8 GiB
MOST_CHARACTERS = 255  # of a label: as long as a folder's name may be
ACCEPTED = f"accepted: a name of 1 to {MOST_CHARACTERS} characters, or a whole number from 0"
_SEPARATORS = "|;"  # found by themselves; any other is named by the user
_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?")
_NO_NUMBERS = ("nan", "inf", "+inf", "-inf")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, lone surrogate, line and paragraph separator


def sorted_names(names: Iterable[str]) -> list[str]:
    """The distinct names: as numbers if every one is a whole number ("2" before "10"), else as texts.

    Raises BadInput where two of them are one number in two spellings ("1" and "01"), and for more than `MOST_CLASSES`.
    """
    distinct = sorted(set(names))
    check_count(len(distinct), "classes")
    if not all(name.isascii() and name.isdigit() for name in distinct):
        return distinct
    numbers = sorted(distinct, key=_magnitude)
    for one, other in pairwise(numbers):
        if _magnitude(one) == _magnitude(other):
            raise BadInput(f"classes {one!r} and {other!r} are one number in two spellings; accepted: one of them")
    return numbers


@dataclass(frozen=True)
class RowLocations:
    """Where the labels of a split stand, for errors: `where` in general, `of(row)` within it ("line 7")."""

    where: str
    of: Callable[[int], str]

    def __call__(self, row: int) -> str:
        return f"{self.where} {self.of(row)}"


def texts_of(values: Iterable[object], locations: RowLocations) -> list[str]:
    """The text of each label as it comes out of a source. Raises BadInput, naming its row, for one that is none."""
    known: dict[tuple[type, object], str] = {}
    texts = []
    for row, value in enumerate(values):
        text = known.get((type(value), value)) if isinstance(value, str | int) else None
        if text is None:
            try:
                text = label_text(value)
            except BadInput as error:
                raise BadInput(f"{locations(row)}: {error}") from None
            if isinstance(value, str | int):
                known[type(value), value] = text
        texts.append(text)
    return texts


def label_text(value: object) -> str:
    """The text of one label. Raises BadInput, without a location, for what is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        raise _odd(value, "is missing")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        if value != value or value in (float("inf"), float("-inf")):
            raise _odd(value, "is missing" if value != value else "is no whole number")
        if value != int(value):
            raise _odd(value, "is a number with a fraction: a measurement, no class")
        value = int(value)
    if isinstance(value, int):
        if value.bit_length() > 4 * MOST_CHARACTERS:  # longer ones do not even have a text in Python
            raise BadInput(f"a label is a number of {value.bit_length()} bits; {ACCEPTED}")
        value = str(value)
    if not isinstance(value, str):
        raise _odd(value, "")
    return _checked(value.strip(), value)


def names_of(groups: Iterable[tuple[Sequence[str] | Sequence[Sequence[str]], RowLocations]]) -> list[str]:
    """The classes of several splits, each a text (or several) a row and its locations: `sorted_names` of all.

    Raises BadInput, naming a place, for one number in two spellings and for more than `MOST_CLASSES` classes.
    """
    first: dict[str, tuple[RowLocations, int]] = {}
    for rows, locations in groups:
        for row, held in enumerate(rows):
            for name in (held,) if isinstance(held, str) else held:
                if name not in first:
                    first[name] = (locations, row)
                    check_count(len(first), locations(row) if len(first) > MOST_CLASSES else "")
    try:
        return sorted_names(first)
    except BadInput as error:
        same = next(_same_number(first))
        locations, row = first[same]
        raise BadInput(f"{locations(row)}: {error}") from None


def check_count(classes: int, where: str) -> None:
    """Raises BadInput for more than `MOST_CLASSES` classes."""
    if classes > MOST_CLASSES:
        raise BadInput(f"{where}: more than {MOST_CLASSES} different labels; accepted: classes, each of many images")


def separator_in(labels: Iterable[str]) -> str | None:
    """`|` or `;` if a label holds it: then the labels are lists of classes."""
    return next((mark for label in labels for mark in _SEPARATORS if mark in label), None)


def split_labels(labels: Iterable[str], separator: str, locations: RowLocations) -> list[tuple[str, ...]]:
    """Each label as its classes; an empty text is none at all. Raises BadInput for a part that is no label."""
    rows: list[tuple[str, ...]] = []
    for row, label in enumerate(labels):
        parts = [part for part in label.split(separator) if part.strip()]
        rows.append(tuple(texts_of(parts, RowLocations(locations(row), lambda part: f"label {part + 1}"))))
    return rows


def class_targets(labels: Sequence[str], classes: Sequence[str], locations: RowLocations) -> np.ndarray:
    """(N,) int64. Raises BadInput, naming its row, for a label that is no class."""
    position = {name: index for index, name in enumerate(classes)}
    found = [position.get(label, -1) for label in labels]
    if -1 in found:
        row = found.index(-1)
        raise BadInput(f"{locations(row)}: label {labels[row]!r} is no class; classes: {_some(classes)}")
    return np.array(found, dtype=np.int64)


def named_targets(values: Sequence[object], names: Sequence[str], locations: RowLocations) -> np.ndarray:
    """(N,) int64 of labels that a data set's own record names: whole numbers are indices of `names`, texts are names.

    Raises BadInput, naming its row, for one that is missing or no class.
    """
    position = {name: index for index, name in reversed(list(enumerate(names)))}
    targets = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        index = position.get(value, -1) if isinstance(value, str) else value
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(names):
            raise BadInput(f"{locations(row)} has label {_short(value)}; accepted: 0 to {len(names) - 1}")
        targets[row] = index
    return targets


def label_vectors(labels: Sequence[Sequence[str]], classes: Sequence[str], locations: RowLocations) -> np.ndarray:
    """(N, classes) float32 of 0 and 1. Raises BadInput, naming its row, for a label that is no class."""
    if len(labels) * len(classes) > MOST_CELLS:
        raise BadInput(
            f"{locations.where}: {len(labels)} images x {len(classes)} labels are more than {MOST_CELLS} cells"
        )
    position = {name: index for index, name in enumerate(classes)}
    vectors = np.zeros((len(labels), len(classes)), dtype=np.float32)
    for row, names in enumerate(labels):
        for name in names:
            if name not in position:
                raise BadInput(f"{locations(row)}: label {name!r} is no class; classes: {_some(classes)}")
            vectors[row, position[name]] = 1.0
    return vectors


def without_repeats(keys: Sequence[str], targets: np.ndarray, locations: RowLocations) -> list[int]:
    """The rows whose key has not come before. Raises BadInput, naming both, for a key with two different targets."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        before = first.setdefault(key, row)
        if before != row and not np.array_equal(targets[before], targets[row]):
            raise BadInput(
                f"{locations(row)}: image {key!r} comes twice, with different labels: "
                f"it is in {locations.of(before)}, too"
            )
    return list(first.values())


def hint(labels: Sequence[str]) -> str:
    """What the labels, one an image, look like if not like classes; empty where they do.

    Lists of words: labels in square brackets, labels that are made of other labels, or three of several words, most of
    which come in several labels. Ids or captions: more than 50, and more than half as many as images.
    """
    distinct = set(labels)
    brackets = next((label for label in sorted(distinct) if label[0] == "[" and label[-1] == "]"), None)
    if brackets is not None:
        return f"labels look like lists, as {brackets!r}, each list is a class now: write a|b for several labels"
    for mark, name in ((",", "%2C"), (" ", "space")):
        lists = [{part.strip() for part in label.split(mark) if part.strip()} for label in distinct if mark in label]
        words = Counter(word for words in lists for word in words)
        made_of_labels = any(len(words) > 1 and words <= distinct for words in lists)
        words.update(label for label in distinct if label in words)
        if made_of_labels or (len(lists) >= 3 and sum(count > 1 for count in words.values()) * 2 >= len(words)):
            return f"labels look like lists of words, each list is a class now: ?separator={name} splits them"
    if len(distinct) > 50 and len(distinct) > len(labels) // 2:
        return f"{len(distinct)} different labels for {len(labels)} images: they look like ids or captions"
    return ""


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names of a record, those that are blank or come twice with their index: ImageNet has two "crane"."""
    counts = Counter(names)
    blank = ("class" if not name.strip() else name for name in names)
    return [
        f"{name} ({index})" if counts[given] > 1 or not given.strip() else given
        for index, (name, given) in enumerate(zip(blank, names, strict=True))
    ]


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, blanks, `_`, `-` and characters that are not seen: "Cat" and "cat"."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        shape = "".join(mark for mark in unicodedata.normalize("NFKC", name) if unicodedata.category(mark) != "Cf")
        shape = re.sub(r"[\s_-]+", " ", shape).strip().casefold()
        if first.setdefault(shape, name) != name:
            pairs.append((first[shape], name))
    return pairs


def rarest_label(vectors: np.ndarray) -> np.ndarray:
    """(N,) int64: the rarest class that each image carries, -1 for none: what multi-label sets are balanced by."""
    counts = vectors.sum(axis=0)
    rarity = np.where(vectors > 0, counts, np.inf)
    return np.where(vectors.any(axis=1), rarity.argmin(axis=1), -1)


def _checked(text: str, given: str) -> str:
    """A label's text in one spelling. Raises BadInput."""
    text = unicodedata.normalize("NFC", text)
    if not text:
        raise _odd(given, "is blank" if given else "is empty")
    if len(text) > MOST_CHARACTERS:
        raise _odd(text, f"has {len(text)} characters")
    odd = next((mark for mark in text if unicodedata.category(mark) in _UNPRINTABLE), None)
    if odd is not None:
        raise _odd(text, f"holds the control character U+{ord(odd):04X}")
    if text.casefold() in _NO_NUMBERS:
        raise _odd(text, "is no number and no name")
    number = _NUMBER.fullmatch(text)
    if number is None or not (number[2] or number[3]):
        return text
    if (number[3] or "").strip("0"):
        raise _odd(text, "is a number with a fraction: a measurement, no class")
    if number[1] == "-" and number[2].strip("0"):
        raise _odd(text, "is a negative number")
    return number[2] or "0"


def _odd(value: object, reason: str) -> BadInput:
    return BadInput(f"label {_short(value)}{reason and ' ' + reason}; {ACCEPTED}")


def _short(value: object) -> str:
    """A value as it is shown in an error: no more than 60 characters of it."""
    cut = isinstance(value, str | bytes) and len(value) > 60
    text = repr(value[:60] if cut else value)  # type: ignore[index]
    return text + "…" if cut else text if len(text) < 100 else text[:60] + "…"


def _magnitude(digits: str) -> tuple[int, str]:
    """What orders whole numbers of any length; `int` refuses long ones."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _same_number(names: Iterable[str]) -> Iterator[str]:
    """The names that are the number of an earlier one, in another spelling."""
    seen: set[tuple[int, str]] = set()
    for name in names:
        if _magnitude(name) in seen:
            yield name
        seen.add(_magnitude(name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
