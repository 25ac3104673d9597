"""Latency of several candidates against one another: paired, interleaved, with spread.

A machine drifts (clocks, neighbours, heat). So the candidates take turns, A B, B A, A B …: what drifts slowly hits all
of them alike, and a ratio is taken inside each round before any median.
"""

from __future__ import annotations

import gc
import math
import statistics
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from leanvit.errors import BadInput
from leanvit.measure.runners import as_taken, evaluating

Progress = Callable[[int, int], None]  # (rounds done, rounds in all)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    q25: float
    q75: float

    @classmethod
    def of(cls, values: tuple[float, ...] | list[float]) -> Spread:
        q25, median, q75 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q25, q75)


@dataclass(frozen=True)
class Latency:
    """Time of one call on one batch, sampled once a round."""

    samples: tuple[float, ...]  # seconds a call, in order of the rounds
    batch: int  # images a call
    repeats: int  # calls inside one sample
    threads: int  # of torch; another runtime has its own
    device: str  # of the input
    run: str  # samples of the same run were taken in the same rounds

    @property
    def spread(self) -> Spread:
        """Seconds a call."""
        return Spread.of(self.samples)

    @property
    def median_s(self) -> float:
        return self.spread.median

    @property
    def q25_s(self) -> float:
        return self.spread.q25

    @property
    def q75_s(self) -> float:
        return self.spread.q75

    @property
    def images_per_s(self) -> float:
        """Throughput at the median: images a second."""
        return self.batch / self.median_s


def paired_latency(
    candidates: Mapping[str, Callable[[Any], Any]],
    make_input: Callable[[int], Tensor],
    *,
    batch: int,
    rounds: int = 15,
    warmup: int = 3,
    min_seconds: float = 0.05,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time every candidate on the same input, interleaved.

    Args:
        candidates: name -> callable of one tensor. Modules are timed in eval mode; all calls run in inference mode.
        make_input: batch -> the tensor that all candidates get, made once, with `batch` images first; a module in
            half precision gets it in that, converted before anything is timed.
        batch: images a call; kept in each Latency.
        rounds: samples of each candidate; the order of the candidates rotates from round to round.
        warmup: calls of each candidate before anything is timed.
        min_seconds: a sample repeats the call until it lasts about this long, so that the clock's grain and a lone
            interruption weigh little.
        progress: called after each round with (rounds done, rounds in all).

    On CUDA a sample is the time between two events on the current stream, elsewhere the wall clock. Raises BadInput
    for no candidate, fewer than 3 rounds, or an input of another batch.
    """
    _check(candidates, batch=batch, rounds=rounds, warmup=warmup, min_seconds=min_seconds)
    x = make_input(batch)
    if len(x) != batch:
        raise BadInput(f"make_input({batch}) must give {batch} images, it gave {len(x)}")
    sample = _sample_cuda if x.device.type == "cuda" else _sample_wall
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with evaluating(*candidates.values()), torch.inference_mode(), _no_garbage_collection():
        inputs = {name: as_taken(fn, x) for name, fn in candidates.items()}
        repeats = {name: _settle(fn, inputs[name], sample, warmup, min_seconds) for name, fn in candidates.items()}
        for r in range(rounds):
            shift = r % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(sample(candidates[name], inputs[name], repeats[name]))
            if progress:
                progress(r + 1, rounds)
    run = uuid.uuid4().hex
    return {
        name: Latency(tuple(taken), batch, repeats[name], torch.get_num_threads(), str(x.device), run)
        for name, taken in samples.items()
    }


def ratio(a: Latency, b: Latency) -> Spread:
    """How many times as long a takes as b: median and quartiles of the rounds' own ratios.

    `ratio(dense, lean)` is the speed-up of lean. Raises BadInput unless both come from one run of `paired_latency`.
    """
    if a.run != b.run or len(a.samples) != len(b.samples):
        raise BadInput("ratio(a, b) needs two latencies of the same paired_latency run: others share no rounds")
    return Spread.of([x / y for x, y in zip(a.samples, b.samples, strict=True)])


def _settle(fn: Callable[[Any], Any], x: Tensor, sample: Callable[..., float], warmup: int, min_seconds: float) -> int:
    """Warm up, then find how many calls last `min_seconds`."""
    for _ in range(warmup):
        fn(x)
    return max(1, math.ceil(min_seconds / max(sample(fn, x, 1), 1e-9)))


def _sample_wall(fn: Callable[[Any], Any], x: Tensor, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        fn(x)
    return (perf_counter() - start) / repeats


def _sample_cuda(fn: Callable[[Any], Any], x: Tensor, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(x.device):
        start.record()
        for _ in range(repeats):
            fn(x)
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats  # elapsed_time is in milliseconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection of cycles would land in some candidate's sample."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check(candidates: Mapping[str, Any], *, batch: int, rounds: int, warmup: int, min_seconds: float) -> None:
    if not candidates:
        raise BadInput("candidates must name at least one callable, got none")
    for name, candidate in candidates.items():
        if not callable(candidate):
            raise BadInput(f"candidate {name!r} must be callable, got {type(candidate).__name__}")
    for argument, value, least in (("batch", batch, 1), ("rounds", rounds, 3), ("warmup", warmup, 0)):
        if not isinstance(value, int) or value < least:
            raise BadInput(f"{argument} must be an integer of at least {least}, got {value!r}")
    if not min_seconds > 0:
        raise BadInput(f"min_seconds must be positive, got {min_seconds!r}")
