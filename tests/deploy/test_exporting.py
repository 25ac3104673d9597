"""The verb `export`: its arguments, and its gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_models import PREPROCESS, small
from leanvit.deploy import Options, export, runtimes
from leanvit.deploy.tracing import compare_logits
from leanvit.errors import BadInput, MissingExtra, Refused


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"to": "openvin"}, "openvino"),
        ({"input_type": "flaot"}, "unknown input type 'flaot': did you mean 'float'"),
        ({"batch": 0}, "batch is 0"),
        ({"labels": "cat"}, "labels is 'cat'"),
        ({"labels": ["a", "b"]}, "labels has 2 names; the model has 7"),
        ({"preprocess": {"mean": 0}}, "preprocess is a dict"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        export(small(), tmp_path / "a", **{"preprocess": PREPROCESS, **arguments})
    assert not list(tmp_path.iterdir())


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bfloat16"):
        export(small().to(torch.bfloat16), tmp_path / "a", preprocess=PREPROCESS)


def test_a_missing_package_is_named_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingExtra, match=r"onnxruntime is not installed: pip install 'leanvit\[onnx\]'"):
        export(small(), tmp_path / "a", to="onnx", preprocess=PREPROCESS)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :5] if x.mean() >= 0 else -x.flatten(1)[:, :5]

    with pytest.raises(Refused, match=r"torch\.export cannot follow"):
        export(Branching(), tmp_path / "a", preprocess=PREPROCESS)
    assert not list(tmp_path.iterdir())


def test_mode_is_left_as_found(tmp_path: Path) -> None:
    model = small().train()
    model.blocks[0].eval()
    export(model, tmp_path / "a", preprocess=PREPROCESS, batch=1)
    assert model.training and not model.blocks[0].training and model.blocks[1].training


def test_the_gate_at_f32() -> None:
    want = np.array([[1.0, 2.0, -4.0], [0.5, 0.5001, 0.0]], dtype=np.float32)
    assert compare_logits(want, want + 1e-5, precision="f32")["same_answers"] == 2
    with pytest.raises(Refused, match="differs from PyTorch"):
        compare_logits(want, want + np.float32(1e-3), precision="f32")
    swapped = want.copy()
    swapped[1] = [0.5001, 0.5, 0.0]  # within the tolerance, another answer
    with pytest.raises(Refused, match="1 of 2 answers"):
        compare_logits(want, swapped, precision="f32")


def test_the_gate_at_int8_lets_rounding_pass_and_nothing_broken() -> None:
    want = np.random.default_rng(0).normal(size=(4, 7))
    assert compare_logits(want, want + 0.01, precision="int8")["drift"] < 0.02
    other_tokens = want.copy()
    other_tokens[0] *= 1.5  # where a last bit chose other tokens, an image differs, the others do not
    assert compare_logits(want, other_tokens, precision="int8")["drift"] < 0.02
    with pytest.raises(Refused, match="int8 model differs"):
        compare_logits(want, want[::-1], precision="int8")
    with pytest.raises(Refused, match="gives"):
        compare_logits(want, want[:2], precision="int8")


@pytest.mark.parametrize("bad", [{"precision": "f16"}, {"hint": "fast"}, {"threads": 0}])
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(bad))):
        Options(**bad)
