"""NVML: the energy of an NVIDIA board, from its own counter, or where it has none from its power, integrated."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any

import torch

from leanvit.measure.meter import Meter, NoMeter, NotMeasurable

INTERVAL = 0.02  # seconds between two samples of power
# Boards renew both readings every 20 to 100 ms: the last step is at most a twentieth of a sample of this length.
MIN_SECONDS = 2.0


class BoardCounter(Meter):
    """The board's total energy counter (Volta and newer), in joules."""

    min_seconds = MIN_SECONDS
    patience = 2.0

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.source = f"NVML total energy counter of {_name(nvml, handle)}: the whole board, the host not included"
        self.joules()

    def joules(self) -> float:
        return _asked(self._nvml, self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle) / 1e3


class SampledPower(Meter):
    """The integral of the board's power (trapezoids), in joules. A thread samples from `open` to `close`."""

    min_seconds = MIN_SECONDS
    patience = 2.0

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], float] = perf_counter) -> None:
        self._nvml, self._handle, self._clock = nvml, handle, clock
        self.source = (
            f"NVML power of {_name(nvml, handle)}, sampled every {1000 * INTERVAL:.0f} ms and integrated "
            "(it has no energy counter): the whole board, the host not included"
        )
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._total, self._last = 0.0, (clock(), self._watts())

    def open(self) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def joules(self) -> float:
        with self._lock:
            now, watts = self._clock(), self._watts()
            before, had = self._last
            self._total += (now - before) * (watts + had) / 2
            self._last = (now, watts)
            return self._total

    def _sample(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.joules()
            except NotMeasurable:
                return  # the next reading of the measuring thread says it

    def _watts(self) -> float:
        return _asked(self._nvml, self._nvml.nvmlDeviceGetPowerUsage, self._handle) / 1e3


def find_nvml(device: torch.device) -> Meter | NoMeter:
    """The meter of a CUDA device, or why there is none."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return NoMeter('NVML is read through nvidia-ml-py: pip install "leanvit[gpu]"')
    # By UUID: NVML's numbers do not follow CUDA_VISIBLE_DEVICES.
    return meter_of(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def meter_of(nvml: Any, uuid: str) -> Meter | NoMeter:
    """The meter of the board with this UUID: its counter, else its sampled power, else why not."""
    try:
        _asked(nvml, nvml.nvmlInit)
        handle = _asked(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
    except NotMeasurable as error:
        return NoMeter(str(error))
    reasons = []
    for kind in (BoardCounter, SampledPower):
        try:
            return kind(nvml, handle)
        except NotMeasurable as error:
            reasons.append(str(error))
    return NoMeter("; ".join(reasons))


def _asked(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        raise NotMeasurable(f"{function.__name__}: {error}") from None


def _name(nvml: Any, handle: Any) -> str:
    name = _asked(nvml, nvml.nvmlDeviceGetName, handle)
    return name.decode() if isinstance(name, bytes) else name
