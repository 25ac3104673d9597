"""`wds:PATTERN`: webdataset tar shards, `key.jpg` and `key.cls` (or `.json`, `.txt`) side by side.

Shards may come from anyone. Of their members only images and `cls`, `json`, `txt` labels are read, here, without
webdataset's automatic decoders; a shard that holds pickles, or is cut short, is refused (`tars.py`). Only local files
are opened: webdataset hands other addresses to a shell.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leanvit.data import labels as labelling
from leanvit.data import tars
from leanvit.data.arrow import require
from leanvit.data.columns import fields_of_members, note_of, with_fields
from leanvit.data.dataset import NO_FIELDS
from leanvit.data.fields import Field
from leanvit.data.label_kinds import ONE, SEVERAL
from leanvit.data.labels import RowLocations
from leanvit.data.shard_index import Indexes, ShardIndex
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.data.stored import INDEX, Stored
from leanvit.data.stream import Encoded, Stream, in_blocks, in_epochs, probe_stream
from leanvit.data.tars import IMAGES, LABELS, SAMPLED
from leanvit.errors import BadInput, nearest

_FIELDS = ("label", "labels", "cls", "class", "target")  # of a json member
Label = str | tuple[str, ...]  # of one sample
FURTHER = "further images of a sample, of which the first is taken"


@dataclass(frozen=True, eq=False)
class _Scan:
    """The labels of a shard: the different ones, and which of them each sample has."""

    index: ShardIndex
    labels: tuple[Label, ...] = ()
    first: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # the first sample that has each
    which: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))  # (N,) int32

    @property
    def locations(self) -> RowLocations:
        """Of the different labels."""
        return _locations(self.index, self.first)


class Targets(Protocol):
    """The targets of samples of a shard, which are given by their numbers."""

    def of(self, samples: np.ndarray) -> list[Any]: ...


@dataclass(frozen=True, eq=False)
class _Classes:
    numbers: np.ndarray  # (N,) int32: the class of each sample

    def of(self, samples: np.ndarray) -> list[int]:
        return self.numbers[samples].tolist()


@dataclass(frozen=True, eq=False)
class _Vectors:
    """Vectors of 0 and 1 over the classes: of the different labels the classes, one after another, from `begins` on."""

    which: np.ndarray  # (N,) int32, of the different labels
    begins: np.ndarray
    classes: np.ndarray
    width: int

    def of(self, samples: np.ndarray) -> list[np.ndarray]:
        return list(map(self._vector, self.which[samples].tolist()))

    def _vector(self, label: int) -> np.ndarray:
        vector = np.zeros(self.width, dtype=np.float32)
        vector[self.classes[self.begins[label] : self.begins[label + 1]]] = 1.0
        return vector


@dataclass(frozen=True)
class _Unlabelled:
    def of(self, samples: np.ndarray) -> list[None]:
        return [None] * len(samples)


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar file whose samples are given by their places: whoever decodes them reads (`Stored`)."""

    index: ShardIndex
    targets: Targets
    prefix: str = ""  # put in front of keys that other shards have, too
    fields: Mapping[str, str] = field(default_factory=dict)  # name of a field -> ending of its member

    @property
    def name(self) -> str:
        return self.index.path.name

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Encoded]:
        return in_blocks(self)

    def at(self, samples: np.ndarray) -> list[Encoded]:
        images, targets = self.index.stored(self._images[samples]), self.targets.of(samples)
        found = [Encoded(one, target, self.prefix + one.key) for one, target in zip(images, targets, strict=True)]
        if not self.fields:
            return found
        values = {name: self._values(rows[samples]) for name, rows in self._members.items()}
        return [
            one._replace(fields={name: of_field[number] for name, of_field in values.items()})
            for number, one in enumerate(found)
        ]

    def _values(self, rows: np.ndarray) -> list[bytes | Stored | None]:
        """The contents of members, or where they are read; None for a row of -1."""
        found: list[bytes | Stored | None] = [None] * len(rows)
        held = np.flatnonzero(rows >= 0)
        texts = self.index.texts(rows[held]).to_pylist()
        for number, text, place in zip(held.tolist(), texts, self.index.stored(rows[held]), strict=True):
            found[number] = place if text is None else text
        return found

    @cached_property
    def _images(self) -> np.ndarray:
        return self.index.images(besides=self.fields.values())

    @cached_property
    def _members(self) -> dict[str, np.ndarray]:
        """By field the member of each sample, -1 for none."""
        return {name: self.index.members(ending) for name, ending in self.fields.items()}


