"""Where text goes: results to stdout, progress to stderr; with `--json`, stdout holds one JSON document only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leanvit

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def process() -> tuple[int, int]:
    """(rank, number of processes) as set by torchrun; (0, 1) without. The first process speaks for all."""
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1


# What a terminal obeys, and what turns the direction of text: names of files and classes may hold anything.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text with control characters (but for tabs and ends of lines) spelt out: `\\x1b[2J` clears no terminal."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)


def log(line: str) -> None:
    """One line of progress."""
    print(plain(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result in words, on stdout."""
    print(plain(text))


@contextlib.contextmanager
def stdout_for_result() -> Iterator[None]:
    """While work runs, whatever libraries print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def data_progress() -> Iterator[None]:
    """Inside, how far data is indexed is shown, by the first process."""
    from leanvit.data.progress import Progress, shown_by

    def meter(what: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        from leanvit.verbs import progress

        return progress.meter(log)(what, total)

    with shown_by(Progress(log, meter) if process()[0] == 0 else Progress()):
        yield


@contextlib.contextmanager
def quiet_libraries(quiet: bool = True) -> Iterator[None]:
    """Leanvit's own warnings are one line each; those of libraries, and their logs below errors, are not shown.

    Python's -W and PYTHONWARNINGS keep their say over warnings.
    """
    if not quiet:
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = _show_own
            yield
    finally:
        logging.disable(disabled)


def _show_own(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    ours = Path(filename).is_relative_to(Path(leanvit.__file__).parent)
    if ours and process()[0] == 0 and not issubclass(category, DeprecationWarning):
        log(f"leanvit: warning: {message}")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))


def print_rich(*things: Any) -> None:
    """Tables and text for a person; the width is the terminal's, and wide enough for a table when there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for thing in things:
        console.print(_Plain(thing), highlight=False)


@dataclass(frozen=True)
class _Plain:
    """A renderable whose text a terminal only shows."""

    thing: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment
        from rich.text import Text

        thing = Text(self.thing) if isinstance(self.thing, str) else self.thing  # never markup
        for text, style, control in console.render(thing, options):
            yield Segment(text if control else plain(text), style, control)


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, fed with (done, in all); it is seen on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
