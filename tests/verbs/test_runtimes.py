"""The runtimes of `measure`: what is asked for by name must be there; `all_runtimes` leaves out what is not, aloud."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from leanvit.deploy import export
from leanvit.deploy import runtimes as deployed
from leanvit.errors import BadInput, MissingExtra, Refused
from leanvit.verbs import runtimes
from leanvit.verbs.measuring import measure
from leanvit.verbs.models import load_model
from leanvit.verbs.runtimes import Compiled, Opener

ARGS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "depth": 1, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"
find_spec = deployed.find_spec


def without(*absent: str) -> Any:
    return lambda name: None if name in absent else find_spec(name)


def fails(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C++ compiler")


def test_names_are_checked_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="unknown runtime 'opnvino': did you mean 'openvino"):
        measure("no such model", "no such data", runtimes=["torch", "opnvino"])
    monkeypatch.setattr(deployed, "find_spec", without("onnxruntime"))
    with pytest.raises(MissingExtra, match=r"pip install 'leanvit\[onnx\]'"):
        measure("no such model", "no such data", runtimes=["onnx"])
    with pytest.raises(BadInput, match="not both"):
        measure("no such model", "no such data", runtimes=["onnx"], all_runtimes=True)


@pytest.mark.e2e
def test_all_runtimes_are_one_table_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "find_spec", without("onnxruntime"))
    monkeypatch.setattr("leanvit.deploy.openvino.bf16_runs", lambda: False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    said: list[str] = []
    measured = measure(
        NAME, "digits", model_args=ARGS, all_runtimes=True, limit=20, rounds=3, latency_batch=2, log=said.append
    )
    rows = {row.name: row for row in measured.comparison.rows}
    assert list(rows) == [NAME, f"{NAME} (torch.export)", f"{NAME} (openvino)"]
    assert all(row.latency_ms is not None for row in rows.values()), "one interleaved comparison"
    assert {row.agreement_percent.value for row in list(rows.values())[1:]} == {100.0}  # type: ignore[union-attr]
    assert set(measured.left_out) == {"onnx", "openvino-bf16", f"{NAME} (torch.compile)"}
    assert "pip install 'leanvit[onnx]'" in measured.left_out["onnx"]
    assert "no C++ compiler" in measured.left_out[f"{NAME} (torch.compile)"]
    assert measured.to_json()["left_out"] == measured.left_out
    assert sum("is left out" in line for line in said) == 3


def test_a_compiled_model_gives_the_models_answer_at_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_model(NAME, model_args=ARGS)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = Compiled(one, 3)
    assert (compiled.runtime, compiled.precision, compiled.batch) == ("torch.compile", "f32", 3)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), one.model(x))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    torch._dynamo.reset()
    with pytest.raises(Refused, match=r"torch\.compile: .*"):
        Compiled(one, 3)


def test_a_run_is_exported_once_for_two_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = load_model(NAME, model_args=ARGS), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["to"])
        return export(*args, **kwargs)

    monkeypatch.setattr(runtimes, "export", counted)
    with Opener(2, lambda line: None) as opener:
        plain, folder = opener.open(one, "openvino")
        hinted, _ = opener.open(one, "openvino-bf16")
        assert (plain.precision, hinted.precision) == ("f32", "bf16") and folder is not None and folder.exists()
    assert calls == ["openvino"] and not folder.exists()
