"""What lies below a folder, by listing alone: images, the folders in it, and what is left out, by reason.

No file is opened. A link is followed where it leads to an image or a folder, a folder once in one survey; one that
leads to a folder around it is not followed, so that a walk ends and stays below the folder and what is linked into it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from leanvit.data.decode import EXTENSIONS
from leanvit.errors import printable

_SYSTEM = {"__MACOSX", "@eaDir"}  # what zip files of macOS and Synology's thumbnails bring along
_ENDINGS = 8  # that are named, the commonest
_NAMES = 3  # of folders and links that are named
_WITH_ENDING = "with the ending "
_OTHER_ENDING = "with other endings"
_NOT_REGULAR = "that are no regular files (pipes, sockets, devices)"

# Kinds of what is left out by name, for one and for several.
EMPTY = ("empty folder", "empty folders")
NO_IMAGE = ("folder without an image", "folders without an image")
_BROKEN = ("link that leads nowhere", "links that lead nowhere")
_AGAIN = ("link to a folder that is read already", "links to folders that are read already")
_AROUND = ("link to a folder around it", "links to folders around them")

Identity = tuple[int, int]  # (device, inode)


@dataclass
class LeftOut:
    """What is no sample: files counted by reason; folders and links by kind, with their names."""

    files: Counter[str] = field(default_factory=Counter)
    named: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def name(self, kind: tuple[str, str], *names: str) -> None:
        """Add folders or links of one kind."""
        if names:
            self.named.setdefault(kind, []).extend(names)

    def add(self, other: LeftOut) -> None:
        """Add all that another one counted."""
        self.files.update(other.files)
        for kind, names in other.named.items():
            self.name(kind, *names)

    def reasons(self) -> dict[str, int]:
        """Reason -> count, to be read as `16 with the ending .txt`: files, the commonest first, then what has names."""
        endings = [reason for reason, _ in self.files.most_common() if reason.startswith(_WITH_ENDING)]
        rare = set(endings[_ENDINGS:])
        files: Counter[str] = Counter()
        for reason, count in self.files.items():
            files[_OTHER_ENDING if reason in rare else reason] += count
        counts = dict(files.most_common())
        for kind, names in self.named.items():
            counts[f"{kind[len(names) > 1]} ({some(sorted(names))})"] = len(names)
        return counts


@dataclass(frozen=True)
class Sub:
    """A folder in a folder."""

    name: str
    path: Path
    identity: Identity
    linked: bool  # the folder's entry is a link


@dataclass(frozen=True)
class Listing:
    """What is directly in a folder. Hidden folders are counted, not listed."""

    images: tuple[str, ...]
    linked: int  # images that are links
    folders: tuple[Sub, ...]  # sorted by name
    left_out: LeftOut


@dataclass(frozen=True)
class Survey:
    """All that is below a folder."""

    images: tuple[str, ...]  # paths below the folder, `old/0012.jpg`, sorted
    linked: int  # images that are reached through links
    left_out: LeftOut


def around(root: Path) -> frozenset[Identity]:
    """The identities of a folder and of all that it lies in: where no link is followed to. Raises OSError."""
    real = root.resolve()
    return frozenset(_identity(folder.stat()) for folder in (real, *real.parents))


def root(path: Path) -> Sub:
    """A folder as what `survey` begins with. Raises OSError."""
    return Sub(path.name, path, _identity(path.stat()), path.is_symlink())


def listing(path: Path, outer: frozenset[Identity], *, where: str = "") -> Listing:
    """What is directly in a folder; links to a folder of `outer`, or to one that is listed already, are left out.

    `where` is put before the names of what is left out. Raises OSError.
    """
    images: list[str] = []
    links: list[Sub] = []
    folders: list[Sub] = []
    linked, left_out = 0, LeftOut()
    for entry in _entries(path):
        kind, found = _kind(entry)
        if kind == "image":
            images.append(entry.name)
            linked += entry.is_symlink()
        elif kind == "folder":
            sub = Sub(entry.name, path / entry.name, _identity(found), entry.is_symlink())
            (links if sub.linked else folders).append(sub)
        elif kind == "hidden folder":
            count = _count(entry.path)
            if count:
                left_out.files[f"in {printable(entry.name)}/"] += count
            elif entry.name in _SYSTEM:
                left_out.name(EMPTY, printable(where + entry.name))
        elif kind == "broken":
            left_out.name(_BROKEN, printable(where + entry.name))
        else:
            left_out.files[kind] += 1
    seen = {folder.identity for folder in folders}
    for link in links:
        if link.identity in outer or link.identity in seen:
            left_out.name(_AROUND if link.identity in outer else _AGAIN, printable(where + link.name))
        else:
            seen.add(link.identity)
            folders.append(link)
    return Listing(tuple(images), linked, tuple(sorted(folders, key=lambda sub: sub.name)), left_out)


def holds_image(folder: Sub, outer: frozenset[Identity]) -> bool:
    """Whether there is an image below a folder; quick where there is. Raises OSError."""
    seen = {*outer, folder.identity}
    waiting = [folder.path]
    while waiting:
        path = waiting.pop()
        for entry in _entries(path, ordered=False):
            kind, found = _kind(entry)
            if kind == "image":
                return True
            if kind == "folder" and _identity(found) not in seen:
                seen.add(_identity(found))
                waiting.append(path / entry.name)
    return False


def survey(folder: Sub, outer: frozenset[Identity], *, where: str) -> Survey:
    """All that is below a folder; `where` is put before the names of what is left out. Raises OSError.

    Folders are walked before links, so that what a link leads to keeps its own path where it is in the folder anyway.
    """
    images: list[str] = []
    linked, left_out = 0, LeftOut()
    seen = {*outer, folder.identity}
    occupied: set[str] = set()  # folders with a file somewhere below, as paths below `folder` that end in "/"
    walked: list[str] = []
    waiting, links = [("", folder.path, folder.linked)], list[tuple[str, Sub]]()
    while waiting or links:
        if not waiting:
            below, link = links.pop(0)
            if link.identity in seen:
                left_out.name(_AGAIN, printable(where + below[:-1]))
                continue
            seen.add(link.identity)
            waiting.append((below, link.path, True))
        below, path, through_link = waiting.pop()
        walked.append(below)
        found = listing(path, outer, where=where + below)
        images += [below + name for name in found.images]
        linked += len(found.images) if through_link else found.linked
        left_out.add(found.left_out)
        if found.images or found.left_out.files or found.left_out.named:
            occupied.update(_upwards(below))
        for sub in found.folders:
            inner = f"{below}{sub.name}/"
            if sub.linked:
                links.append((inner, sub))
                occupied.update(_upwards(below))
            elif sub.identity in seen:  # inside what a link led to
                left_out.name(_AGAIN, printable(where + inner[:-1]))
            else:
                seen.add(sub.identity)
                waiting.append((inner, sub.path, through_link))
    for below in walked:  # the outermost of empty folders
        if below not in occupied and (not below or _parent(below) in occupied):
            left_out.name(EMPTY, printable((where + below).rstrip("/")))
    return Survey(tuple(sorted(images)), linked, left_out)


def some(names: Iterable[str], most: int = _NAMES) -> str:
    """A few names, and that there are more."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