@dataclass(frozen=True, eq=False)
class PackedShard:
    """A compressed tar file, or one with sparse members: it is read from front to back."""

    index: ShardIndex
    targets: Targets
    prefix: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.index.path.name

    def __iter__(self) -> Iterator[Encoded]:
        """Raises BadInput where the shard is no longer what it was."""
        sample, endings = 0, frozenset(self.fields.values())
        for members in _samples(self.index.path, endings):
            image = next((members[one] for one in members if one in IMAGES and one not in endings), None)
            if image is None:
                continue
            key = members["__key__"]
            if sample == len(self.index) or key != self.index.key(sample):
                raise BadInput(f"shard {self.name} was changed while it was in use: open the data again")
            (target,) = self.targets.of(np.array([sample]))
            fields = {name: members.get(ending) for name, ending in self.fields.items()} or NO_FIELDS
            yield Encoded(image, target, self.prefix + key, fields=fields)
            sample += 1


def shards_source(spec: Spec) -> Source:
    """The splits of a pattern of tar files: `train`, and `val` where `val=PATTERN` names its shards.

    The headers and labels of all shards are read once, which gives the number of samples, the classes and the keys.
    Options: `resampled`, `epoch=N` (samples an epoch, of train), `buffer=N` (samples shuffled among),
    `label=cls|json|txt` or `label=json.FIELD`; `labels=none`. Members may become fields, see `columns`.

    Raises BadInput for patterns without files, members of fields that there are not, shards without labelled images,
    with pickles, or that are damaged or cut short; MissingExtra without webdataset.
    """
    require("webdataset")
    fields = fields_of_members(spec)
    patterns = {"all": spec.where}
    if "val" in spec.options:
        patterns = {"train": spec.where, "val": spec.options["val"]}
    elif (named := canonical_split(re.split(r"[-_.{*\[]", Path(spec.where).name)[0])) is not None:
        patterns = {named: spec.where}
    files = {split: _files(spec, pattern) for split, pattern in patterns.items()}
    indexes = Indexes()
    label = _chosen_label(spec, next(iter(files.values())), indexes) if spec.labelled else None
    indexes.of_all([path for paths in files.values() for path in paths])
    scans = {split: [_scan(indexes.of(path), label) for path in paths] for split, paths in files.items()}
    every = [scan for of_split in scans.values() for scan in of_split]
    multi = any(not isinstance(one, str) for scan in every for one in scan.labels)
    classes = [] if label is None else _classes(spec, every, label)
    opened = {
        split: partial(_open, spec, split, tuple(of_split), label, classes, multi, indexes.note, fields)
        for split, of_split in scans.items()
    }
    return Source(spec.text, opened, "webdataset shards")


