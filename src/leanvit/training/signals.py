"""Ctrl-C and SIGTERM, heard between steps: a run stops where its state is whole, never in the middle of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from leanvit.training.world import World

HEARD = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):
    """Raised by `StopSignals.check` after a signal."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped on request; the message names the saved state and the command that resumes."""

    def __init__(self, text: str, *, step: int) -> None:
        super().__init__(text)
        self.step = step  # optimiser steps taken


class StopSignals:
    """Context that turns the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    Handlers belong to the main thread; in any other the context does nothing and signals do what they did before.
    """

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in HEARD}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def was_heard(self) -> bool:
        """Whether this process heard a signal."""
        return self.heard is not None

    def check(self, world: World) -> None:
        """Raise `StopRequested` on all processes if one of them heard a signal."""
        if world.any(self.was_heard()):
            raise StopRequested

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard is not None:
            raise KeyboardInterrupt
        self.heard = signal.Signals(number)
