"""Tar files that may come from anyone: members by their headers, in order. Nothing is extracted, no link followed.

A tar that is cut short at the border of a member reads like a whole one; here it must end with its end mark.
"""

from __future__ import annotations

import lzma
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

from leanvit.data.decode import EXTENSIONS
from leanvit.errors import BadInput

LABELS = ("cls", "json", "txt")  # in the order in which they are looked for
IMAGES = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
SAMPLED = frozenset((*IMAGES, *LABELS))  # endings that make a sample; the members of other endings belong to one
MEMBER_BYTES = 2**28  # a member that is larger is refused before it is read
LABEL_BYTES = 2**20  # likewise of a label
MOST_SHARDS = 100_000  # that a pattern may name
_PICKLES = ("pickle", "pkl", "pyd", "pth", "pt", "ckpt", "joblib")
_BOOKKEEPING = re.compile(r"__[^/]*__($|/)")  # webdataset passes over these
_END = 2 * tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A member of a sample. `header`: byte at which its header begins, its extended headers included."""

    key: str
    ending: str  # in lower case
    header: int
    data: int  # byte at which its content begins
    size: int
    text: bytes | None  # the content of a label; None: another member, or a longer label
    sparse: bool  # its content does not lie in one piece


def members(
    path: Path, left_out: Counter[str], *, text_bytes: int, passed: Callable[[int], object] = lambda offset: None
) -> Iterator[Member]:
    """The members of a tar that have a key, in order; contents are passed over, but for labels of up to `text_bytes`.

    Counts in `left_out` the links and devices; `passed` hears of each member the byte at which it lies.

    Raises BadInput, naming shard and member, for pickles, members that are too large, images and labels that come twice
    or apart from those of their key, and for what is no whole tar file.
    """
    key, endings, seen = "", set[str](), set[str]()
    with damage(path), tarfile.open(path) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else all headers of the file stay in memory
            passed(member.offset)
            stem, ending = _checked(path, member, left_out)
            if not stem:
                continue
            if ending in SAMPLED:
                if stem != key:
                    if stem in seen:
                        raise _odd(path, member, f"sample {stem!r} comes twice, or its members are not side by side")
                    key, endings = stem, set()
                    seen.add(stem)
                if ending in endings:
                    raise _odd(path, member, "comes twice")
                endings.add(ending)
            text = _text(tar, member) if ending in LABELS and member.size <= text_bytes else None
            yield Member(stem, ending, member.offset, member.offset_data, member.size, text, bool(member.issparse()))
        _require_end(path, tar)


def is_compressed(path: Path) -> bool:
    """Whether a tar is compressed by gzip, bzip2 or xz."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def is_pickle(ending: str) -> bool:
    """Whether an ending in lower case is that of a pickle."""
    return ending.rsplit(".", 1)[-1] in _PICKLES


def normal_name(name: str) -> str:
    """A member's name as a path below the shard: `/a/1.png` and `../a/1.png` are `a/1.png`. It only becomes a key."""
    if not name.startswith("/") and ".." not in name.split("/"):
        return name
    return posixpath.normpath("/" + name).lstrip("/")


def key_of(name: str) -> str:
    """All that precedes the first dot of a member's file name, folders included: webdataset's rule."""
    folder, slash, file = name.rpartition("/")
    stem = file.split(".", 1)[0]
    return folder + slash + stem if stem else ""


def ending_of(name: str) -> str:
    """All that follows the first dot of a member's file name, in lower case: webdataset's rule."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def count_braces(pattern: str) -> int:
    """How many names `{a,b}` and `{000..999}` in a pattern stand for at most, before any is made."""
    counts: list[int] = []  # of the groups that are read already, innermost first; "\x00<number>\x00" stands for one

    def of_text(text: str) -> int:
        return prod(counts[int(number)] for number in re.findall(r"\x00(\d+)\x00", text))

    def replace(group: re.Match[str]) -> str:
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?", group[1])
        if span and max(map(len, span.groups())) > 18:
            counts.append(10**18)
        elif span:
            counts.append(abs(int(span[2]) - int(span[1])) + 1)
        elif re.fullmatch(r"\w\.\.\w(?:\.\.-?\d+)?", group[1]):
            counts.append(abs(ord(group[1][3]) - ord(group[1][0])) + 1)
        else:
            counts.append(sum(map(of_text, group[1].split(","))))
        return f"\x00{len(counts) - 1}\x00"

    text, found = pattern.replace("\x00", ""), 1
    while found:
        text, found = re.subn(r"\{([^{}]*)\}", replace, text)
    return of_text(text)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its readers raise, as BadInput."""
    try:
        yield
    except BadInput:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise BadInput(f"shard {path.name} cannot be read: {error.strerror}") from None
        reason = error.args[0] if error.args else type(error).__name__
        raise BadInput(f"shard {path.name} is damaged or no tar file: {reason}") from None


def _checked(path: Path, member: tarfile.TarInfo, left_out: Counter[str]) -> tuple[str, str]:
    """(key, ending) of a member; an empty key for what is no part of a sample. Raises BadInput."""
    name = normal_name(member.name)
    ending = ending_of(name)
    if is_pickle(ending):
        raise BadInput(
            f"shard {path.name}: member {member.name!r} is a pickle, which can run code when it is read: refused; "
            f"accepted: images and {', '.join(LABELS)}"
        )
    if not member.isreg():
        if not member.isdir():
            left_out["links" if member.issym() or member.islnk() else "devices and pipes"] += 1
        return "", ""
    if _BOOKKEEPING.match(member.name):
        return "", ""
    if ending in SAMPLED and member.size > MEMBER_BYTES:
        raise _odd(path, member, f"has {member.size} bytes; accepted: up to {MEMBER_BYTES}")
    return key_of(name), ending


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _require_end(path: Path, tar: tarfile.TarFile) -> None:
    """tarfile stops without a word where a header is cut off, damaged or missing. Raises BadInput."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(_END) != bytes(_END):
        raise BadInput(
            f"shard {path.name} is damaged or no tar file: it stops at byte {tar.offset} without the two empty blocks "
            "that end a tar: it is truncated, or a header is damaged"
        )
    while block := stream.read(2**20):
        if block.strip(b"\0"):
            raise BadInput(
                f"shard {path.name} is damaged or no tar file: there is data behind its end mark, as in tars that were "
                "joined by cat"
            )


def _odd(path: Path, member: tarfile.TarInfo, reason: str) -> BadInput:
    return BadInput(f"shard {path.name}: member {member.name!r}: {reason}")
