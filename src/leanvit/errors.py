"""Errors that a user can act on. Each message names the argument, what was given and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches


class LeanvitError(Exception):
    """Base of every error that leanvit raises on purpose; the CLI prints its text without a traceback."""


class BadInput(LeanvitError, ValueError):
    """An argument, option, key or file is not what is accepted."""


class NoTrainingSplit(BadInput):
    """A data set has no images to learn from; what does not learn may go on without."""


class Refused(LeanvitError):
    """The input is well formed, but this model, or this combination of methods, is not supported; the text says why."""


class CheckpointError(LeanvitError):
    """A saved run or artefact is truncated, tampered with, foreign, or from a newer format."""


class MissingExtra(LeanvitError, ImportError):
    """An optional dependency is not installed; the text holds the pip command."""


def is_whole(value: object, *, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a whole number within bounds. True and False are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> bool:
    """Whether a value is a finite number within bounds. True and False are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return least <= value <= most and value > above


def printable(name: str) -> str:
    """A name of a file or class in one line of text: what is no printable character is spelt out, as `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def nearest(name: object, known: Iterable[str]) -> str:
    """Text that suggests the nearest known names, but never the very name, to append to an error message.

    Names that begin with it come before those that look like it: `vit_tiny_patch16_224` for `vit_tiny`.

    >>> nearest("evitt", ["evit", "tome", "int8"])
    "did you mean 'evit'? Known: evit, int8, tome"
    """
    known = sorted(known)
    begun = sorted((other for other in known if other.startswith(f"{name}_")), key=len)[:3] if name else []
    close = begun or get_close_matches(str(name), [other for other in known if other != str(name)], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    if hint and len(known) > 100:
        return f"{hint}{len(known)} are known"
    listed = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
    return f"{hint}Known: {listed}"


def unknown(kind: str, name: object, known: Iterable[str]) -> BadInput:
    """The error for a name that is not in a set of names: `unknown method 'evitt': did you mean 'evit'? ...`."""
    return BadInput(f"unknown {kind} {name!r}: {nearest(name, known)}")
