"""Where text goes: results to stdout, progress to stderr; with `--json`, stdout holds one JSON document only."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stdout_for_result() -> Iterator[None]:
    """While work runs, whatever libraries print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))


def print_rich(*things: Any) -> None:
    """Tables and text for a person; the width is the terminal's, and wide enough for a table when there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for thing in things:
        console.print(thing, highlight=False)
