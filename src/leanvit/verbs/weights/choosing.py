"""Which of a file's tensors are the model's: the entry and the prefix under which its own names are found."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from leanvit.errors import CheckpointError
from leanvit.models.registry import ENTRIES, checkpoint_filter
from leanvit.verbs.weights.reading import Held

Filter = Callable[..., Mapping[str, Any]]
_WRAPPERS = ("module", "_orig_mod", "_forward_module")  # of parallel, compiled and strategy modules: no choice in them
_LOOPS = (*_WRAPPERS, "model", "net", "network", "backbone", "encoder", "student", "teacher", "ema", "trunk", "visual")
_AVERAGES = {"ema", "averaged", "average", "swa"}
_STUDENTS = {"student", "online"}
_TEACHERS = {"teacher", "target", "momentum", "k"}
_TRIED = 12  # prefixes at most
_SHOWN = 4


@dataclass(frozen=True)
class Choice:
    """The model's weights in a file."""

    start: str  # what its names have before those of the model
    entry: str  # the part of `start` that is an entry of the file, without the last dot
    raw: dict[str, Tensor]  # by the names in the file behind `start`
    tensors: dict[str, Tensor]  # by the model's names: those that its filter gave
    official: bool  # the layout of a paper's own repository, of a model of leanvit
    left: tuple[str, ...]  # what else the file holds
    error: str = ""  # why a filter refused it

    @property
    def prefix(self) -> str:
        """What stands before the names inside the entry; empty where wrappers alone do."""
        prefix = self.start[len(self.entry) + 1 :] if self.entry else self.start
        return "" if set(prefix.split(".")) <= {*_WRAPPERS, ""} else prefix

    def summary(self) -> str:
        """One line for people."""
        left = f"; {', '.join(self.left)} is left" if self.left else ""
        entry = f" of its entry {self.entry!r}" if self.entry else ""
        prefix = f" under the prefix {self.prefix!r}" if self.prefix else ""
        return f"{len(self.raw)} tensors{entry}{prefix}{left}"

    @property
    def chosen(self) -> bool:
        return bool(self.entry or self.prefix or self.left)


def choose(held: Held, model: nn.Module, *, name: str = "") -> Choice:
    """The weights of `model` in a file: the entry and prefix that make most of its names fit, in shape too.

    Of two that fit alike an average comes first, a student last (as timm: `ENTRIES`).

    Args:
        model: what the weights are for; its names and shapes are read (values may be on the meta device).
        name: its timm name, for the filter of its architecture.

    Raises:
        CheckpointError: two sets of weights fit alike and differ, and no name says which is meant.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    rename = _filter(name)
    tried = [(start, _tried(held, start, model, own, rename)) for start in _starts(held, own)]
    best = max(_score(own, found[1]) for _, found in tried)
    equal = [(start, found) for start, found in tried if _score(own, found[1]) == best]
    equal.sort(key=lambda one: (_rank(one[0]), len(one[0])))
    start, (raw, tensors, official, error) = _narrowed(equal)
    _refuse_ambiguous(held, equal, best)
    entry = max((e for e in held.entries if start.startswith(e)), key=len, default="")
    return Choice(start, entry.removesuffix("."), raw, tensors, official, _left(held, start), error)


_Tried = tuple[dict[str, Tensor], dict[str, Tensor], bool, str]


def _tried(held: Held, start: str, model: nn.Module, own: Mapping[str, tuple[int, ...]], rename: Any) -> _Tried:
    raw = {key[len(start) :]: value for key, value in held.tensors.items() if key.startswith(start)}
    if rename is None or all(key in raw and tuple(raw[key].shape) == shape for key, shape in own.items()):
        return raw, raw, False, ""
    function, ours = rename
    try:
        tensors = {k: v for k, v in function(dict(raw), model).items() if isinstance(k, str) and isinstance(v, Tensor)}
    except Exception as error:  # filters are written for one layout: others break them anywhere
        return raw, raw, False, f"{error}" if isinstance(error, ValueError) and ours else ""
    return raw, tensors, ours and set(tensors) != set(raw), ""


def _filter(name: str) -> tuple[Filter, bool] | None:
    """What brings checkpoints to an architecture's names, as timm's builders have it, and whether it is leanvit's."""
    if not name:
        return None
    base = name.split(":")[-1].split("/")[-1].split(".")[0]
    ours = checkpoint_filter(base)
    if ours is not None:
        return ours, True
    if not timm.is_model(base):
        return None
    module = sys.modules[timm.models.model_entrypoint(base).__module__]
    found = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "pretrained_filter_fn", None)
    if found is None:
        return None
    plain = module.__name__.endswith(".vision_transformer")
    if module.__name__.endswith(".deit"):
        found = partial(found, adapt_layer_scale=True)
    elif plain and "flexi" in base:
        found = partial(found, interpolation="bilinear", antialias=False)
    return found, False


