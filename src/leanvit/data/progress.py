"""How far long work of opening data is: shown by whoever opens it (`shown_by`), else by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

Meter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far counted work is: `with meter("choosing thresholds", 40) as done: done(1); done(2)`."""


def _unseen(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Progress:
    """Where lines and counts go."""

    log: Callable[[str], object] = lambda line: None
    meter: Meter = _unseen


_CURRENT: ContextVar[Progress | None] = ContextVar("leanvit.data.progress", default=None)


def current() -> Progress:
    """Where progress goes at present."""
    return _CURRENT.get() or Progress()


@contextmanager
def shown_by(progress: Progress) -> Iterator[None]:
    """Inside, progress of opening data goes there."""
    token = _CURRENT.set(progress)
    try:
        yield
    finally:
        _CURRENT.reset(token)
