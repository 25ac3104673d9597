"""One process at a time writes into a folder: the second gets an error that names the first.

The lock is the system's (`flock`), on a hidden file in the folder that names its holder: it ends with its process,
however that ends, so it is never stale. The file is removed at the end; after a kill it marks the folder as leanvit's.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from leanvit.errors import BadInput

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".leanvit.lock"
_HALF = re.compile(r"\..+-[a-z0-9_]{8}\.part")  # a file of `files.write_atomic` before it has its name
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def locked(folder: Path, *, command: str, log: Callable[[str], None], beside: bool = False) -> Iterator[None]:
    """Inside, no other process writes into the folder, which is made if it is not there (and goes if it stays empty).

    Files that a killed holder left half written go.

    Args:
        command: what was typed, for whoever comes second.
        beside: keep the file beside the folder: what is inside is replaced as a whole.

    Raises:
        BadInput: another process holds it (which, since when, doing what).
    """
    path = _lock_of(folder, beside=beside)
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]  # innermost first
    file = None
    try:
        file = _acquired(path, folder, command)
        for half in [] if beside else [one for one in folder.iterdir() if _HALF.fullmatch(one.name)]:
            half.unlink(missing_ok=True)
    except OSError as error:
        log(f"--out {folder} is not locked ({error.strerror or error}): see that nothing else writes into it")
    if file is None:
        yield
        return
    try:
        yield
    finally:
        with file:  # removed before it is let go: nobody can have locked a file that is about to go
            path.unlink(missing_ok=True)
        for empty in made:
            with suppress(OSError):  # something was written
                empty.rmdir()


def refuse_if_held(folder: Path, *, beside: bool = False) -> None:
    """Raise `BadInput` if another process writes into the folder. Nothing is made."""
    path = _lock_of(folder, beside=beside)
    if fcntl is None:
        return
    with suppress(OSError), path.open() as file:  # there is none, as a rule
        if not _taken(file):
            raise BadInput(_in_use(folder, file))


def _lock_of(folder: Path, *, beside: bool) -> Path:
    return folder.parent / f".{folder.name}{LOCK}" if beside else folder / LOCK


def _acquired(path: Path, folder: Path, command: str) -> TextIO | None:
    """The open, locked file; None where the system has no locks. Raises `BadInput` or `OSError`."""
    if fcntl is None:
        raise OSError("this system has no file locks")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+")
        try:
            if not _taken(file):
                raise BadInput(_in_use(folder, file))
            if _is_at(file, path):  # else its holder removed it just before it was locked
                _sign(file, command)
                return file
        except OSError:  # no locks here: nobody can hold it
            path.unlink(missing_ok=True)
            file.close()
            raise
        except BadInput:
            file.close()
            raise
        file.close()


def _taken(file: TextIO) -> bool:
    """Lock an open file; False if another process has it. Raises `OSError` where that cannot be done."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: TextIO, command: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    file.truncate(0)
    file.write(json.dumps(holder))
    file.flush()


def _in_use(folder: Path, file: TextIO) -> str:
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(0)
        payload = json.loads(file.read(65536))
        doing = f" ({payload['command']})" if payload["command"] else ""
        who = f"process {int(payload['pid'])} on {payload['host']} since {payload['since']}{doing}"
    return f"--out {folder} is in use by {who}: wait until it ends, or give another path"
