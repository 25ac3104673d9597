"""Work on one of several things, whose failure ends its own row and not the others'."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanvit.errors import LeanvitError
from leanvit.files import write_atomic
from leanvit.runs.compared import ERROR
from leanvit.training.world import World
from leanvit.verbs.models import Log
from leanvit.verbs.runtimes import first_line


class LeftOut(dict[str, str]):
    """What did not come through, by name, and why; `tracebacks` of what nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.tracebacks: dict[str, str] = {}

    @contextmanager
    def guard(
        self, name: str, log: Log, *, but: type[Exception] | tuple[()] = (), world: World | None = None
    ) -> Iterator[None]:
        """Inside, an error becomes the reason why `name` is left out. `but` and interrupts go through.

        world: of the processes that do the work together: a `LeanvitError` of one leaves `name` out on all. What nobody
        foresaw goes through where there are several: the others may be waiting for this process in the midst of work.
        """
        world = world or World()
        try:
            with world.together():
                yield
        except Exception as error:
            unforeseen = world.size > 1 and not isinstance(error, LeanvitError)
            if isinstance(error, but) or unforeseen or _interrupted(error):
                raise
            if isinstance(error, LeanvitError):
                self[name] = first_line(error)
            else:
                self[name] = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self.tracebacks[name] = traceback.format_exc()
            log(f"{name} is left out: {self[name]}")

    def write(self, folder: Path, log: Log) -> None:
        """Each traceback into a file of the folder, once."""
        for name, text in self.tracebacks.items():
            file = folder / f"{name}{ERROR}"
            write_atomic(file, text.encode(errors="backslashreplace"))
            log(f"{name}: the traceback is in {file}")
        self.tracebacks = {}


def _interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: compiled code that calls Python turns it into other kinds."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
