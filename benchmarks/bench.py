"""What the benchmarks share: options of the command line, and results that say what they hold.

    OPTIONS = bench.parser(__doc__, seeds=3, rounds=15, out=bench.RESULTS / "NAME.json", smoke=False)
    ABOUT = bench.About("Title", "What was done.", (Table("rows", ("method", "top1_percent")),))
    kept = bench.KeptRows(given.out, ABOUT, settings, fresh=given.fresh)  # or bench.write_result, all at once

`docs/performance.md` is made of what a result says of itself (`tools/pages/performance.py`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.measure import environment
from leanvit.training import RECOVERY

RESULTS = Path(__file__).parent / "results"


# --- options ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option of the command line. The default gives its type; a list may be repeated, a bool is a switch."""

    default: Any = None
    help: str | None = None
    kind: Callable[[str], Any] | None = None  # default: the type of the default, or of a list's first; else text
    choices: Sequence[str] | None = None
    metavar: str | None = None
    required: bool = False
    positional: bool = False
    several: bool = False  # of a list: values in a row, not each with the option's name again


class Repeated(argparse.Action):
    """Appends to a list; the first value that is given replaces the default."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        found = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [value] if found is self.default else [*found, value])


SHARED = {
    "data": Option(help="data spec, as `leanvit train --data` takes it", positional=True),
    "model": Option(help="the reference: a run folder (or a timm name)", metavar="RUN"),
    "method": Option(help="as `leanvit compress --with` takes it; may be repeated"),
    "nvit": Option(help="NViT with its knobs, as `leanvit compress --with` takes it"),
    "seeds": Option(help="how many, from 0"),
    "seed": Option(),
    "macs": Option(help="share of the dense model's MACs"),
    "images": Option(help="training images (default: all)", kind=int),
    "limit": Option(help="training images"),
    "val_images": Option(help="validation images (default: all)", kind=int),
    "epochs": Option(help="of the training"),
    "recover_images": Option(help="training images of the recovery"),
    "recover_epochs": Option(help="passes over them"),
    "lr": Option(help="peak learning rate of the recovery"),
    "amp": Option(help="of the recovery's forward passes", choices=("bf16", "fp32")),
    "batch": Option(help="images a call; may be repeated"),
    "threads": Option(help="of the timed runs; none: as torch chooses", kind=int),
    "rounds": Option(help="of the timed runs"),
    "seconds": Option(help="least length of a sample"),
    "torch_only": Option(help="time PyTorch alone"),
    "out": Option(help="the result", kind=Path),
    "fresh": Option(help="forget the rows that --out holds"),
    "smoke": Option(help="seconds, at the smallest sizes: shows that it runs, no figures"),
}
REFERENCE = {  # defaults of the benchmarks of a trained reference
    "data": None,
    "model": None,
    "seeds": 3,
    "lr": RECOVERY.lr,
    "amp": "bf16",
    "val_images": None,
    "threads": 1,
    "rounds": 9,
    "fresh": False,
    "smoke": False,
}


def parser(doc: str, **options: Any) -> argparse.ArgumentParser:
    """A parser with these options. A value is the default of a shared option, or an `Option`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, given in options.items():
        option = given if isinstance(given, Option) else replace(SHARED[name], default=given)
        made.add_argument(_flag(name, option), **_told(name, option))
    return made


def _flag(name: str, option: Option) -> str:
    if option.positional:
        return name
    return f"--{'no-' if option.default is True else ''}{name.replace('_', '-')}"


def _told(name: str, option: Option) -> dict[str, Any]:
    """The arguments of `add_argument` for an option."""
    default = option.default
    if isinstance(default, bool):
        return {"dest": name, "action": f"store_{str(not default).lower()}", "help": option.help}
    first = default[0] if isinstance(default, list) and default else default
    kind = option.kind or (str if first is None or isinstance(first, list) else type(first))
    kind = Path if isinstance(first, Path) else kind
    payload = {
        "default": default,
        "type": kind,
        "choices": option.choices,
        "metavar": option.metavar,
        "help": option.help,
    }
    if option.positional:
        return {**payload, "nargs": None if option.required else "?"}
    if isinstance(default, list):
        payload |= {"nargs": "+"} if option.several else {"action": Repeated}
    elif default is not None:
        payload["help"] = f"{option.help or ''} (default %(default)s)".strip()
    return {**payload, "dest": name, "required": option.required}


# --- what a result says of itself ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """What the values of one key are, and how they are shown."""

    heading: str
    unit: str = ""
    form: str = ""  # Python's format of a number
    scale: float = 1.0  # to the unit
    show: str = ""  # "code", or of a list "median" or "count"
    each: tuple[str, ...] = ()  # what the entries of a list are: "median", "q25", "q75"