def _open(
    spec: Spec,
    split: str,
    scans: tuple[_Scan, ...],
    label: str | None,
    classes: list[str],
    multi: bool,
    about_indexes: str,
    fields: Mapping[str, tuple[str, Field]],
) -> Stream:
    indexes = [scan.index for scan in scans]
    endings = {name: ending for name, (ending, _) in fields.items()}
    _check_members(spec, split, indexes, endings)
    held = sum(map(len, indexes))
    if not held:
        what = "no image" if label is None else f"no image with a {label} label"
        raise BadInput(f"data {spec.text!r}, {split}: its {len(scans)} shards hold {what}")
    twice = _distinct_keys(indexes) < held
    prefixes = _prefixes([index.path for index in indexes]) if twice else [""] * len(scans)
    targets = _targets(scans, classes, multi) if label else [_Unlabelled()] * len(scans)
    parts = tuple(
        (Shard if index.seekable else PackedShard)(index, target, prefix, endings)
        for index, target, prefix in zip(indexes, targets, prefixes, strict=True)
    )
    given = [label for scan in scans for label in scan.labels]
    every = len(classes) > 1 and all(not isinstance(one, str) and len(one) == len(classes) for one in given)
    packed = [tars.is_compressed(index.path) for index in indexes if not index.seekable]
    used = {_ending(label), *endings.values()}
    others = sorted({one for index in indexes for one in index.endings if one in LABELS} - used)
    notes = (
        "every image has every label: a list names the labels of an image, it is no vector of 0 and 1" if every else "",
        f"labels are those of {label}, not of {', '.join(others)} (label=… takes another)" if others and label else "",
        "keys are not unique over the shards: each has its shard's name in front" if twice else "",
        "compressed shards are unpacked in every pass" if any(packed) else "",
        "shards with sparse members are read from front to back" if not all(packed) else "",
        about_indexes,
    )
    left_out: Counter[str] = Counter()
    for index in indexes:
        left_out.update(index.left_out)
        left_out.update({FURTHER: len(index.rows({*IMAGES} - used)) - len(index)})
        left_out.update({"shards without a sample": not len(index)})
    channels, image_size = probe_stream(parts)
    whole = Stream(
        name=re.split(r"[-_.]?[{*\[\d]", Path(spec.where).name)[0] or "shards",
        spec=spec.text,
        split=split,
        classes=classes,
        parts=parts,
        length=held,
        channels=channels,
        image_size=image_size,
        kind=SEVERAL if multi else ONE,
        note="; ".join(filter(None, notes)),
        left_out=dict(+left_out),
        labelled=label is not None,
    )
    kinds = {name: kind for name, (_, kind) in fields.items()}
    return in_epochs(with_fields(whole, kinds, note_of(spec)), spec)


def _check_members(spec: Spec, split: str, indexes: Sequence[ShardIndex], endings: Mapping[str, str]) -> None:
    """Raises BadInput for the ending of a field that no member has, members that are too large to be read or come
    twice, samples without an image beside them, and members apart from their image in what is read front to back."""
    for name, ending in endings.items():
        rows = [index.rows([ending]) for index in indexes]
        if not sum(map(len, rows)):
            known = {one for index in indexes for one in index.endings}
            raise BadInput(
                f"data {spec.text!r}, {split}: {name}={spec.columns[name]}: no member ends in .{ending}: "
                f"{nearest(ending, known)}"
            )
        for index, of_index in zip(indexes, rows, strict=True):
            if (index.sizes(of_index) > tars.MEMBER_BYTES).any():
                raise BadInput(
                    f"shard {index.path.name}: a {ending} member has {index.sizes(of_index).max()} bytes; accepted: up "
                    f"to {tars.MEMBER_BYTES}"
                )
            index.members(ending)
    for index in indexes if endings else ():
        index.images(besides=endings.values())
        if not index.seekable and (apart := index.apart({*SAMPLED, *endings.values()})) is not None:
            raise BadInput(
                f"shard {index.path.name}: the members of sample {index.key(apart)!r} are not side by side, and it is "
                "read from front to back; accepted: members side by side, or a shard that is not compressed and has no "
                "sparse members"
            )


def _files(spec: Spec, pattern: str) -> list[Path]:
    if re.match(r"(\w[\w+.-]*:|-$)", pattern):
        raise BadInput(f"data {spec.text!r}: {pattern!r} is no local path; accepted: tar files that are mounted here")
    from webdataset.shardlists import expand_urls

    if (count := tars.count_braces(pattern)) > tars.MOST_SHARDS:
        raise BadInput(f"data {spec.text!r}: {pattern!r} names {count} shards; accepted: up to {tars.MOST_SHARDS}")
    try:
        names = expand_urls(str(Path(pattern).expanduser()))
    except ValueError as error:
        raise BadInput(f"data {spec.text!r}: {pattern!r} is no pattern of shards: {error}") from None
    found: list[Path] = []
    for name in names:
        matches = [name]
        if any(mark in name for mark in "*[") and not os.path.exists(name):
            matches = sorted(match for match in glob(name) if not match.endswith(INDEX))
        found += map(Path, matches)
    missing = [path.name for path in found if not os.path.isfile(path)]
    if missing or not found:
        what = f"{len(missing)} of its {len(found)} shards do not exist: {', '.join(missing[:5])}" if found else "none"
        raise BadInput(
            f"data {spec.text!r}: {pattern!r}: {what}; accepted: tar files, as in shards/train-{{000..009}}.tar or "
            "shards/train-*.tar"
        )
    if len(set(found)) < len(found):
        raise BadInput(f"data {spec.text!r}: {pattern!r} names a shard twice")
    return found


