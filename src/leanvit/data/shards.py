"""`wds:PATTERN`: webdataset tar shards, `key.jpg` and `key.cls` (or `.json`, `.txt`) side by side.

Shards may come from anyone. Of their members only images and `cls`, `json`, `txt` labels are read, here, without
webdataset's automatic decoders; a shard that holds pickles is refused. Only local files are opened: webdataset hands
other addresses to a shell.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from leanvit.data import labels as labelling
from leanvit.data.arrow import require
from leanvit.data.decode import EXTENSIONS
from leanvit.data.sources import Source, canonical_split
from leanvit.data.specs import Spec
from leanvit.data.stream import Encoded, Stream, in_epochs, probe_stream
from leanvit.errors import BadInput

LABELS = ("cls", "json", "txt")  # in the order in which they are looked for
_FIELDS = ("label", "labels", "cls", "class", "target")  # of a json member
_IMAGES = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
_PICKLES = ("pickle", "pkl", "pyd", "pth", "pt", "ckpt", "joblib")
_LABEL_BYTES = 2**20  # a label that is larger is none


@dataclass(frozen=True)
class _Scan:
    """What the headers and labels of one shard say."""

    path: Path
    keys: tuple[str, ...]
    labels: tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True)
class Shard:
    """One tar file; iterating reads it from front to back."""

    path: Path
    label: str
    classes: tuple[str, ...]
    multi_label: bool
    prefix: str = ""  # put in front of keys that other shards have, too

    @property
    def name(self) -> str:
        return self.path.name

    def __iter__(self) -> Iterator[Encoded]:
        for sample in _samples(self.path):
            image = next((sample[ending] for ending in _image_endings(sample)), None)
            if image is None or self.label.split(".")[0] not in sample:
                continue
            label, where = _label(sample, self.label, self.path), f"shard {self.path.name}"
            if self.multi_label:
                found = [label] if isinstance(label, str) else list(label)
                target: Any = labelling.label_vectors([found], self.classes, where=where)[0]
            else:
                target = int(labelling.class_targets([str(label)], self.classes, where=where)[0])
            yield Encoded(image, target, self.prefix + sample["__key__"])


def shards_source(spec: Spec) -> Source:
    """The splits of a pattern of tar files: `train`, and `val` where `val=PATTERN` names its shards.

    The headers and labels of all shards are read once, which gives the number of samples, the classes (numbers, or
    names in sorted order) and the keys. Options: `resampled`, `epoch=N` (samples an epoch, of train), `buffer=N`
    (samples shuffled among), `label=cls|json|txt` or `label=json.FIELD`.

    Raises BadInput for patterns without files, shards without labelled images, with pickles, or that are damaged;
    MissingExtra without webdataset.
    """
    require("webdataset")
    patterns = {"all": spec.where}
    if "val" in spec.options:
        patterns = {"train": spec.where, "val": spec.options["val"]}
    elif (named := canonical_split(re.split(r"[-_.{*\[]", Path(spec.where).name)[0])) is not None:
        patterns = {named: spec.where}
    files = {split: _files(spec, pattern) for split, pattern in patterns.items()}
    label = _chosen_label(spec, next(iter(files.values()))[0])
    scans = {split: [_scan(path, label) for path in paths] for split, paths in files.items()}
    labels = [label for of_split in scans.values() for scan in of_split for label in scan.labels]
    multi = any(not isinstance(one, str) for one in labels)
    classes = _classes(spec, labels, label)
    opened = {
        split: partial(_open, spec, split, tuple(of_split), label, classes, multi) for split, of_split in scans.items()
    }
    return Source(spec.text, opened, "webdataset shards")


def _open(spec: Spec, split: str, scans: tuple[_Scan, ...], label: str, classes: list[str], multi: bool) -> Stream:
    keys = Counter(key for scan in scans for key in scan.keys)
    twice = len(keys) < sum(keys.values())
    parts = tuple(
        Shard(scan.path, label, tuple(classes), multi, f"{scan.path.stem}/" if twice else "") for scan in scans
    )
    held = sum(keys.values())
    if not held:
        raise BadInput(f"data {spec.text!r}, {split}: its {len(scans)} shards hold no image with a {label} label")
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
        multi_label=multi,
        note="keys are not unique over the shards: each has its shard's name in front" if twice else "",
    )
    return in_epochs(whole, spec)


def _files(spec: Spec, pattern: str) -> list[Path]:
    if re.match(r"(\w[\w+.-]*:|-$)", pattern):
        raise BadInput(f"data {spec.text!r}: {pattern!r} is no local path; accepted: tar files that are mounted here")
    from webdataset.shardlists import expand_urls

    found: list[Path] = []
    for name in expand_urls(str(Path(pattern).expanduser())):
        matches = sorted(glob(name)) if any(mark in name for mark in "*[") and not Path(name).exists() else [name]
        found += map(Path, matches)
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        what = f"{len(missing)} of its {len(found)} shards do not exist: {', '.join(missing[:5])}" if found else "none"
        raise BadInput(
            f"data {spec.text!r}: {pattern!r}: {what}; accepted: tar files, as in shards/train-{{000..009}}.tar or "
            "shards/train-*.tar"
        )
    if len(set(found)) < len(found):
        raise BadInput(f"data {spec.text!r}: {pattern!r} names a shard twice")
    return found


def _samples(path: Path, *, read: Callable[[str], bool] | None = None) -> Iterator[dict[str, Any]]:
    """Samples of a shard in webdataset's terms: `__key__`, and the bytes of its members by their ending."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    wanted = read or (lambda name: _ending(name) in (*_IMAGES, *LABELS))
    try:
        with path.open("rb") as stream:
            members = tar_file_expander(iter([{"url": str(path), "stream": stream}]), select_files=wanted)
            yield from group_by_keys(members)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__  # webdataset adds addresses to the arguments
        raise BadInput(f"shard {path.name} is damaged or no tar file: {reason}") from None