# --- one entry --------------------------------------------------------------------------------------------------------


def _entries(path: Path, *, ordered: bool = True) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from sorted(entries, key=lambda entry: entry.name) if ordered else entries


def _kind(entry: os.DirEntry[str]) -> tuple[str, os.stat_result]:
    """("image", "folder", "hidden folder", "broken", or why it is left out; its status where it is a folder)."""
    nothing = os.stat_result((0,) * 10)
    hidden = entry.name.startswith(".") or entry.name in _SYSTEM
    if entry.is_symlink():
        if hidden:
            return "hidden", nothing
        try:
            found = entry.stat()
        except OSError:  # leads nowhere, in a circle, or where we may not look
            return "broken", nothing
        is_folder, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
    else:
        is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
        found = entry.stat(follow_symlinks=False) if is_folder else nothing
    if is_folder:
        return "hidden folder" if hidden else "folder", found
    if not is_file:
        return _NOT_REGULAR, nothing
    return "hidden" if hidden else _file_kind(entry.name), nothing


def _file_kind(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    if ending in EXTENSIONS:
        return "image"
    if len(ending) < 2:
        return "without an ending"
    return _WITH_ENDING + ending if ending[1:].isascii() and ending[1:].isalnum() else _OTHER_ENDING


def _count(folder: str) -> int:
    """Files below a hidden folder; links are not followed, and what cannot be listed is passed over."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _parent(below: str) -> str:
    return below[: below.rstrip("/").rfind("/") + 1]


def _upwards(below: str) -> Iterator[str]:
    """A folder and all that it lies in, to the outermost one."""
    yield below
    while below:
        below = _parent(below)
        yield below