COLUMNS = {  # of several benchmarks; a key that neither they nor its benchmark describe is its own heading
    "model": Column("model", show="code"),
    "params": Column("parameters", "M", ".2f", 1e-6),
    "macs": Column("MACs", "M", ".1f", 1e-6),
    "macs_ratio": Column("MACs", "of dense", ".3f"),
    "macs_ratio/mean": Column("MACs", "of dense", ".3f"),
    "images_per_s": Column("images a second", form=".1f"),
    "median_ms": Column("time", "ms", ".1f"),
    "efficiency": Column("time saved / MACs saved", form=".2f"),
    "trained_images": Column("training images", form=",d"),
    "one_shot_top1_percent": Column("top-1 at once", "%", ".2f"),
    "off_the_shelf_top1_percent": Column("top-1 off the shelf", "%", ".2f"),
    "top1_percent": Column("top-1", "%", ".2f"),
    "mean": Column("mean", form=".2f"),
    "change_points": Column("change", "points", "+.2f"),
    "claim": Column("claim"),
    "points": Column("seed by seed", "points", "+.2f"),
}


@dataclass(frozen=True)
class Table:
    """Rows that are shown. `columns`: keys, or paths ("speed/torch f32"); `*` stands for every key that matches."""

    rows: str  # path of a list or of a mapping (whose keys are the column "name"); "": the result is one row
    columns: tuple[str, ...]
    caption: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)  # what a row must have to be shown


@dataclass(frozen=True)
class About:
    """A result's own title and columns. `text` and captions may name settings: `{settings[limit]:,}`."""

    title: str
    text: str
    tables: tuple[Table, ...]
    columns: Mapping[str, Column] = field(default_factory=dict)
    others: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # title and text, by name of the file

    def to_json(self, name: str) -> dict[str, Any]:
        """`name`: of the result's file, without its suffix."""
        title, text = self.others.get(name, (self.title, self.text))
        known = COLUMNS | dict(self.columns)
        shown = dict.fromkeys(key for table in self.tables for key in table.columns)
        columns = {key: _said(known.get(key) or Column(key)) for key in shown}
        return {"title": title, "about": text, "columns": columns, "tables": [_said(table) for table in self.tables]}


def _said(of: Column | Table) -> dict[str, Any]:
    """The fields that say something."""
    return json.loads(json.dumps({k: v for k, v in asdict(of).items() if v not in ("", 1.0, (), {}) or k == "rows"}))


# --- results ---------------------------------------------------------------------------------------------------------


def command() -> str:
    """The command of this run, as it is recorded."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result atomically; infinite and undefined numbers raise `ValueError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())


def write_result(path: Path | None, about: About, **content: Any) -> None:
    """Write a result that is made in one run: `{"title", "columns", ..., "command", "environment", **content}`."""
    if path is not None:
        write_json(path, {**about.to_json(path.stem), "command": command(), "environment": environment(), **content})


def log(row: Mapping[str, Any]) -> None:
    """Print the plain values of a row."""
    plain = {k: v for k, v in row.items() if isinstance(v, str | int | float)}
    print("  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()), flush=True)


class KeptRows:
    """Rows of a long benchmark in one JSON file, `{"title", "columns", ..., "settings", "environment", "rows"}`.

    A killed run goes on where it was. A run with other settings, or on another CPU, is refused: its rows would be mixed
    with those that are there.
    """

    def __init__(self, path: Path, about: About, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Raises `BadInput` if `path` holds rows of other settings or of another CPU; `fresh` forgets them."""
        self.path = path
        settings = json.loads(json.dumps(settings))
        self.content: dict[str, Any] = {
            "commands": [],
            "settings": settings,
            "environment": environment(),
            "rows": [],
        }
        if path.is_file() and not fresh:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self._require_same(kept)
            payload = {k: v for k, v in settings.items() if v is not None}
            self.content |= {**kept, "settings": kept["settings"] | payload}
        self.content = about.to_json(path.stem) | self.content | about.to_json(path.stem)
        if command() not in self.content.setdefault("commands", []):
            self.content["commands"].append(command())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def get(self, **key: Any) -> dict[str, Any] | None:
        """The row whose columns have these values, if it is there."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, *rows: dict[str, Any]) -> dict[str, Any]:
        """Keep more rows; they are on disk when this returns the last of them."""
        self.rows.extend(rows)
        self.write()
        for row in rows:
            log(row)
        return rows[-1]

    def write(self, **more: Any) -> None:
        """Write the file atomically, with `more` (summaries) beside the rows."""
        self.content |= more
        write_json(self.path, self.content)

    def _require_same(self, kept: dict[str, Any]) -> None:
        was, now = kept["settings"], self.content["settings"]
        both = [k for k in was if was[k] is not None and now.get(k) is not None]  # None: that part has not run yet
        other = [f"{k} was {was[k]!r} and is {now[k]!r}" for k in both if was[k] != now[k]]
        cpus = [kept["environment"]["cpu"], self.content["environment"]["cpu"]]
        if cpus[0] != cpus[1]:
            other.append(f"the CPU was {cpus[0]} and is {cpus[1]}")
        if other:
            raise BadInput(
                f"{self.path} holds rows of other settings: {'; '.join(other)}. Give another --out or --fresh"
            )
