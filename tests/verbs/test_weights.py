"""Weights from files of every kind: what is taken, what is said, what is refused. Nothing in a file is run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leanvit.errors import CheckpointError
from leanvit.verbs.weights import load_weights, read_weights


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def saved(path: Path, held: Any) -> Path:
    torch.save(held, path)
    return path


def test_an_average_is_taken_before_the_weights_and_that_is_said(tmp_path: Path) -> None:
    average, model, said = linear(1), linear(2), []
    held = {
        "state_dict": linear(3).state_dict(),
        "state_dict_ema": {f"module.{key}": value for key, value in average.state_dict().items()},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 7,
    }
    load_weights(model, saved(tmp_path / "best.pth.tar", held), log=said.append)
    assert torch.equal(model.weight, average.weight) and torch.equal(model.bias, average.bias)
    assert said == ["best.pth.tar: 2 tensors of its entry 'state_dict_ema'; state_dict is left"]


def test_a_bare_state_dict_is_taken_without_a_word(tmp_path: Path) -> None:
    model, said = linear(2), []
    load_weights(model, saved(tmp_path / "bare.pt", linear(1).state_dict()), log=said.append)
    assert torch.equal(model.weight, linear(1).weight) and not said


class Harm:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"state_dict": {"weight": Harm()}}, "is damaged, or holds objects"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"weight": torch.zeros(2, 3)}, "bias is missing, not"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "weight is "),
    ],
)
def test_another_file_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch, held: Any, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = linear()
    with pytest.raises(CheckpointError, match=why):
        load_weights(model, saved(tmp_path / "file.pth", held))
    assert torch.equal(model.weight, linear().weight) and not (tmp_path / "harmed").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", linear().state_dict())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged: its archive is cut short"):
        read_weights(path)
