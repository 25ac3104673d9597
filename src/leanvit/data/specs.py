"""The text that names a data set: `WHERE?option=value&switch`, its options, and what is accepted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from leanvit.errors import BadInput, unknown

ON_BAD = ("error", "skip")
FORMS = """accepted forms:
  digits                                    the embedded data set
  FOLDER                                    class folders, or train/ and val/ with class folders; ?layout=classes|splits
  FILE.parquet, FOLDER                      parquet; in a folder, <split>.parquet
  FILE.csv, FILE.tsv                        an image and a label column, or several 0/1 label columns
  list:FILE                                 lines `path label`; list:train.txt?val=val.txt&root=images
  wds:shards/train-{000..009}.tar           webdataset; ?val=PATTERN, resampled, epoch=N
  hf:NAME[:CONFIG]                          HF datasets; ?streaming
options follow `?`, joined by `&`: pets?classes=cat,dog&shots=5&on_bad=skip
  of pictures: channels=4, range=0-4095
  without labels: labels=none
  fields of csv, tsv, parquet, hf: and wds: (there a member): caption=COLUMN, mask=COLUMN, objects=COLUMN, depth=COLUMN;
    ignore=N and mask_classes=a,b of a mask; boxes=xywh|xyxy and object_classes=a,b of objects; depth_scale=N"""
FIELDS = ("caption", "mask", "objects", "depth")  # options that make a column a field of that name
_OF_FIELD = {  # options that say more of one
    "ignore": "mask",
    "mask_classes": "mask",
    "boxes": "objects",
    "object_classes": "objects",
    "depth_scale": "depth",
}
_COLUMNS = (*FIELDS, *_OF_FIELD)
_EVERYWHERE = ("classes", "shots", "labels", "on_bad", "max_pixels", "channels", "range")
_OF_LABELS = ("classes", "shots", "label", "separator", "uncertain")  # options that go with labels
_SWITCHES = ("streaming", "resampled")
_WITH_COMMAS = ("classes", "label", "mask_classes", "object_classes", *FIELDS)  # unquoted name by name
_BY_KIND = {
    "digits": (),
    "folder": ("layout",),
    "parquet": ("root", *_COLUMNS),
    "list": ("root", "val", "separator"),
    "csv": ("root", "val", "separator", "image", "label", "uncertain", *_COLUMNS),
    "wds": ("val", "resampled", "epoch", "buffer", "label", *_COLUMNS),
    "hf": ("streaming", "resampled", "epoch", "buffer", "root", *_COLUMNS),
}
_HAVE_COLUMNS = ".csv and .tsv tables, parquet, hf:NAME, wds:SHARDS"


@dataclass(frozen=True)
class Spec:
    """A parsed spec: `text` as it was given, its kind, where the data lies, and the options (text each)."""

    text: str
    kind: str  # a key of `_BY_KIND`
    where: str
    options: Mapping[str, str]

    @property
    def path(self) -> Path:
        return _path(self.where)

    @property
    def labelled(self) -> bool:
        """Whether its images are opened with labels."""
        return "labels" not in self.options

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int | None:
        """An option that is a whole number. Raises BadInput for anything else, or less than `least`."""
        if name not in self.options:
            return default
        text = self.options[name]
        if not text.isdecimal() or int(text) < least:
            raise BadInput(f"data {self.text!r}: {name}={text!r}; accepted: a whole number >= {least}")
        return int(text)

    def names(self, name: str) -> tuple[str, ...] | None:
        """An option that is a list of names with commas between; None where it is not given."""
        if name not in self.options:
            return None
        found = tuple(unquote(part.strip()) for part in self.options[name].split(",") if part.strip())
        if not found:
            raise BadInput(f"data {self.text!r}: {name} is empty; accepted: names with commas between")
        return found

    def folder(self, name: str, default: Path) -> Path:
        """An option that is a folder. Raises BadInput for what is none."""
        if name not in self.options:
            return default
        folder = _path(self.options[name])
        if not folder.is_dir():
            raise BadInput(f"data {self.text!r}: {name}={self.options[name]!r} is no folder")
        return folder

    @property
    def columns(self) -> dict[str, str]:
        """The columns that become fields, by the names of the fields."""
        return {name: unquote(self.options[name].strip()) for name in FIELDS if name in self.options}

    def on(self, name: str) -> bool:
        """Whether a switch is set."""
        return name in self.options


def parse_spec(text: str) -> Spec:
    """Read a spec. Raises BadInput for an empty one, and for an option that its kind of source does not take.

    What follows a `?` are options, unless it belongs to the name of a file or folder: the longest one that exists is
    taken. `%2C` stands for a comma in a name of a class, `%26` for `&`, `%3F` for `?`.
    """
    if not text.strip():
        raise BadInput(f"data is empty; {FORMS}")
    if "\0" in text:
        raise BadInput(f"data {text!r} holds a zero byte, which no name of a file has; {FORMS}")
    head, rest = _head(text)
    if not head.strip():
        raise BadInput(f"data {text!r} names nothing before its options; {FORMS}")
    kind, where = _kind(head)
    if not _is_text(text) and os.path.lexists(_path(where)):
        raise BadInput(f"data {text!r} is no UTF-8 text, which a record of a run could not hold; rename it")
    known = (*_EVERYWHERE, *_BY_KIND[kind])
    if kind == "parquet" and not os.path.exists(_path(where)):  # a folder may be meant; opening says that there is none
        known = (*known, *_BY_KIND["folder"])
    options: dict[str, str] = {}
    for part in filter(None, (rest or "").split("&")):
        name, equals, value = part.partition("=")
        if name not in known:
            if name in _COLUMNS:
                raise BadInput(f"data {text!r}: {name}= is for data with columns; accepted: {_HAVE_COLUMNS}")
            raise unknown(f"option of data {text!r}", name, known)
        switch = name in _SWITCHES
        if switch and equals and value not in ("true", "1"):
            raise BadInput(f"data {text!r}: {name} is a switch; write it without a value")
        if not switch and not value:
            raise BadInput(f"data {text!r}: option {name} needs a value, as in {name}=…")
        value = value if name in _WITH_COMMAS else unquote(value)
        if options.setdefault(name, value) != value:
            raise BadInput(f"data {text!r}: {name}= is given twice, as {options[name]} and as {value}; leave one out")
    _check_labels(text, options)
    _check_columns(text, options)
    return Spec(text, kind, where, options)


def _check_labels(text: str, options: Mapping[str, str]) -> None:
    """Raises BadInput for another value of `labels` than none, and beside it for options that are about labels."""
    if options.get("labels", "none") != "none":
        raise BadInput(f"data {text!r}: labels={options['labels']!r}; accepted: labels=none, images without labels")
    other = next((name for name in _OF_LABELS if name in options), None)
    if "labels" in options and other is not None:
        raise BadInput(f"data {text!r}: {other}= is about labels, and labels=none opens images without; leave one out")


def _check_columns(text: str, options: Mapping[str, str]) -> None:
    """Raises BadInput for a field of several columns, two fields of one column, and what says more of no field."""
    several = next((name for name in FIELDS if "," in options.get(name, "")), None)
    if several is not None:
        raise BadInput(
            f"data {text!r}: {several}={options[several]} names several columns; accepted: one (%2C stands for a comma "
            "in its name)"
        )
    taken: dict[str, str] = {}
    for name in (*FIELDS, "label", "image"):
        for column in options.get(name, "").split(",") if name in options else ():
            before = taken.setdefault(column.strip(), name)
            if before != name:
                raise BadInput(f"data {text!r}: column {unquote(column)!r} is used twice, for {before}= and {name}=")
    alone = next((name for name, field in _OF_FIELD.items() if name in options and field not in options), None)
    if alone is not None:
        raise BadInput(f"data {text!r}: {alone}= is about a field that is not there; add {_OF_FIELD[alone]}=COLUMN")


def with_options(text: str, options: Mapping[str, object]) -> str:
    """The spec with options added, so that its text alone opens the same data again; None values are left out.

    Raises BadInput where an option is in the text already with another value.
    """
    present = parse_spec(text)
    for name, value in options.items():
        if value is None:
            continue
        wanted = ",".join(quote(str(part), safe=" /") for part in value) if isinstance(value, tuple) else str(value)
        if name in present.options and present.options[name] != wanted:
            raise BadInput(f"data {text!r} has {name}={present.options[name]}, but {name}={wanted} is given, too")
        if name not in present.options:
            rest = _head(text)[1]
            text = f"{text}{'?' if rest is None else '&' if rest else ''}{name}={wanted}"
            present = parse_spec(text)
    return text


def check_on_bad(on_bad: str) -> str:
    """`on_bad` itself. Raises BadInput unless it is "error" or "skip"."""
    if on_bad not in ON_BAD:
        raise unknown("on_bad", str(on_bad), ON_BAD)
    return on_bad


def _head(text: str) -> tuple[str, str | None]:
    """(where, the options' text) of a spec; None where there is no question mark but those of a name that exists."""
    marks = [at for at, mark in enumerate(text) if mark == "?"]
    if not marks:
        return text, None
    if not text.startswith(("hf:", "wds:")):
        for end in (len(text), *reversed(marks)):
            name = text[:end].removeprefix("list:")
            if name and os.path.lexists(_path(name)):
                return text[:end], text[end + 1 :] if end < len(text) else None
    return text[: marks[0]], text[marks[0] + 1 :]


def _path(where: str) -> Path:
    return Path(os.path.expanduser(where))  # Path's own raises where there is no such user


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(where: str) -> tuple[str, str]:
    """(kind, where it lies) by prefix and ending; whether it exists is seen when it is opened."""
    if where == "digits":
        return "digits", where
    for prefix in ("list", "wds", "hf"):
        if where.startswith(f"{prefix}:"):
            if len(where) == len(prefix) + 1:
                raise BadInput(f"data {where!r} names nothing; {FORMS}")
            return prefix, where.removeprefix(f"{prefix}:")
    path = _path(where)
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv", where
    if os.path.isdir(path) and not any(path.glob("*.parquet")) and not any(path.glob("data/*.parquet")):
        return "folder", where
    return "parquet", where
