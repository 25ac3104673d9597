"""Tar files that may come from anyone: samples by their headers, in order. Nothing is extracted, no link followed.

A tar that is cut short at the border of a member reads like a whole one; here it must end with its end mark.
"""

from __future__ import annotations

import lzma
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from leanvit.data.decode import EXTENSIONS
from leanvit.errors import BadInput

LABELS = ("cls", "json", "txt")  # in the order in which they are looked for
IMAGES = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
MEMBER_BYTES = 2**28  # a member that is larger is refused before it is read
LABEL_BYTES = 2**20  # likewise of a label
MOST_SHARDS = 100_000  # that a pattern may name
_PICKLES = ("pickle", "pkl", "pyd", "pth", "pt", "ckpt", "joblib")
_BOOKKEEPING = re.compile(r"__[^/]*__($|/)")  # webdataset passes over these
_END = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """An image or a label in a tar. A label's content was read on the way, an image was passed over."""

    size: int
    content: bytes | None = None  # None: an image, or larger than `LABEL_BYTES`


Members = Mapping[str, Member]  # by ending, in lower case


def samples(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, Members]]:
    """(key, members) of each sample with an image: members that are images or labels, side by side, of one key.

    Counts in `left_out` what is no sample: links, devices, samples without an image.

    Raises BadInput, naming shard and member, for pickles, members that are too large or come twice, samples whose
    members are apart, and for what is no whole tar file.
    """
    key, members = "", dict[str, Member]()
    seen, without = set[str](), set[str]()
    with damage(path), tarfile.open(path) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else all headers of the file stay in memory
            stem, ending = _checked(path, member, left_out)
            if not stem:
                continue
            if ending not in (*IMAGES, *LABELS):
                without.add(stem)
                continue
            if stem != key:
                if members:
                    yield from _whole(key, members, without)
                if stem in seen:
                    raise _odd(path, member, f"sample {stem!r} comes twice, or its members are not side by side")
                key, members = stem, {}
                seen.add(stem)
            if ending in members:
                raise _odd(path, member, "comes twice")
            members[ending] = _member(tar, member, ending)
        _require_end(path, tar)  # before the last sample, which may lack what was cut off
        if members:
            yield from _whole(key, members, without)
    if without:
        left_out["samples without an image"] += len(without)


def is_compressed(path: Path) -> bool:
    """Whether a tar is compressed by gzip, bzip2 or xz."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


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
        reason = error.args[0] if error.args else type(error).__name__
        raise BadInput(f"shard {path.name} is damaged or no tar file: {reason}") from None


def _checked(path: Path, member: tarfile.TarInfo, left_out: Counter[str]) -> tuple[str, str]:
    """(key, ending) of a member; an empty key for what is no part of a sample. Raises BadInput."""
    name = normal_name(member.name)
    ending = ending_of(name)
    if ending.rsplit(".", 1)[-1] in _PICKLES:
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
    if ending in (*IMAGES, *LABELS) and member.size > MEMBER_BYTES:
        raise _odd(path, member, f"has {member.size} bytes; accepted: up to {MEMBER_BYTES}")
    return key_of(name), ending


def _whole(key: str, members: Members, without: set[str]) -> Iterator[tuple[str, Members]]:
    if any(ending in IMAGES for ending in members):
        without.discard(key)
        yield key, members
    else:
        without.add(key)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> Member:
    if ending not in LABELS or member.size > LABEL_BYTES:
        return Member(member.size)
    stream = tar.extractfile(member)
    return Member(member.size, stream.read() if stream else b"")


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
