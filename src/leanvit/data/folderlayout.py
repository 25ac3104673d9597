"""What the folders below a folder of images are: classes, or splits with class folders in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from leanvit.data import foldertree
from leanvit.data.decode import EXTENSIONS
from leanvit.data.foldertree import Identity, LeftOut, Sub, some
from leanvit.data.splits import canonical_split
from leanvit.errors import BadInput, printable

LAYOUTS = ("classes", "splits")
_IN_NO_CLASS = "in no class folder"
_NAMED = 5  # folders beside splits, or classes, that are named


@dataclass(frozen=True)
class ClassFolders:
    """A folder of class folders."""

    path: Path
    classes: tuple[Sub, ...]  # folders with an image below
    without: tuple[Sub, ...]  # folders without one
    loose: LeftOut  # what lies beside the folders


@dataclass(frozen=True)
class Layout:
    """Where the class folders of each split lie, and what lies beside the splits."""

    root: Path
    splits: Mapping[str, ClassFolders]  # by "train", "val", "test"; or "all"
    around: frozenset[Identity]  # where no link is followed to
    note: str = ""  # the reading that was taken, where names admit two
    beside: tuple[tuple[Sub, str], ...] = ()  # folders that are no part of a split, and why: `3 in test/, which ...`
    loose: LeftOut = field(default_factory=LeftOut)  # what lies directly in the root, beside the splits


def layout_of(spec: str, root: Path, wanted: str | None) -> Layout:
    """Classes or splits, as `wanted` or by what is there.

    Folders are splits where all that hold images are named so, or where a training split has one of val or test beside
    it; a split without class folders is left out. Else they are classes. `note` says so where names admit both.

    Raises BadInput where neither reading has a class, or a split comes twice; OSError.
    """
    outer = foldertree.around(root)
    held = _class_folders(root, outer, "")
    if wanted == "classes":
        return _as_classes(spec, root, held, outer)
    named = {sub: _class_folders(sub.path, outer, f"{sub.name}/") for sub in held.classes if canonical_split(sub.name)}
    labelled = {sub: inner for sub, inner in named.items() if inner.classes}
    others = [sub for sub in held.classes if sub not in named]
    splits = {canonical_split(sub.name) for sub in labelled}
    if labelled and (wanted == "splits" or not others or ("train" in splits and len(splits) > 1)):
        return _as_splits(spec, root, held, labelled, outer, wanted=wanted)
    if wanted == "splits":
        raise BadInput(
            f"data {spec!r}: layout=splits, but no folder named train, val or test has class folders with images in it"
        )
    if named and not others:
        raise BadInput(
            f"data {spec!r}: {_folders(named)} hold{'s' * (len(named) == 1)} images, but no class folders; expected "
            "train/<class>/<image>, or the labels in a table (FILE.csv, list:FILE); ?layout=classes takes folders of "
            "these names as classes, ?labels=none opens the images without labels"
        )
    return _as_classes(spec, root, held, outer, note=_classes_note(held, named, labelled))


def _as_classes(spec: str, root: Path, held: ClassFolders, outer: frozenset[Identity], note: str = "") -> Layout:
    if not held.classes:
        raise BadInput(f"data {spec!r} {_nothing(root, held, outer)}")
    return Layout(root, {"all": held}, outer, note)


def _as_splits(
    spec: str,
    root: Path,
    held: ClassFolders,
    labelled: Mapping[Sub, ClassFolders],
    outer: frozenset[Identity],
    *,
    wanted: str | None,
) -> Layout:
    splits: dict[str, ClassFolders] = {}
    for name in ("train", "val", "test"):
        of_name = [sub for sub in labelled if canonical_split(sub.name) == name]
        if len(of_name) > 1:
            raise BadInput(f"data {spec!r} holds two {name} splits: {of_name[0].name}/ and {of_name[1].name}/")
        if of_name:
            splits[name] = labelled[of_name[0]]
    aside = [sub for sub in (*held.classes, *held.without) if sub not in labelled]
    unlabelled = [sub for sub in held.classes if sub in aside and canonical_split(sub.name)]
    if "train" not in splits and any(canonical_split(sub.name) == "train" for sub in unlabelled):
        raise BadInput(
            f"data {spec!r}: train/ holds images, but no class folders as {_folders(labelled)}; expected "
            "train/<class>/<image>; ?layout=classes takes folders of these names as classes, ?labels=none opens the "
            "images without labels"
        )
    others = [sub for sub in held.classes if sub in aside and sub not in unlabelled]
    by_name = len(others) <= _NAMED
    beside = [
        (
            sub,
            f"in {printable(sub.name)}/, which has no class folders"
            if sub in unlabelled
            else f"in {printable(sub.name)}/, beside the splits"
            if by_name
            else "in other folders beside the splits",
        )
        for sub in aside
    ]
    note = "" if wanted else _splits_note(labelled, unlabelled, others)
    return Layout(root, splits, outer, note, tuple(beside), held.loose)


def _class_folders(path: Path, outer: frozenset[Identity], where: str) -> ClassFolders:
    found = foldertree.listing(path, outer, where=where)
    loose = found.left_out
    if found.images:
        loose.files[_IN_NO_CLASS] += len(found.images)
    held = {sub: foldertree.holds_image(sub, outer) for sub in found.folders}
    return ClassFolders(path, tuple(s for s in held if held[s]), tuple(s for s in held if not held[s]), loose)


# --- in words ---------------------------------------------------------------------------------------------------------


def _splits_note(labelled: Iterable[Sub], unlabelled: list[Sub], others: list[Sub]) -> str:
    """What is said where the folders could be classes, too; nothing where there are splits with classes only."""
    one = len(list(labelled)) == 1
    if not (one or unlabelled or others):
        return ""
    parts = [f"{_folders(labelled)} {'is taken as a split' if one else 'are taken as splits'}"]
    if unlabelled:
        has = "has no class folders and is" if len(unlabelled) == 1 else "have no class folders and are"
        parts.append(f"{_folders(unlabelled)} {has} left out")
    if others:
        parts.append(f"{_folders(others)} beside {'is' if len(others) == 1 else 'are'} left out")
    return f"{', '.join(parts)} (?layout=classes takes every folder as a class)"


def _classes_note(held: ClassFolders, named: Iterable[Sub], labelled: Iterable[Sub]) -> str:
    """What is said where folders are named like splits, but taken as classes; nothing where none is named so."""
    names = list(named)
    if not names:
        return ""
    others = [sub for sub in held.classes if sub not in names]
    what = "is taken as a class" if len(names) == 1 else "are taken as classes"
    if list(labelled):
        other = "?layout=splits takes it as a split" if len(names) == 1 else "?layout=splits takes them as splits"
    else:
        kept = ",".join(quote(sub.name, safe=" ") for sub in others) if len(others) <= _NAMED else "…"
        other = f"without {'it' if len(names) == 1 else 'them'}: ?classes={kept}"
    return f"{_folders(names)} {what} like {_folders(others)} ({other})"


def _nothing(root: Path, held: ClassFolders, outer: frozenset[Identity]) -> str:
    """What is said of a folder that has no class."""
    endings = " ".join(sorted(EXTENSIONS))
    left = LeftOut()
    left.add(held.loose)
    for sub in held.without:
        left.add(foldertree.survey(sub, outer, where=f"{sub.name}/").left_out)
    there = ", ".join(f"{count} {reason}" for reason, count in left.reasons().items())
    there = f" (there are {there})" if there else ""
    if held.without:
        return f"has no images below {root.resolve().name}/{there}; endings: {endings}"
    expected = "expected <class>/<image> or train/<class>/<image>, images with one of the endings"
    return f"holds no class folders{there}; {expected} {endings}; ?labels=none opens images without labels"


def _folders(subs: Iterable[Sub]) -> str:
    names = [f"{printable(sub.name)}/" for sub in subs]
    if len(names) > _NAMED:
        return some(names, _NAMED)
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
