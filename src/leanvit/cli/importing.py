"""`leanvit --import MODULE`: modules of the user's own, imported before the verb runs: they register methods, or are
packages that hold folders of papers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from leanvit.errors import BadInput


def import_modules(names: Sequence[str]) -> None:
    """Import modules by dotted name, from the working directory or from what is installed; add a package's papers.

    Raises `BadInput` for a name that there is not, a module that fails, or a card that is damaged.
    """
    if not names:
        return
    from leanvit.cards import add_root, has_cards, import_code

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; an installed program starts without it
    for name in names:
        if not _exists(name):
            raise BadInput(
                f"--import {name!r}: there is no such module in {os.getcwd()} or among what is installed; "
                "accepted: a dotted name, such as my_methods for my_methods.py"
            )
        module = import_code(name)
        for folder in filter(has_cards, getattr(module, "__path__", ())):
            add_root(folder, name)


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
