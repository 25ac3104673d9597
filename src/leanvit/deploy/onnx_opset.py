"""The operator set of an ONNX file by choice: the exporter writes 18 and later, 17 is rewritten from 18 here.

From 17 to 18 a few operators changed: reductions take their axes as an input, `Pad` takes axes, `Split` a number of
outputs, scattering two more reductions. What a graph uses beyond that is refused by the operator's name.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir

from leanvit.errors import Refused

EXPORTER_LEAST = 18
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9}  # of the file, as ONNX paired them: older runtimes read no later one
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSumSquare"),
)
_SCATTERED = ("none", "add", "mul")  # the reductions that 17 has
_RESIZED_IN_18 = ("antialias", "axes", "keep_aspect_ratio_policy")


def lower_to(model: ir.Model, opset: int) -> None:
    """Rewrite a graph of opset 18 as one of 17, in place; a graph that has the wanted opset stays.

    Raises `Refused` that names the operator which opset 17 lacks.
    """
    if opset == 17:
        for node in model.graph.all_nodes():
            _lower(node)
        model.opset_imports[""] = 17
    model.ir_version = _IR_VERSIONS[opset]


def check_opset(path: Path, opset: int) -> None:
    """Raise `Refused` unless a file is valid by ONNX's own checker, and of this opset."""
    import onnx

    model = onnx.load(path)
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found.get("ai.onnx") != opset:
        raise Refused(f"ONNX opset {opset}: the exporter gave {found.get('ai.onnx')}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference have no common base
        raise Refused(f"ONNX opset {opset}: the checker refuses the graph: {str(error).splitlines()[0]}") from error


def operators_of(model: ir.Model) -> dict[str, Any]:
    """What a runtime must know to read a graph: opset, IR version, and each operator with its domain and count."""
    counts = Counter((node.domain or "ai.onnx", node.op_type) for node in model.graph.all_nodes())
    return {
        "opset": model.opset_imports[""],
        "ir_version": model.ir_version,
        "operators": [
            {"domain": domain, "type": kind, "count": count} for (domain, kind), count in sorted(counts.items())
        ],
    }


def _lower(node: ir.Node) -> None:
    import onnx

    if node.domain not in ("", "ai.onnx"):
        return
    kind = node.op_type
    if kind in _REDUCTIONS:
        _axes_as_attribute(node)
    elif kind == "Pad":
        _pad_all_axes(node)
    elif kind == "Split":
        _split_evenly(node)
    elif kind in ("ScatterElements", "ScatterND"):
        reduction = node.attributes["reduction"].as_string() if "reduction" in node.attributes else "none"
        if reduction not in _SCATTERED:
            raise _refused(node, f"with reduction {reduction}")
    elif kind == "Resize":
        new = [name for name in _RESIZED_IN_18 if name in node.attributes]
        if new:
            raise _refused(node, f"with {', '.join(new)}")
    elif onnx.defs.get_schema(kind, 18).since_version > 17:
        raise _refused(node, "which is newer")


def _axes_as_attribute(node: ir.Node) -> None:
    axes = _whole_numbers(node, 1) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    nothing = node.attributes.pop("noop_with_empty_axes", None)
    if not axes and nothing is not None and nothing.as_int():
        raise _refused(node, "over no axis")
    node.resize_inputs(1)
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _pad_all_axes(node: ir.Node) -> None:
    """Amounts for some axes become amounts for all of them."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return
    data = node.inputs[0]
    if data is None or data.shape is None:
        raise _refused(node, "of axes, of a tensor whose rank is not known")
    rank = len(data.shape)
    axes, amounts = _whole_numbers(node, 3), _whole_numbers(node, 1)
    whole = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        whole[axis % rank] = amounts[place]
        whole[rank + axis % rank] = amounts[len(axes) + place]
    name = f"leanvit.pads.{len(node.graph.initializers)}"  # type: ignore[union-attr]
    value = ir.val(name, const_value=ir.tensor(whole, dtype=ir.DataType.INT64, name=name))
    node.graph.register_initializer(value)  # type: ignore[union-attr]
    node.replace_input_with(1, value)
    node.resize_inputs(3)


def _split_evenly(node: ir.Node) -> None:
    """17 splits into equal parts, one an output, unless it is told their sizes."""
    if node.attributes.pop("num_outputs", None) is None:
        return
    data = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    length = data.shape[axis] if data is not None and data.shape is not None else None
    if not isinstance(length, int) or length % len(node.outputs):
        raise _refused(node, "into unequal parts")


def _whole_numbers(node: ir.Node, index: int) -> list[int]:
    value = node.inputs[index]
    held = None if value is None else value.const_value or ir.convenience.get_const_tensor(value)
    if held is None:
        raise _refused(node, "with axes or amounts that are computed")
    return [int(number) for number in held.numpy().reshape(-1)]


def _refused(node: ir.Node, how: str) -> Refused:
    return Refused(f"ONNX opset 17 has no {node.op_type} {how}; accepted here: opset 18, 19 or 20")
