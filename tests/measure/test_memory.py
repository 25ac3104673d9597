from __future__ import annotations

import pytest
import torch
from torch import nn

from leanvit.errors import BadInput
from leanvit.measure import peak_memory

MB = 1_000_000  # float32: a quarter of a million elements


def test_peak_is_of_what_lives_at_the_same_time() -> None:
    def work() -> None:
        first = torch.empty(MB // 4)
        second = torch.empty(2 * MB // 4)
        del first
        third = torch.empty(MB // 4)
        del second, third

    memory = peak_memory(work)
    assert memory.peak_bytes == 3 * MB
    assert memory.device == "cpu" and "cpu allocator" in memory.what


def test_memory_from_before_the_call_does_not_count() -> None:
    weights = torch.ones(5 * MB // 4)
    assert peak_memory(lambda: weights.relu_()).peak_bytes == 0
    assert peak_memory(lambda: weights.neg()).peak_bytes == 5 * MB


def test_the_profiler_writes_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    peak_memory(lambda: torch.ones(10))
    assert capfd.readouterr() == ("", "")


def test_memory_inside_one_operator_counts() -> None:
    """The fast path of an encoder layer is a single operator; its inner activations are far above its output."""
    layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=1024, batch_first=True).eval()
    x = torch.randn(1, 500, 64)
    with torch.inference_mode():
        layer(x)
        assert peak_memory(lambda: layer(x)).peak_bytes > 4 * x.nbytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_peak() -> None:
    def work() -> None:
        first = torch.empty(2**20, device="cuda")
        del first
        torch.empty(2**18, device="cuda")

    assert peak_memory(work, device="cuda").peak_bytes == 4 * 2**20


def test_other_devices_are_refused() -> None:
    with pytest.raises(BadInput, match="device must be cpu or cuda, got 'meta'"):
        peak_memory(lambda: None, device="meta")
