"""Runs a function on one or two processes of their own, forked in milliseconds by a server that has imported torch."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HANGS_AFTER = 100  # seconds
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["leanvit.training", "everything"])


def run_on(size: int, work: Callable[..., object], *args: Any, timeout: float = HANGS_AFTER + 20) -> list[int | None]:
    """Call `work(*args)` on `size` processes of one gloo group; returns their exit codes, None for one that hangs.

    work: a function of a module. Nothing comes back but what it writes to files.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        return _codes([(_in_group, (rank, size, store, work, args)) for rank in range(size)], timeout)


def run_as_torchrun(
    size: int, work: Callable[..., object], *args: Any, timeout: float = HANGS_AFTER + 20
) -> list[int | None]:
    """The same with no more than torchrun's variables: joining is left to `work`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**said, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return _codes([(_in_environment, (rank, work, args)) for rank in ranks], timeout)


def _codes(calls: list[tuple[Callable[..., None], tuple[Any, ...]]], timeout: float) -> list[int | None]:
    started = [_SERVER.Process(target=place, args=arguments) for place, arguments in calls]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
        process.join()
    return codes


def _in_group(rank: int, size: int, store: str, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    _begin()
    if size > 1:
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        work(*args)
    except Exception:
        traceback.print_exc()
        os._exit(1)  # a group of which one has failed does not end by itself
    if size > 1:
        torch.distributed.destroy_process_group()


def _in_environment(said: dict[str, str], work: Callable[..., object], args: tuple[Any, ...]) -> None:
    _begin()
    os.environ.update(said)
    work(*args)


def _begin() -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)  # where two processes wait for one another
