from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from leanvit.training import allocator
from leanvit.training.allocator import keep_freed_memory


def faults_of_making_tensors() -> int:
    """Pages that the system had to give for eight tensors of 64 MiB, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_taken_again_within_the_block_and_given_back_behind_it():
    with keep_freed_memory():
        faults_of_making_tensors()  # the first one's pages are new in any case
        kept = faults_of_making_tensors()
    assert 4 * kept < faults_of_making_tensors()


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_function", lambda name: None)
    with keep_freed_memory():
        assert torch.ones(4).sum() == 4


def test_an_error_within_the_block_passes():
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        raise ZeroDivisionError
