"""Ctrl-C and SIGTERM end a verb that can be resumed with the command that goes on with it."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from leanvit.training import Interrupted


@contextmanager
def explains_how_to_resume(folder: Path, command: str, *, verb: str, about: str | Path, kept: str) -> Iterator[None]:
    """Inside, both signals become `Interrupted`, whose message says what is kept and how to resume.

    Args:
        folder: `--out` of the verb. about: the file in it without which there is nothing to go on with: then the
            interrupt goes through as it is.
        command: what was typed; "" where the verb was called from Python.
        kept: what is where, in words.
    """

    def terminated(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not (folder / about).is_file():
            raise
        out = shlex.join(["--out", str(folder)])
        words = command if " --resume" in command else f"{command or f'leanvit {verb} ...'} --resume"
        words = words if str(folder) in shlex.split(command) else f"{words} {out}"
        raise Interrupted(f"stopped; {kept}. To go on: {words}", step=getattr(stopped, "step", 0)) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
