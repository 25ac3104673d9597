"""Energy of several candidates against one another, from the machine's own counters, or the reason why not.

A counter sees everything that its part of the machine does, so what the machine takes while it waits is measured in the
same rounds and reported beside the result, never subtracted from it. Nothing here is an estimate: where there is no
counter there is no figure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from leanvit.errors import BadInput
from leanvit.measure.latency import Spread
from leanvit.measure.meter import Meter, NoMeter, NotMeasurable
from leanvit.measure.nvml import find_nvml
from leanvit.measure.rapl import find_rapl
from leanvit.measure.runners import as_taken, evaluating

ROUNDS = 5


@dataclass(frozen=True)
class Energy:
    """What one run of `paired_energy` found; every Spread is over its rounds."""

    joules_per_image: dict[str, Spread]
    idle_watts: Spread  # while the machine was idle, in the same rounds; not subtracted
    seconds: float  # that a sample lasted at least
    source: str


def find_meter(device: torch.device | str) -> Meter | NoMeter:
    """What counts the energy of a device: RAPL for the CPU, NVML for CUDA."""
    device = torch.device(device)
    if device.type == "cuda":
        return find_nvml(device)
    if device.type == "cpu":
        return find_rapl()
    return NoMeter(f"no counter is known for device {device.type!r}")


def paired_energy(
    candidates: Mapping[str, Callable[[Any], Any]],
    x: Tensor,
    *,
    meter: Meter,
    rounds: int = ROUNDS,
    min_seconds: float = 0.0,
) -> Energy:
    """Joules an image of every candidate on the same input, interleaved (A B, B A, ...), idle between the rounds.

    Args:
        candidates: name -> callable of one tensor; modules run in eval mode, all calls in inference mode.
        x: the input, images first: (B, ...).
        rounds: samples of each candidate.
        min_seconds: least length of a sample; never below the meter's own.

    A sample starts when the counter has just moved, so that only its last step is cut. Raises NotMeasurable if the
    counter stands still or cannot be read any more, BadInput for no candidate or fewer than 3 rounds.
    """
    if not candidates:
        raise BadInput("candidates must name at least one callable, got none")
    if not isinstance(rounds, int) or rounds < 3:
        raise BadInput(f"rounds must be an integer of at least 3, got {rounds!r}")
    seconds = max(min_seconds, meter.min_seconds)
    names = list(candidates)
    joules: dict[str, list[float]] = {name: [] for name in names}
    idle: list[float] = []
    with evaluating(*candidates.values()), torch.inference_mode(), _open(meter):
        inputs = {name: as_taken(fn, x) for name, fn in candidates.items()}
        repeats = {name: _repeats(fn, inputs[name], seconds) for name, fn in candidates.items()}
        for r in range(rounds):
            taken, lasted = _sample(meter, lambda: time.sleep(seconds))
            idle.append(taken / lasted)
            shift = r % len(names)
            for name in names[shift:] + names[:shift]:
                taken, _ = _sample(meter, lambda name=name: _run(candidates[name], inputs[name], repeats[name]))  # type: ignore[misc]
                joules[name].append(taken / (repeats[name] * len(x)))
    return Energy({name: Spread.of(taken) for name, taken in joules.items()}, Spread.of(idle), seconds, meter.source)


def _sample(meter: Meter, work: Callable[[], None]) -> tuple[float, float]:
    """(joules, seconds) of some work."""
    before, start = _on_a_step(meter), perf_counter()
    work()
    taken, lasted = meter.joules() - before, perf_counter() - start
    if taken <= 0:
        raise NotMeasurable(f"the counter did not move during {lasted:.2g} s of work ({meter.source})")
    return taken, lasted


def _on_a_step(meter: Meter) -> float:
    """Wait until the counter moves; its reading then."""
    first, deadline = meter.joules(), perf_counter() + meter.patience
    while (now := meter.joules()) == first:
        if perf_counter() > deadline:
            raise NotMeasurable(f"the counter did not move for {meter.patience} s ({meter.source})")
        time.sleep(1e-4)
    return now


def _repeats(fn: Callable[[Any], Any], x: Tensor, seconds: float) -> int:
    """How many calls last `seconds`; warms up on the way. CUDA runs ahead, so several calls are timed together."""
    _run(fn, x, 3)
    calls = 1
    while (lasted := _timed(fn, x, calls)) < seconds / 4:
        calls *= 2
    return max(1, math.ceil(calls * seconds / lasted))


def _timed(fn: Callable[[Any], Any], x: Tensor, calls: int) -> float:
    start = perf_counter()
    _run(fn, x, calls)
    return perf_counter() - start


def _run(fn: Callable[[Any], Any], x: Tensor, calls: int) -> None:
    for _ in range(calls):
        fn(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


@contextmanager
def _open(meter: Meter) -> Iterator[None]:
    meter.open()
    try:
        yield
    finally:
        meter.close()
