"""The processes of a run. One process is a world of size 1 and takes the same way through the loop.

Started by torchrun, every process runs the same script; `join_world` finds its place from the environment. Tensors of a
model travel by NCCL on GPUs and by gloo on CPUs; what the loop agrees on (counts, errors, the wish to stop) is a few
numbers on the CPU, which never wait for a GPU.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused

T = TypeVar("T")
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SHARED = "shared"  # of an error that is raised on all processes
_KINDS: dict[str, type[LeanvitError]] = {e.__name__: e for e in (BadInput, CheckpointError, Refused, LeanvitError)}


@dataclass(frozen=True)
class World:
    """This process among those of the run. Every method that talks to the others must be called by all of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, prints and shows progress."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; whole numbers below 2**53 stay exact."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return self.sums([float(flag)])[0] > 0

    def gathered(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks; plain data."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` gives on the first process, on all of them; its LeanvitError is everyone's. Plain data."""
        made = None
        with self.together():
            made = make() if self.first else None
        return self.gathered(made)[0]  # type: ignore[return-value]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over the processes, in place, on their own device."""
        for tensor in tensors if self.size > 1 else ():
            distributed.all_reduce(tensor.div_(self.size))

    @contextmanager
    def together(self) -> Iterator[None]:
        """For work that may fail on one process only: its LeanvitError is raised on all, so that none waits for it.

        May be nested: what was raised on all inside is not spoken of again.
        """
        if self.size == 1:
            yield
            return
        error: LeanvitError | None = None
        try:
            yield
        except LeanvitError as raised:
            if vars(raised).get(_SHARED):
                raise
            error = raised
        if self.any(error is not None):
            errors = self.gathered(None if error is None else (_kind(error), str(error)))
            kind, text = next(one for one in errors if one is not None)
            error = error or _KINDS[kind](text)
            vars(error)[_SHARED] = True
            raise error


def join_world() -> World:
    """The world that this process belongs to; the first call under torchrun joins the others.

    A process group that the caller has made is used as it is. On GPU machines each process takes the GPU of its
    LOCAL_RANK as the current one.

    Raises:
        BadInput: torchrun's variables are contradictory, or the process group that is there serves GPUs only.
    """
    if not distributed.is_available():
        return World()
    if not distributed.is_initialized():
        rank, size = _from_environment()
        if size == 1:
            return World()
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(_local_rank())
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", rank=rank, world_size=size)
        atexit.register(_leave)
    if "cpu:" not in distributed.get_backend_config():
        raise BadInput(
            f"the process group ({distributed.get_backend()}) cannot send tensors of the CPU: make it with "
            'init_process_group("cpu:gloo,cuda:nccl")'
        )
    return World(distributed.get_rank(), distributed.get_world_size())


def training_device() -> torch.device:
    """Where a process of several trains: its GPU (after `join_world`), or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _from_environment() -> tuple[int, int]:
    """(rank, size) as set by torchrun; (0, 1) outside of it."""
    if not all(name in os.environ for name in _ENVIRONMENT):
        return 0, 1
    env = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE")}
    try:
        rank, size = (int(text) for text in env.values())
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        raise BadInput(f"RANK={env['RANK']!r} of WORLD_SIZE={env['WORLD_SIZE']!r} is not valid: start with torchrun")
    return rank, size


def _local_rank() -> int:
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise BadInput(f"torchrun started more processes than this machine has GPUs ({gpus}): give one each")
    return local


def _kind(error: LeanvitError) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(error, kind))


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
