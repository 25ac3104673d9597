"""OpenVINO artefacts: equal to PyTorch at f32, really int8 where they say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from deploy_models import PREPROCESS, small, small_int8
from leanvit.deploy import Artefact, Options, export, load_artefact
from leanvit.deploy.openvino import MODEL, compile_model, convert, core
from leanvit.deploy.openvino_graph import (
    executed,
    join_transposes,
    product_precisions,
    read_before_transpose,
    slice_before_heads,
    split_projections,
)
from leanvit.deploy.tracing import trace
from leanvit.quantize.int8 import Int8
from leanvit.tokens.evit import EViT
from matrix import every


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_equals_pytorch(float_artefact: Artefact, count: int) -> None:
    with torch.no_grad():
        want = small()(images(count))
    torch.testing.assert_close(
        load_artefact(float_artefact.path)(images(count)), want, rtol=0, atol=1e-4 * want.abs().max()
    )


def test_fixed_batch_takes_any_number_in_pieces(tmp_path: Path) -> None:
    artefact = export(small(), tmp_path / "a", preprocess=PREPROCESS, batch=4)
    runner = load_artefact(artefact.path)
    assert runner.batch == 4
    with torch.no_grad():
        want = small()(images(6))
    torch.testing.assert_close(runner(images(6)), want, rtol=0, atol=1e-4 * want.abs().max())


@pytest.mark.parametrize(
    "kwargs",
    every(
        3,
        [
            {"init_values": 0.1, "qk_norm": True, "reg_tokens": 4},
            {"global_pool": "avg", "class_token": False, "num_heads": 4},
            {"qkv_bias": False},
        ],
    ),
)
def test_variants_pass_the_gate(tmp_path: Path, kwargs: dict[str, object]) -> None:
    artefact = export(small(**kwargs), tmp_path / "a", preprocess=PREPROCESS)
    assert artefact.check["max_error"] < 1e-4


def test_every_product_of_the_int8_model_runs_int8(int8_artefact: Artefact) -> None:
    model = core().read_model(int8_artefact.path / MODEL)
    compiled = compile_model(model, Options())
    counts = product_precisions(compiled)
    # patch convolution, 2 blocks of q, k, v, proj, fc1, fc2, and the classifier
    assert sum(counts.values()) == 14
    assert set(counts) <= {"u8", "i8"}
    attention = [row for row in executed(compiled) if "Softmax" in row["covers"] or row["kind"] == "Softmax"]
    assert attention


def test_products_of_attention_run_int8_in_one_kernel() -> None:
    """With a head of 64 and enough tokens, as in real models, the plugin fuses the whole attention."""
    model = small(img_size=32, patch_size=4, embed_dim=128)
    method = Int8(images=4)

    class Noise:
        def images(self, count: int):  # type: ignore[no-untyped-def]
            yield images(count)

    structure = method.learn(model, Noise())  # type: ignore[arg-type]
    method.shape(model, structure)
    method.fold(model, structure, {})
    compiled = compile_model(convert(trace(model, (3, 32, 32), 2)), Options())
    fused = [row for row in executed(compiled) if row["kind"] == "Subgraph" and "matmul" in row["covers"].lower()]
    fused += [row for row in executed(compiled) if row["kind"] == "Subgraph" and "oftmax" in row["covers"]]
    assert fused and {row["precision"] for row in fused} <= {"u8", "i8"}


def test_a_float_model_runs_f32_unless_told(float_artefact: Artefact) -> None:
    compiled = compile_model(core().read_model(float_artefact.path / MODEL), Options())
    assert set(product_precisions(compiled)) == {"f32"}


def test_weights_are_stored_as_int8(int8_artefact: Artefact, float_artefact: Artefact) -> None:
    weights = (int8_artefact.path / "model.bin").stat().st_size
    assert 3 < (float_artefact.path / "model.bin").stat().st_size / weights < 4


def test_int8_is_close_to_its_pytorch_form(int8_artefact: Artefact) -> None:
    with torch.no_grad():
        want = small_int8()(images(64))
    got = load_artefact(int8_artefact.path)(images(64))
    assert (got - want).norm() / want.norm() < 0.02
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.95


def test_projections_are_split_and_nothing_else() -> None:
    program = trace(small(), (3, 32, 32), 2)
    whole = ov.convert_model(program)
    x = images(2).numpy()
    want = ov.compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: x})[0]
    products = sum(op.get_type_name() == "MatMul" for op in whole.get_ops())
    assert split_projections(whole) == 2
    assert sum(op.get_type_name() == "MatMul" for op in whole.get_ops()) == products + 2 * 2
    assert split_projections(whole) == 0
    got = ov.compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: x})[0]
    assert abs(got - want).max() < 1e-5


def test_options_are_recorded(float_artefact: Artefact) -> None:
    runner = load_artefact(float_artefact.path, options=Options(precision="bf16", threads=1))
    assert (runner.runtime, runner.precision, runner.options.threads) == ("openvino", "bf16", 1)


@pytest.mark.e2e
def test_int8_takes_any_batch_too(tmp_path: Path) -> None:
    artefact = export(small_int8(), tmp_path / "a", preprocess=PREPROCESS)
    runner = load_artefact(artefact.path)
    with torch.no_grad():
        want = small_int8()(images(5))
    assert (runner(images(5)) - want).norm() / want.norm() < 0.02
    compiled = compile_model(core().read_model(artefact.path / MODEL), Options())
    assert set(product_precisions(compiled)) <= {"u8", "i8"}


class Readers(nn.Module):
    """What token methods do behind attention's transposition: take a row, sum over heads, go back to where it lay."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, 12)
        heads = x.unflatten(2, (3, 4)).transpose(1, 2)  # (B, H, N, d)
        row = heads[:, :, :1].flatten(1)  # (B, 12)
        summed = heads.transpose(1, 2).sum(dim=2)[:, 1]  # (B, d)
        back = heads.transpose(1, 2).flatten(2)[:, 2]  # (B, 12)
        return torch.cat([row, summed, back, (heads @ heads.transpose(2, 3)).flatten(1)], dim=1)


def test_readers_move_before_the_transposition_and_values_stay() -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(4))
    model = ov.convert_model(torch.export.export(Readers(), (x,)))
    model.reshape(list(x.shape))

    def run() -> np.ndarray:
        return ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: x.numpy()})[0]

    want = Readers()(x).numpy()
    assert abs(run() - want).max() < 1e-5
    assert read_before_transpose(model) + join_transposes(model) >= 3
    assert slice_before_heads(model) == 1
    assert abs(run() - want).max() < 1e-5


@pytest.mark.e2e
def test_class_attention_leaves_the_int8_kernel_whole() -> None:
    """The row that EViT reads is scored apart: attention stays one kernel in the block that reads it."""
    model = small(patch_size=4, embed_dim=128)
    method = EViT(keep_rate=0.5, blocks=(0, 1))
    method.shape(model, method.learn(model))
    rounded = Int8(images=2)

    class Noise:
        def images(self, count: int) -> Iterator[torch.Tensor]:
            yield images(count)

    with torch.no_grad():
        structure = rounded.learn(model, Noise())  # type: ignore[arg-type]
        rounded.shape(model, structure)
        rounded.fold(model, structure, {})
        compiled = compile_model(convert(trace(model, (3, 32, 32), 2)), Options())
    maps = [r for r in executed(compiled) if r["kind"] == "Subgraph" and r["covers"].lower().count("matmul") >= 2]
    assert len([r for r in maps if "softmax" in r["covers"].lower()]) == 2
