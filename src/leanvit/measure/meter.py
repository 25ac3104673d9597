"""Energy meters, as the measurement uses them, and the reason given where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from leanvit.errors import LeanvitError


class NotMeasurable(LeanvitError):
    """A counter cannot be read, or does not count; the message says which and why."""


class Meter:
    """A counter of energy. `joules()` never falls; only differences of it mean something."""

    source: str  # what is read and what is in it, for the reader of the figure
    min_seconds: float  # a sample must last this long for the counter's steps to weigh little
    patience: float  # seconds after which a counter that has not moved is taken to stand still

    def joules(self) -> float:
        """Joules counted so far. Raises NotMeasurable."""
        raise NotMeasurable(f"{type(self).__name__} counts nothing")

    def open(self) -> None:
        """Called before the first reading."""

    def close(self) -> None:
        """Called after the last one."""


@dataclass(frozen=True)
class NoMeter:
    """Why energy cannot be measured."""

    reason: str
