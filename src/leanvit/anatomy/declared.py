"""Capabilities that a class declares, so that callers need no type checks."""

from __future__ import annotations


def declared(kind: type, name: str) -> bool:
    """A class attribute that holds for this class alone: a subclass computes otherwise, until it declares it, too."""
    return bool(vars(kind).get(name, False))