def _starts(held: Held, own: Iterable[str]) -> list[str]:
    """Prefixes worth a try: under which names of the model lie, entries of the file, and those in wrappers."""
    names, counts = set(own), Counter[str]()
    for key in held.tensors:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in names:
                counts["".join(part + "." for part in parts[:i])] += 1
    found = dict.fromkeys(["", *(start for start, _ in counts.most_common(_TRIED))])
    sizes = {entry: sum(key.startswith(entry) for key in held.tensors) for entry in held.entries}
    found |= dict.fromkeys(sorted((e for e in sizes if sizes[e]), key=lambda e: -sizes[e])[:_TRIED])
    pending = list(found)
    while pending and len(found) < 3 * _TRIED:
        start = pending.pop(0)
        heads = {key[len(start) :].split(".")[0] for key in held.tensors if key.startswith(start)}
        new = [f"{start}{head}." for head in sorted(heads) if head in _LOOPS and f"{start}{head}." not in found]
        found |= dict.fromkeys(new)
        pending += new
    return list(found)


def _narrowed(equal: list[tuple[str, _Tried]]) -> tuple[str, _Tried]:
    """The first, or the longest start within it that gives the same: what it leaves out is then said."""
    best = equal[0]
    for start, found in equal[1:]:
        narrower = start.startswith(best[0]) and found[1].keys() == best[1][1].keys()
        if narrower and all(_same(found[1][key], value) for key, value in best[1][1].items()):
            best = start, found
    return best


def _score(own: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many of the model's names fit in shape, and how many are there at all."""
    there = [key for key in own if key in tensors]
    return sum(tuple(tensors[key].shape) == own[key] for key in there), len(there)


def _rank(start: str) -> tuple[int, int]:
    """Order of equals: averages, then what is neither, teachers, students; entries in the order of timm."""
    words = set(re.split(r"[._]", start.lower()))
    parts = start.split(".")
    known = min((ENTRIES.index(part) for part in parts if part in ENTRIES), default=len(ENTRIES))
    kind = 3 if words & _STUDENTS else 0 if words & _AVERAGES else 2 if words & _TEACHERS else 1
    return kind, known


def _refuse_ambiguous(held: Held, equal: list[tuple[str, _Tried]], best: tuple[int, int]) -> None:
    start, (_, tensors, *_) = equal[0]
    if not any(best):
        return
    for other, (_, theirs, *_) in equal[1:]:
        nested = other.startswith(start) or start.startswith(other)
        if nested or _rank(other) != _rank(start) or theirs.keys() != tensors.keys():
            continue
        if any(not _same(tensors[key], theirs[key]) for key in tensors):
            raise CheckpointError(
                f"{held.what} holds two sets of weights that fit alike, under {start!r} and {other!r}: "
                "save the one that you mean in a file of its own"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.equal(a, b)
    except RuntimeError:  # kinds of tensors without a comparison; they are refused later
        return False


def _left(held: Held, start: str) -> tuple[str, ...]:
    """Names of what is beside the weights, each as short as stays unambiguous."""
    taken = start.split(".")
    names: dict[str, None] = {}
    for key in held.tensors:
        if key.startswith(start):
            continue
        parts = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(parts, taken, strict=False)) if a != b), 0)
        names[".".join(parts[: shared + 1])] = None
    listed = list(names)
    more = [f"… ({len(listed)} in all)"] if len(listed) > _SHOWN else []
    return (*listed[:_SHOWN], *more)