def _scan(path: Path, label: str) -> _Scan:
    """Keys and labels of a shard; seeks over the images. Raises BadInput for pickles and unlabelled images."""
    keys: list[str] = []
    labels: list[str | tuple[str, ...]] = []
    images: set[str] = set()
    member_ending = label.split(".")[0]
    try:
        with tarfile.open(path) as tar:
            found: dict[str, bytes] = {}
            for member in tar:
                ending, stem = _ending(member.name), _stem(member.name)
                if ending.rsplit(".", 1)[-1] in _PICKLES:
                    raise BadInput(
                        f"shard {path.name}: member {member.name!r} is a pickle, which can run code when it is read: "
                        f"refused; accepted: images and {', '.join(LABELS)}"
                    )
                if not member.isreg():
                    continue
                if ending in _IMAGES:
                    if stem not in images:
                        keys.append(stem)
                    images.add(stem)
                elif ending == member_ending and member.size <= _LABEL_BYTES:
                    content = tar.extractfile(member)
                    found[stem] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadInput(f"shard {path.name} is damaged or no tar file: {error}") from None
    without = [key for key in keys if key not in found]
    if without:
        raise BadInput(
            f"shard {path.name}: {len(without)} of {len(keys)} images have no {member_ending} member, {without[0]!r} "
            "the first"
        )
    labels = [_label({"__key__": key, member_ending: found[key]}, label, path) for key in keys]
    return _Scan(path, tuple(keys), tuple(labels))


def _chosen_label(spec: Spec, path: Path) -> str:
    """Which member holds the label: `label=`, else the first of cls, json, txt that the first image has."""
    given = spec.options.get("label")
    if given is not None:
        if given.split(".")[0] not in LABELS:
            raise BadInput(f"data {spec.text!r}: label={given!r}; accepted: {', '.join(LABELS)} or json.FIELD")
        return given
    for sample in _samples(path):
        if not list(_image_endings(sample)):
            continue
        if "cls" in sample:
            return "cls"
        if "json" in sample and (field := _field_of(sample["json"])):
            return f"json.{field}"
        if "txt" in sample:
            return "txt"
        held = ", ".join(name for name in sample if not name.startswith("__"))
        raise BadInput(
            f"shard {path.name}: sample {sample['__key__']!r} has no label (it has {held}); accepted: a cls or txt "
            f"member, or json with one of {', '.join(_FIELDS)}"
        )
    raise BadInput(f"shard {path.name} holds no image; accepted endings: {' '.join(sorted(_IMAGES))}")


def _field_of(encoded: bytes) -> str | None:
    try:
        value = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    return next((name for name in _FIELDS if isinstance(value, dict) and name in value), None)


def _label(sample: dict[str, Any], label: str, path: Path) -> str | tuple[str, ...]:
    """The label's text, or a tuple of texts for a JSON list. Raises BadInput naming shard and sample."""
    ending, _, name = label.partition(".")
    where = f"shard {path.name}, sample {sample['__key__']!r}"
    try:
        text = sample[ending].decode("utf-8").strip()
        value = json.loads(text) if ending == "json" else text
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: its {ending} member cannot be read: {error}") from None
    if ending == "json" and isinstance(value, dict):
        name = name or next((field for field in _FIELDS if field in value), "")
        value = value.get(name)
    if isinstance(value, list) and all(_plain(one) for one in value):
        return tuple(str(one) for one in value)
    if not _plain(value) or value == "":
        raise BadInput(f"{where}: label {value!r}; accepted: a number, a name, or in json a list of them")
    return str(value)


def _classes(spec: Spec, labels: list[str | tuple[str, ...]], label: str) -> list[str]:
    flat = [name for one in labels for name in ((one,) if isinstance(one, str) else one)]
    classes = labelling.names_of(flat)
    if label == "txt" and len(classes) > 50 and len(classes) > len(labels) // 2:
        raise BadInput(
            f"data {spec.text!r}: the txt members hold {len(classes)} different texts for {len(labels)} images: "
            "captions, not classes; accepted: a cls member, or label=json.FIELD"
        )
    return classes


def _plain(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _image_endings(sample: dict[str, Any]) -> Iterator[str]:
    return (ending for ending in sample if ending in _IMAGES)


def _stem(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _ending(name: str) -> str:
    """All that follows the first dot of a member's file name, in lower case: webdataset's rule."""
    return name.rpartition("/")[2].partition(".")[2].lower()
