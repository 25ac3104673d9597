"""Where a measurement was made: machine, CPU features, threads and versions. A figure without it is not comparable."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leanvit import __version__

PACKAGES = ("leanvit", "torch", "torchvision", "timm", "numpy", "openvino", "nncf", "onnx", "onnxruntime")
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
)


def environment() -> dict[str, Any]:
    """A JSON-ready description of this process's machine.

    `cpu_flags` are those of CPU_FLAGS that the CPU has (None where the system does not tell), `cores_usable` those that
    this process may use, `threads` torch's (None before torch is loaded), `omp_num_threads` and `omp_wait_policy` what
    the environment tells OpenMP (None: nothing; waiting threads that spin cost their neighbours). `versions` maps a
    package to its version, read without importing it (None: not installed); `cuda` is None, or name, capability,
    memory_bytes and version.
    """
    cpu = _cpu_info()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": _flags(cpu),
        "cores_logical": os.cpu_count(),
        "cores_usable": _usable_cores(),
        "memory_bytes": memory_bytes(),
        "threads": _threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": _cuda(),
    }


def _cpu_info() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    block = path.read_text().split("\n\n", 1)[0] if path.exists() else ""
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flags(cpu: dict[str, str]) -> list[str] | None:
    present = cpu.get("flags", cpu.get("Features"))  # x86, Arm
    return None if present is None else [flag for flag in CPU_FLAGS if flag in present.split()]


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_bytes() -> int | None:
    """Physical memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # leanvit itself may run from its source, without metadata
        return __version__ if package == "leanvit" else None


def _threads() -> int | None:
    torch = sys.modules.get("torch")  # a process that has not loaded torch has measured nothing with it
    return torch.get_num_threads() if torch else None


def _cuda() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "version": torch.version.cuda,
    }
