"""Peak memory of one call, as torch's own allocator sees it.

On the CPU the allocator's events are replayed from the profiler, so what a kernel allocates for itself and frees
again inside one operator is in the peak; on CUDA the allocator keeps the high-water mark itself. Neither sees memory
that a library or another runtime takes by itself (oneDNN's or cuBLAS's scratch, OpenVINO, ONNX Runtime).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from leanvit.errors import BadInput

MEANING = "peak of the bytes that the call itself allocated through torch's {device} allocator; weights excluded"


@dataclass(frozen=True)
class Memory:
    """`peak_bytes`, and `what` that is in words."""

    peak_bytes: int
    device: str
    what: str


def peak_memory(fn: Callable[[], Any], *, device: str | torch.device = "cpu") -> Memory:
    """Run `fn` once and measure the peak of the memory that it allocates on `device` (`cpu` or `cuda[:n]`).

    Run it once before: first calls allocate caches and workspaces that stay. On CUDA, older memory that the call gives
    back makes room and lowers the peak; the CPU's allocator does not report it. Raises BadInput for another device.
    """
    device = torch.device(device)
    meters = {"cpu": _peak_cpu, "cuda": _peak_cuda}
    if device.type not in meters:
        raise BadInput(f"device must be cpu or cuda, got {device.type!r}")
    return Memory(meters[device.type](fn, device), str(device), MEANING.format(device=device.type))


def _peak_cpu(fn: Callable[[], Any], device: torch.device) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes its own log lines to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    on_cpu = [e for e in events if e.device_type() == torch.autograd.DeviceType.CPU]
    return _peak(e.nbytes() for e in sorted(on_cpu, key=lambda e: e.start_ns()))


def _peak(changes: Iterable[int]) -> int:
    return max(accumulate(changes, initial=0))


def _peak_cuda(fn: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
