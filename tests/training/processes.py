"""Runs a function on one or two processes of their own: a server that has imported torch forks them, in milliseconds."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["leanvit.training", "everything"])


def run_on(size: int, work: Callable[..., object], *args: Any, timeout: float = 120) -> list[int | None]:
    """Call `work(*args)` on `size` processes of one gloo group; returns their exit codes, None for one that hangs.

    work: a function of a module. Nothing comes back but what it writes to files.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        started = [_SERVER.Process(target=_place, args=(rank, size, store, work, args)) for rank in range(size)]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
    return codes


def _place(rank: int, size: int, store: str, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    work(*args)
    if size > 1:
        torch.distributed.destroy_process_group()
