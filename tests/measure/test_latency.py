"""Pairing and arithmetic of latencies, on a clock of our own: no test here depends on the machine's speed."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from leanvit.errors import BadInput
from leanvit.measure import Latency, Spread, paired_latency, ratio
from leanvit.measure import latency as module


class Clock:
    """Seconds that pass only when a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds):
        def call(x):
            self.calls.append(name)
            self.now += seconds() if callable(seconds) else seconds
            return x

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def images(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 3, 4, 4)


def test_candidates_take_turns_and_the_order_rotates(clock: Clock) -> None:
    candidates = {name: clock.candidate(name, 1.0) for name in "abc"}
    paired_latency(candidates, images, batch=2, rounds=4, warmup=2, min_seconds=0.5)
    settling = 3  # two calls to warm up, one to find the number of repeats
    assert "".join(clock.calls) == "a" * settling + "b" * settling + "c" * settling + "abc" + "bca" + "cab" + "abc"


def test_samples_are_seconds_a_call_and_last_long_enough(clock: Clock) -> None:
    times = paired_latency(
        {"quick": clock.candidate("quick", 0.004), "slow": clock.candidate("slow", 0.2)},
        images,
        batch=8,
        rounds=5,
        warmup=1,
        min_seconds=0.05,
    )
    assert times["quick"].repeats == 13 and times["slow"].repeats == 1
    assert times["quick"].samples == pytest.approx([0.004] * 5)
    assert times["slow"].images_per_s == pytest.approx(40.0)
    assert {t.batch for t in times.values()} == {8}
    assert {t.threads for t in times.values()} == {torch.get_num_threads()}
    assert {t.device for t in times.values()} == {"cpu"}


def test_a_drifting_machine_cancels_in_the_ratio(clock: Clock) -> None:
    """The machine slows down tenfold on the way: the medians of separate runs would be far off."""

    def drifting(seconds: float):
        return lambda: seconds * (1 + 0.3 * len(clock.calls))

    candidates = {"dense": clock.candidate("dense", drifting(2.0)), "lean": clock.candidate("lean", drifting(1.0))}
    times = paired_latency(candidates, images, batch=1, rounds=30, warmup=0, min_seconds=1e-6)
    assert times["dense"].samples[-1] > 4 * times["dense"].samples[0]
    assert ratio(times["dense"], times["lean"]).median == pytest.approx(2.0, rel=0.02)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    shared = {"batch": 1, "repeats": 1, "threads": 1, "device": "cpu", "run": "same"}
    a = Latency(samples=(2.0, 6.0, 40.0), **shared)
    b = Latency(samples=(1.0, 2.0, 10.0), **shared)
    assert ratio(a, b) == Spread(median=3.0, q25=2.5, q75=3.5)
    assert (a.median_s, a.q25_s, a.q75_s) == (6.0, 4.0, 23.0)


def test_latencies_of_different_runs_have_no_ratio(clock: Clock) -> None:
    one, other = (paired_latency({"a": clock.candidate("a", 1.0)}, images, batch=1, rounds=3)["a"] for _ in range(2))
    with pytest.raises(BadInput, match="same paired_latency run"):
        ratio(one, other)


def test_all_candidates_get_the_same_input_in_inference_and_eval_mode(clock: Clock) -> None:
    seen: list[tuple[int, bool, bool]] = []

    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock.now += 1
            seen.append((x.data_ptr(), self.training, torch.is_inference_mode_enabled()))
            return x

    probes = {"a": Probe().train(), "b": Probe().eval()}
    paired_latency(probes, images, batch=2, rounds=3, warmup=1)
    assert len({pointer for pointer, _, _ in seen}) == 1
    assert all(not training and inference for _, training, inference in seen)
    assert (probes["a"].training, probes["b"].training) == (True, False)


def test_garbage_collection_waits_and_comes_back_even_after_an_error(clock: Clock) -> None:
    during: list[bool] = []

    def fail(x):
        during.append(gc.isenabled())
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        paired_latency({"a": fail}, images, batch=1, rounds=3)
    assert during == [False] and gc.isenabled()


def test_progress_is_told_after_each_round(clock: Clock) -> None:
    payload: list[tuple[int, int]] = []
    paired_latency(
        {"a": clock.candidate("a", 1.0)},
        images,
        batch=1,
        rounds=3,
        progress=lambda done, of: payload.append((done, of)),
    )
    assert payload == [(1, 3), (2, 3), (3, 3)]


def test_cuda_samples_are_event_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            assert log[-1] == "synchronize"
            return 60.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    seconds = module._sample_cuda(lambda x: log.append("call"), torch.zeros(1), 3)
    assert log == ["record", "call", "call", "call", "record", "synchronize"]
    assert seconds == pytest.approx(0.020)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_work_itself_is_timed() -> None:
    small, large = (torch.randn(n, n, device="cuda") for n in (64, 4096))
    times = paired_latency(
        {"small": lambda x: small @ small, "large": lambda x: large @ large},
        lambda batch: torch.zeros(batch, 1, device="cuda"),
        batch=1,
        rounds=3,
        min_seconds=0.01,
    )
    assert ratio(times["large"], times["small"]).median > 3  # launches alone would be alike


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": {}}, "at least one callable"),
        ({"candidates": {"a": 3}}, "candidate 'a' must be callable"),
        ({"rounds": 2}, "rounds must be an integer of at least 3, got 2"),
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"warmup": -1}, "warmup must be an integer of at least 0"),
        ({"min_seconds": 0.0}, "min_seconds must be positive"),
        ({"make_input": lambda batch: images(3)}, r"make_input\(1\) must give 1 images, it gave 3"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(arguments: dict, message: str) -> None:
    def must_not_run(x):
        raise AssertionError("ran")

    accepted = {"candidates": {"a": must_not_run}, "make_input": images, "batch": 1} | arguments
    candidates, make_input = accepted.pop("candidates"), accepted.pop("make_input")
    with pytest.raises(BadInput, match=message):
        paired_latency(candidates, make_input, **accepted)
