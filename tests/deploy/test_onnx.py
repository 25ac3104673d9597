"""Export to ONNX Runtime: equal to PyTorch at f32; at int8 close to its simulation, and really in integers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_models import PREPROCESS, small, small_int8
from leanvit.anatomy.arithmetic.quant_ops import QuantOps
from leanvit.anatomy.arithmetic.quantizers import ActQuantizer, WeightQuantizer
from leanvit.deploy import Options, export, load_artefact, read_artefact
from leanvit.errors import BadInput, Refused
from leanvit.quantize.int8 import Int8
from leanvit.recipe import compress
from leanvit.tokens.tome import ToMe

pytestmark = pytest.mark.extra("onnxruntime", of="onnx")


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("batch", [None, 2])
def test_onnx_equals_pytorch(tmp_path: Path, batch: int | None) -> None:
    artefact = export(small(), tmp_path / "a", to="onnx", preprocess=PREPROCESS, batch=batch)
    assert set(artefact.files) == {"model.onnx", "operators.json"} and artefact.opset in range(
        18, 30
    )  # PyTorch's choice
    content = (artefact.path / "model.onnx").read_bytes()
    assert b".py" not in content and b"stack_trace" not in content  # no paths of the machine that made it
    runner = load_artefact(artefact.path, options=Options(threads=1))
    with torch.no_grad():
        want = small()(images(5))
    torch.testing.assert_close(runner(images(5)), want, rtol=0, atol=1e-4 * want.abs().max())
    with pytest.raises(BadInput, match="at f32 only"):
        load_artefact(artefact.path, options=Options(precision="bf16"))


def test_int8_weights_are_stored_as_bytes_and_every_product_is_one_of_integers(tmp_path: Path) -> None:
    whole = export(small(), tmp_path / "f32", to="onnx", preprocess=PREPROCESS, batch=4)
    artefact = export(small_int8(), tmp_path / "int8", to="onnx", preprocess=PREPROCESS, batch=4)
    assert artefact.precision == "int8" and load_artefact(artefact).precision == "int8"
    # patch embedding, 2 blocks of qkv, q·k, weights·v, proj, fc1, fc2, and the classifier
    assert (artefact.check["integer_products"], artefact.check["products"]) == (14, 14)
    import onnx

    weights = {t.name: t for t in onnx.load(artefact.path / "model.onnx").graph.initializer if len(t.dims) > 1}
    rounded = [t for t in weights.values() if t.data_type == onnx.TensorProto.INT8]
    assert sum(np.prod(t.dims) for t in rounded) == sum(
        m.weight.numel() for m in small().modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    )
    assert whole.size / artefact.size > 2.5  # tables, norms and scales stay float, and weigh much in so small a model


def test_int8_in_onnx_runtime_is_the_simulation_but_for_rounding(tmp_path: Path) -> None:
    runner = load_artefact(export(small_int8(), tmp_path / "a", to="onnx", preprocess=PREPROCESS))
    with torch.no_grad():
        want, unrounded = small_int8()(images(64)), small()(images(64))
    got = runner(images(64))
    assert (got - want).norm() < 0.7 * (unrounded - want).norm()
    assert (got - want).norm() / want.norm() < 0.02
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("kwargs", [{"skip": ("patch_embed*", "head")}, {"products": False}])
def test_what_stays_float_is_counted_as_float(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    artefact = export(small_int8(Int8(images=4, **kwargs)), tmp_path / "a", to="onnx", preprocess=PREPROCESS, batch=1)
    floats = 2 if "skip" in kwargs else 4
    assert (artefact.check["integer_products"], artefact.check["products"]) == (14 - floats, 14)


class Convolutions(nn.Module):
    """Quantized as `QuantOps` does it; the image is `side` pixels wide."""

    def __init__(self, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=stride, bias=bias)
        q = {"input": ActQuantizer(), "weight": WeightQuantizer((8, 3, 4, 4))}
        q["input"].set_range(-4, 4)
        q["weight"].set_weight(self.conv.weight.detach())
        self.ops = QuantOps({"conv": q})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.conv("conv", self.conv, x).mean((2, 3))


@pytest.mark.parametrize(("stride", "side", "integer"), [(4, 16, 1), (4, 18, 0), (2, 16, 0)])
def test_convolutions_that_tile_the_image_become_products_and_others_stay_right(
    tmp_path: Path, stride: int, side: int, integer: int
) -> None:
    model = Convolutions(stride, bias=stride == 4).eval()
    preprocess = replace(PREPROCESS, input_size=(3, side, side))
    artefact = export(model, tmp_path / "a", to="onnx", preprocess=preprocess)
    assert (artefact.check["integer_products"], artefact.check["products"]) == (integer, 1)
    assert artefact.check["drift"] < 0.01


# --- the opset ------------------------------------------------------------------------------------------------------


def reduced() -> nn.Module:
    return compress(small(), [ToMe(r=2)])


@pytest.mark.parametrize(("make", "opset"), [(small_int8, 17), (reduced, 17), (small, 19)])
def test_the_opset_is_the_one_that_was_asked_for(tmp_path: Path, make: Any, opset: int) -> None:
    """By ONNX's own reader; ONNX Runtime answers as PyTorch does (the check of every export)."""
    import onnx

    artefact = export(make(), tmp_path / "a", to="onnx", preprocess=PREPROCESS, opset=opset)
    held = onnx.load(artefact.path / "model.onnx")
    (imported,) = held.opset_import
    assert imported.version == artefact.opset == read_artefact(artefact.path).opset == opset
    listed = json.loads((artefact.path / "operators.json").read_text())
    assert (listed["opset"], listed["ir_version"]) == (imported.version, held.ir_version)
    counts = {row["type"]: row["count"] for row in listed["operators"]}
    assert counts == Counter(node.op_type for node in held.graph.node)
    assert {row["domain"] for row in listed["operators"]} == {"ai.onnx"}
    if make is small_int8:
        assert (artefact.check["integer_products"], artefact.check["products"]) == (14, 14)


