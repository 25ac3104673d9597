"""How the program ends: the text of an error, the exit code, and a quick exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, metadata
from types import FrameType

from leanvit.cli.output import plain, process
from leanvit.errors import BadInput, LeanvitError, Refused

_PATIENCE = 8  # seconds that other threads have to end after a Ctrl-C
_pressed = threading.Event()


def note_interrupts() -> None:
    """Remember a Ctrl-C: compiled code that calls Python turns its exception into errors of other kinds."""

    def pressed(number: int, frame: FrameType | None) -> None:
        _pressed.set()
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, pressed)


def explain(error: BaseException) -> int:
    """Say what went wrong on stderr, in one line where there is one; returns the exit code."""
    interrupt = _interrupt_behind(error)
    if interrupt is not None or _pressed.is_set():
        _log(str(interrupt or "") or "interrupted")
        return 130
    if isinstance(error, BrokenPipeError):  # whoever read the output has gone: nothing to print
        _drop_stdout()
        return 1
    if isinstance(error, LeanvitError | OSError):
        _log(str(error) or type(error).__name__)
        return 2 if isinstance(error, BadInput | Refused) else 1
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= 300 else f"{text[:297]}..."
    print(
        f"leanvit: unexpected error: {plain(text)}; run again with --debug; report at {_project_page()}",
        file=sys.stderr,
    )
    return 1


def _log(text: str) -> None:
    """One line; of several processes of torchrun, which share an error that is foreseen, the first one says it."""
    if process()[0] == 0:
        print(plain(f"leanvit: {text}"), file=sys.stderr)


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C that an error was raised from: one that hits the import of a compiled module becomes ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error


def leave(code: object) -> None:
    """End the process with the code of a `SystemExit`: exit handlers run and output is written, then it stops at once.

    Python would first take every module apart: with PyTorch loaded, that is a second in which nothing happens.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    if code == 130:
        threading.Thread(target=_give_up, args=(code,), daemon=True).start()
    threading._shutdown()  # type: ignore[attr-defined]  # as Python ends: pools are shut down, other threads joined
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 1
    except OSError as error:  # stdout is a full disk
        print(f"leanvit: cannot write the output: {error.strerror}", file=sys.stderr)
        code = code or 1
    sys.stderr.flush()
    os._exit(code or 0)


def _give_up(code: int) -> None:
    """End the process in any case: an interrupt inside an import can leave a lock that nobody lets go."""
    time.sleep(_PATIENCE)
    os._exit(code)


def _drop_stdout() -> None:
    """What is still in the buffer goes nowhere, so that the flush at the end does not fail again."""
    with contextlib.suppress(OSError, ValueError):  # not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _project_page() -> str:
    """The page that the installed package names, else where to look for it."""
    try:
        urls = metadata("leanvit").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    return next((url.split(",", 1)[-1].strip() for url in urls), "the project page of leanvit")