def _prefixes(paths: Sequence[Path]) -> list[str]:
    """What keeps the keys of shards apart: their names, with folders where two have one name."""
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        root = os.path.commonpath([path.resolve().parent for path in paths])
        stems = [path.resolve().relative_to(root).with_suffix("").as_posix() for path in paths]
    return [f"{stem}/" for stem in stems]


def _samples(path: Path, endings: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Samples of a shard in webdataset's terms: `__key__`, and the bytes of its members by their ending.

    endings: of members that are read beside images and labels.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with tars.damage(path), path.open("rb") as stream:
        members = tar_file_expander(
            iter([{"url": str(path), "stream": stream}]),
            select_files=lambda name: bool(tars.key_of(name)) and tars.ending_of(name) in SAMPLED | endings,
            rename_files=tars.normal_name,
        )
        yield from group_by_keys(members)


def _scan(index: ShardIndex, label: str | None) -> _Scan:
    """The labels of a shard. Raises BadInput for images without one, and for what is no label."""
    if label is None:
        return _Scan(index)
    members = index.members(_ending(label))
    with_label = np.flatnonzero(members >= 0)
    texts = _texts(index, members[with_label]).dictionary_encode()
    which = texts.indices.to_numpy(zero_copy_only=True)
    first = with_label[np.unique(which, return_index=True)[1]]
    locations = _locations(index, first)
    labels = tuple(_label(text, label, locations, row) for row, text in enumerate(texts.dictionary.to_pylist()))
    if len(with_label) < len(index):
        without = np.flatnonzero(members < 0)
        count = index.left_out.get("links", 0)
        links = f" ({count} members are links, which are not followed)" if count else ""
        raise BadInput(
            f"shard {index.path.name}: {len(without)} of {len(index)} images have no {_ending(label)} member, "
            f"{index.key(int(without[0]))!r} the first{links}; ?labels=none opens all without labels"
        )
    return _Scan(index, labels, first, which)


def _locations(index: ShardIndex, samples: np.ndarray) -> RowLocations:
    return RowLocations(f"shard {index.path.name},", lambda row: f"sample {index.key(int(samples[row]))!r}")


def _ending(label: str | None) -> str:
    """The ending of the member that holds the label."""
    return "" if label is None else label.split(".")[0]


def _texts(index: ShardIndex, rows: np.ndarray) -> Any:
    """pyarrow array of the contents of labels. Raises BadInput where there are too many bytes; those are not read."""
    sizes = index.sizes(rows)
    if (too_large := np.flatnonzero(sizes > tars.LABEL_BYTES)).size:
        row = rows[too_large[:1]]
        (member,) = index.stored(row)
        raise BadInput(
            f"shard {index.path.name}, sample {member.key!r}: its {member.ending} member has {member.size} bytes: too "
            f"large for a label; accepted: up to {tars.LABEL_BYTES}"
        )
    texts = index.texts(rows)
    if not texts.null_count:
        return texts
    members = index.stored(rows)
    given = (one if one is not None else members[row].read_bytes() for row, one in enumerate(texts.to_pylist()))
    return require("pyarrow").array(list(given), type=texts.type)


def _distinct_keys(indexes: Sequence[ShardIndex]) -> int:
    """How many different keys there are in all."""
    pa, compute = require("pyarrow"), require("pyarrow.compute")
    keys = pa.chunked_array([index.keys for index in indexes])
    return compute.count_distinct(keys, memory_pool=pa.system_memory_pool()).as_py()  # which gives memory back


def _targets(scans: Sequence[_Scan], classes: Sequence[str], multi: bool) -> list[Targets]:
    """The targets of each shard: a class of each sample, or vectors over the classes."""
    position = {name: number for number, name in enumerate(classes)}
    if not multi:
        of_labels = (np.array([position[str(one)] for one in scan.labels], dtype=np.int32) for scan in scans)
        return [_Classes(numbers[scan.which]) for numbers, scan in zip(of_labels, scans, strict=True)]
    return [_vectors(scan, position) for scan in scans]


def _vectors(scan: _Scan, position: Mapping[str, int]) -> _Vectors:
    names = [(one,) if isinstance(one, str) else one for one in scan.labels]
    begins = np.cumsum([0, *map(len, names)])
    numbers = np.array([position[name] for several in names for name in several], dtype=np.int32)
    return _Vectors(scan.which, begins, numbers, len(position))


def _chosen_label(spec: Spec, paths: Sequence[Path], indexes: Indexes) -> str:
    """Which member holds the label: `label=`, else the first of cls, json, txt that the first image has."""
    given = spec.options.get("label")
    if given is not None:
        if given.split(".")[0] not in LABELS:
            raise BadInput(f"data {spec.text!r}: label={given!r}; accepted: {', '.join(LABELS)} or json.FIELD")
        return given
    index = next((index for index in map(indexes.of, paths) if len(index)), None)
    if index is None:
        names = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        raise BadInput(f"shard {names} holds no image; accepted endings: {' '.join(sorted(IMAGES))}")
    rows = np.intersect1d(np.flatnonzero(index.samples == 0), index.rows(SAMPLED))
    members = {one.ending: row for one, row in zip(index.stored(rows), rows, strict=True)}
    taken = spec.columns.values()
    if "cls" in members:
        return "cls"
    if "json" in members and (field := _field_of(_texts(index, members["json"][None])[0].as_py(), taken)):
        return f"json.{field}"
    if "txt" in members and "txt" not in taken:
        return "txt"
    raise BadInput(
        f"shard {index.path.name}: sample {index.key(0)!r} has no label (it has {', '.join(members)}); accepted: a cls "
        f"or txt member, or json with one of {', '.join(_FIELDS)}; ?labels=none opens the images without labels"
    )


def _field_of(encoded: bytes, taken: Collection[str]) -> str | None:
    """The value of a JSON member that is a label by its name; none of those that are fields."""
    try:
        value = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    names = (name for name in _FIELDS if f"json.{name}" not in taken)
    return next((name for name in names if isinstance(value, dict) and name in value), None)


def _label(encoded: bytes, label: str, locations: RowLocations, row: int) -> Label:
    """The label's text, or a tuple of texts for a JSON list. Raises BadInput naming shard and sample."""
    ending, _, name = label.partition(".")
    try:
        text = encoded.decode("utf-8")
        value = json.loads(text) if ending == "json" else text
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{locations(row)}: its {ending} member cannot be read: {error}") from None
    if ending == "json" and isinstance(value, dict):
        name = name or next((field for field in _FIELDS if field in value), "")
        value = value.get(name)
    try:
        if not isinstance(value, list):
            return labelling.label_text(value)
        names = tuple(map(labelling.label_text, value))
    except BadInput as error:
        raise BadInput(f"{locations(row)}: {error}") from None
    if len(set(names)) < len(names):
        raise BadInput(
            f"{locations(row)}: its {ending} member lists a label twice, {value!r:.60}: is it a vector of 0 and 1? "
            "Accepted: the labels of the image, each once"
        )
    return names


def _classes(spec: Spec, scans: Sequence[_Scan], label: str) -> list[str]:
    classes = labelling.names_of((scan.labels, scan.locations) for scan in scans)
    held = sum(len(scan.index) for scan in scans)
    if label == "txt" and len(classes) > 50 and len(classes) > held // 2:
        raise BadInput(
            f"data {spec.text!r}: the txt members hold {len(classes)} different texts for {held} images: captions, not "
            "classes; accepted: a cls member, or label=json.FIELD"
        )
    return classes