@pytest.mark.parametrize(
    ("to", "opset", "message"),
    [
        ("onnx", 16, "opset is 16; accepted: 17, 18, 19, 20"),
        ("onnx", 21, "opset is 21"),
        ("onnx", True, "opset is True"),
        ("openvino", 17, "which ONNX has, but the runtime is openvino"),
    ],
)
def test_an_opset_that_cannot_be_is_refused_before_any_work(tmp_path: Path, to: str, opset: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        export(small(), tmp_path / "a", to=to, preprocess=PREPROCESS, opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "attributes", "outputs", "message"),
    [
        ("BitwiseNot", {}, 1, "no BitwiseNot which is newer"),
        ("ScatterElements", {"reduction": "max"}, 1, "no ScatterElements with reduction max"),
        ("Split", {"num_outputs": 2, "axis": 0}, 2, "no Split into unequal parts"),
        ("Split", {"num_outputs": 3, "axis": 0}, 3, None),
        ("ReduceMax", {"noop_with_empty_axes": 1}, 1, "no ReduceMax over no axis"),
    ],
)
def test_what_opset_17_cannot_say_is_refused_by_name(
    kind: str, attributes: dict, outputs: int, message: str | None
) -> None:
    import onnx_ir as ir

    from leanvit.deploy.onnx_opset import lower_to

    x = ir.val("x", shape=ir.Shape([3, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(kind, [x], attributes, num_outputs=outputs)
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=10)
    if message is None:
        lower_to(model, 17)
        assert "num_outputs" not in node.attributes and model.opset_imports[""] == 17
    else:
        with pytest.raises(Refused, match=message):
            lower_to(model, 17)


def test_padding_of_some_axes_becomes_padding_of_all() -> None:
    import onnx_ir as ir

    from leanvit.deploy.onnx_opset import lower_to

    x = ir.val("x", shape=ir.Shape([None, 3, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    held = {name: ir.tensor(values, dtype=ir.DataType.INT64) for name, values in (("p", [1, 2, 3, 4]), ("a", [-1, 1]))}
    constants = [ir.val(name, const_value=tensor) for name, tensor in held.items()]
    node = ir.node("Pad", [x, constants[0], None, constants[1]])
    lower_to(ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=10), 17)
    assert len(node.inputs) == 3 and node.inputs[1].const_value.numpy().tolist() == [0, 2, 1, 0, 4, 3]
