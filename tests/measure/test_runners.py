from __future__ import annotations

import pytest
import torch
from torch import nn

from leanvit.measure.runners import evaluating, fixed_batch_of, precision_of, run_in_torch, runtime_of


class Stated:
    runtime, precision, batch = "openvino", "int8", 8

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_a_runner_says_of_itself_counts() -> None:
    assert (runtime_of(Stated()), precision_of(Stated()), fixed_batch_of(Stated())) == ("openvino", "int8", 8)
    assert not run_in_torch(Stated())


def test_what_is_read_off_a_module() -> None:
    model = nn.Linear(2, 2)
    assert (runtime_of(model), precision_of(model), fixed_batch_of(model)) == ("torch", "f32", None)
    assert run_in_torch(model)
    assert precision_of(nn.Sequential(model, nn.Linear(2, 2).bfloat16())) == "bf16+f32"
    assert runtime_of(torch.compile(model)) == "torch.compile"


def test_what_is_not_known_is_none() -> None:
    assert (runtime_of(len), precision_of(len), fixed_batch_of(len)) == (None, None, None)
    assert precision_of(nn.Identity()) is None


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()
    with pytest.raises(KeyError), evaluating(model, len):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == [True, False, True]
