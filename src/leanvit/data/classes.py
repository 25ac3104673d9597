"""Whether a model and a data set mean the same classes: the one comparison that every verb and call rests on.

Names are matched, never positions, where both sides have names. A model without names (a timm name, an old run) has
outputs in an order that only its maker knows: then positions are taken, with a message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from leanvit.data.labels import distinct_names
from leanvit.errors import BadInput, printable, unknown

CLASS_NAMES = ("by-name", "by-position")
_WORDNET = re.compile(r"(n\d{8})(_.*)?")  # ids that ImageNet's class folders are called by, or begin with
_SHOWN = 8


@dataclass(frozen=True)
class Matched:
    """Where the classes of a data set are among the outputs of a model."""

    positions: tuple[int, ...]  # for each class of the data, the output that stands for it
    outputs: int  # of the model
    note: str = ""  # one line for the user on how classes were matched; "" where there is nothing to note

    @property
    def same(self) -> bool:
        """Whether both have the same classes in the same order."""
        return self.positions == tuple(range(self.outputs))

    def names(self, known: Sequence[str], found: Sequence[str]) -> list[str]:
        """A name for each output: the model's own, else the data's, else its number."""
        if len(known) == self.outputs:
            return list(known)
        theirs = dict(zip(self.positions, found, strict=True))
        return [theirs.get(output, str(output)) for output in range(self.outputs)]


def match_classes(
    known: Sequence[str],
    outputs: int,
    found: Sequence[str],
    *,
    class_names: str = "by-name",
    exact: bool = False,
    model: str = "the model",
    data: str = "the data",
) -> Matched:
    """Find the classes of a data set among the outputs of a model.

    Args:
        known: names of the model's outputs, in their order; empty where it has none.
        outputs: how many outputs it has.
        found: names of the data's classes, in the order of its targets.
        exact: accept as many classes as outputs only: a training would forget the classes that it does not see.
        class_names: "by-name", or "by-position": as many classes as outputs, whatever they are called, or
            fewer whose names are numbers of outputs.
        model, data: what to call the two in messages.

    Equal names are matched whatever their order, and however their accents are encoded (Unicode's NFC or NFD). A part
    of the model's classes is enough: they are scored among themselves. Where the model has no names: as many classes
    as outputs are taken in order, and ImageNet's WordNet ids say themselves which output is meant.

    Raises:
        BadInput: names that the model does not know (both lists are named), or another number of classes.
    """
    if class_names not in CLASS_NAMES:
        raise unknown("class_names", str(class_names), CLASS_NAMES)
    known, found = tuple(known), tuple(found)
    if known and len(known) != outputs:  # a run of an older leanvit: its names say nothing of the outputs
        known = ()
    if class_names == "by-position":
        return _by_position(known, outputs, found, model, data)
    if exact and len(found) != outputs:
        raise BadInput(_other_number(outputs, len(found), model, data))
    if not known:
        return _without_names(outputs, found, exact, model, data)
    if known == found or distinct_names(known) == distinct_names(found):
        return Matched(tuple(range(outputs)), outputs)
    ours, theirs = (tuple(map(_normal, names)) for names in (known, found))
    for what, names in ((model, ours), (data, theirs)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadInput(f"classes: {what} has {twice!r} twice, so its classes cannot be distinguished by name")
    position = {name: index for index, name in enumerate(ours)}
    strange = [name for name in found if _normal(name) not in position]
    if strange:
        raise BadInput(_difference(known, found, strange, model, data))
    positions = tuple(position[name] for name in theirs)
    return Matched(positions, outputs, _note(known, found, positions, model, data))


def _normal(name: str) -> str:
    """A name in one encoding: file systems and tables write accents in two."""
    return unicodedata.normalize("NFC", name)


def _by_position(known: Sequence[str], outputs: int, found: Sequence[str], model: str, data: str) -> Matched:
    numbers = _numbers(found, outputs)
    if len(found) != outputs and not numbers:
        raise BadInput(
            f"class names by-position: {model} has {outputs} outputs, {data} {len(found)} classes; accepted: as many "
            "classes as outputs, or classes that are whole numbers, each that of an output"
        )
    if len(found) != outputs:
        return Matched(numbers, outputs, f"{_part(found, outputs, model)}, taken as the numbers of its outputs")
    renamed = [f"{theirs} as {ours}" for ours, theirs in zip(known, found, strict=False) if ours != theirs]
    note = f"classes of {data} are taken by position: {listed(renamed)}" if renamed else ""
    return Matched(tuple(range(outputs)), outputs, note)


def _numbers(found: Sequence[str], outputs: int) -> tuple[int, ...]:
    """The classes as numbers of outputs; empty where one is no such number."""
    numbers = tuple(int(name) for name in found if name.isdecimal() and len(name) < 10)
    fits = len(set(numbers)) == len(found) and max(numbers, default=0) < outputs
    return numbers if fits else ()


def _without_names(outputs: int, found: Sequence[str], exact: bool, model: str, data: str) -> Matched:
    ids = [match[1] for match in map(_WORDNET.fullmatch, found) if match]
    wordnet = _wordnet_ids(outputs) if len(set(ids)) == len(found) and not exact else ()
    if wordnet and set(ids) <= set(wordnet):
        positions = tuple(wordnet.index(one) for one in ids)
        part = f"{_part(found, outputs, model)}, " if len(found) < outputs else f"the {outputs} classes of {data} are "
        return Matched(positions, outputs, f"{part}found by their WordNet ids")
    if len(found) == outputs:
        note = f"the outputs of {model} have no names: the {outputs} classes of {data} are taken in their order"
        return Matched(tuple(range(outputs)), outputs, note)
    numbers = (
        ", or, if its numbers are those of the outputs, --class-names by-position" if _numbers(found, outputs) else ""
    )
    raise BadInput(f"{_other_number(outputs, len(found), model, data)}{numbers}")


def _wordnet_ids(outputs: int) -> tuple[str, ...]:
    """WordNet ids of ImageNet-1k in the order of its models' outputs; empty for another number of outputs."""
    if outputs != 1000:
        return ()
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def _note(known: Sequence[str], found: Sequence[str], positions: Sequence[int], model: str, data: str) -> str:
    if len(found) < len(known):
        return f"{_part(found, len(known), model)}: {listed(found)}"
    if tuple(positions) != tuple(range(len(known))):
        return f"classes are matched by name: {data} has those of {model} in another order"
    return ""


def _part(found: Sequence[str], outputs: int, model: str) -> str:
    """Also a warning where one class is left, among which no answer is wrong."""
    alone = "; one class alone: no answer can be wrong, so its score means nothing" if len(found) == 1 else ""
    return f"{len(found)} of the {outputs} classes of {model}, scored among themselves{alone}"


def _difference(known: Sequence[str], found: Sequence[str], strange: Sequence[str], model: str, data: str) -> str:
    lists = f"    {model} ({len(known)}): {listed(known)}\n    {data} ({len(found)}): {listed(found)}\n"
    if len(found) == len(known):
        return (
            f"classes: {data} has {listed(strange)}, which {model} does not know\n{lists}    If they mean the same in "
            "this order: --class-names by-position (class_names='by-position'); else rename the classes of the data"
        )
    shared = [name for name in found if name in known]
    more = ",…" if len(shared) > _SHOWN else ""
    alone = f"\n    To take those alone that it knows: --classes {','.join(shared[:_SHOWN])}{more}" if shared else ""
    return (
        f"{_other_number(len(known), len(found), model, data)}; it does not know {listed(strange)}\n"
        f"{lists.rstrip()}{alone}"
    )


def _other_number(outputs: int, found: int, model: str, data: str) -> str:
    return f"classes: {model} has {outputs}, {data} {found}: build the model with num_classes={found}"


def own_names(model: object, given: Sequence[str] | None, *, argument: str = "classes") -> tuple[str, ...]:
    """The names that go with a model's outputs into a file: its own, else those given; empty where there are none.

    Raises BadInput for names that are not as many as the outputs, that come twice, or that are not the model's own:
    what a model calls its outputs is never replaced by the way.
    """
    known = tuple(getattr(model, "classes", ()))
    if isinstance(given, str) or not all(isinstance(name, str) for name in given or ()):
        raise BadInput(f"{argument} is {given!r}; accepted: a list of class names, one for each output")
    names = tuple(given or known)
    outputs = getattr(model, "num_classes", None)
    if names and outputs is not None and len(names) != outputs:
        raise BadInput(f"{argument} has {len(names)} names; the model has {outputs} classes (names: {listed(names)})")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{argument} has {twice!r} twice; accepted: a name of its own for each output")
    if known and names != known:
        raise BadInput(
            f"{argument} is {listed(names)}, but the model's outputs are {listed(known)}: leave it out to keep them, "
            "or set model.classes to rename them"
        )
    return names


def listed(names: Sequence[str]) -> str:
    """The first names, with commas between."""
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(printable(str(name)) for name in names[:_SHOWN]) + more
