"""Memory that a training step frees stays with the process, for the next step to take.

glibc gives large blocks back to the system when they are freed. A step then has the system clear the same pages anew
that the step before used: up to a tenth of the time on a CPU. Which memory holds a value changes no bit of a result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt
_NEVER = 2**31 - 1
_WHOLE_TENSORS = 2**30  # blocks beyond this many bytes are still the system's
_OLD_LIMIT = 2**25  # the largest threshold that glibc before 2.35 takes, and the largest it chooses itself


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block, freed memory is kept for what comes next; behind it, what is free goes back to the system.

    Does nothing where the C library has no `mallopt` (macOS, Windows, musl).
    """
    mallopt, trim = _function("mallopt"), _function("malloc_trim")
    if mallopt is None or trim is None:
        yield
        return
    if not mallopt(_MMAP_THRESHOLD, _WHOLE_TENSORS):
        mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        mallopt(
            _MMAP_THRESHOLD, _OLD_LIMIT
        )  # glibc does not report the setting; it reaches this value by itself with tensors
        mallopt(_TRIM_THRESHOLD, 2 * _OLD_LIMIT)
        trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """The C library's function of that name, if it has one."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no library without a name
        return None
