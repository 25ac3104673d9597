"""Rewriting an OpenVINO graph so that the CPU plugin keeps its fast kernels, and reading what it really runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

Slice = tuple[Any, int, int]  # node, start, stop


def for_cpu(model: ov.Model) -> None:
    """All rewritings, in the order in which one opens the way for the next."""
    for rewrite in (read_before_transpose, join_transposes, slice_before_heads, split_projections):
        rewrite(model)
    model.validate_nodes_and_infer_types()


def split_projections(model: ov.Model) -> int:
    """Give each slice of a fused projection a matrix product of its own; returns how many were split.

    Attention slices one product (B, N, 3 D) into q, k and v. The plugin copies those slices, and in int8 it pushes the
    dequantization behind them, out of the product's kernel. Three products of a third each need neither.
    """
    count = 0
    for product in [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]:
        bias = _bias_of(product)
        end = product if bias is None else bias[0]
        slices = _slices_of(end)
        weights = [_rows(product.input_value(1), start, stop) for _, start, stop in slices]
        if len(slices) < 2 or any(weight is None for weight in weights):
            continue
        for (node, start, stop), weight in zip(slices, weights, strict=True):
            part = opset.matmul(product.input_value(0), weight, False, True)
            if bias is not None:
                part = opset.add(part, opset.constant(bias[1][..., start:stop]))
            part.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(part.output(0))
        count += 1
    return count


def join_transposes(model: ov.Model) -> int:
    """Make two transpositions in a row one, and none where they undo each other; returns how many went.

    Token methods read q and k where the projection left them, behind the transposition that attention needs. Each
    reader then gets its own path, and the plugin can take attention's transpositions into its attention kernel.
    """
    count = 0
    for node in [op for op in model.get_ordered_ops() if op.get_type_name() == "Transpose"]:
        before = node.input_value(0).get_node()
        order, first = _constant(node.input_value(1)), None
        if before.get_type_name() == "Transpose":
            first = _constant(before.input_value(1))
        if order is None or first is None:
            continue
        joined = first[order]
        source = before.input_value(0)
        if (joined == np.arange(len(joined))).all():
            node.output(0).replace(source)
        else:
            node.output(0).replace(opset.transpose(source, opset.constant(joined)).output(0))
        count += 1
    return count


def read_before_transpose(model: ov.Model) -> int:
    """Slice and sum first, transpose what is left then; returns how many readers moved."""
    count = 0
    for node in [op for op in model.get_ordered_ops() if op.get_type_name() in ("Slice", "ReduceSum")]:
        before = node.input_value(0).get_node()
        axes = _constant(node.input_value(node.get_input_size() - 1))
        order = _constant(before.input_value(1)) if before.get_type_name() == "Transpose" else None
        if axes is None or order is None:
            continue
        moved, source = opset.constant(order[axes]), before.input_value(0)
        if node.get_type_name() == "Slice":
            part = opset.slice(source, *[node.input_value(i) for i in (1, 2, 3)], moved)
            left = order
        elif node.get_attributes()["keep_dims"]:
            continue
        else:
            part = opset.reduce_sum(source, moved, False)
            left = np.argsort(np.argsort(np.delete(order, axes)))
        if (left != np.arange(len(left))).any():
            part = opset.transpose(part, opset.constant(left))
        node.output(0).replace(part.output(0))
        count += 1
    return count


def slice_before_heads(model: ov.Model) -> int:
    """Slice tokens before (B, N, C) is cut into heads (B, N, H, d); returns how many slices moved."""
    count = 0
    for node in [op for op in model.get_ordered_ops() if op.get_type_name() == "Slice"]:
        before = node.input_value(0).get_node()
        values = [_constant(node.input_value(i)) for i in range(1, 5)]
        if before.get_type_name() != "Reshape" or any(v is None or v.size != 1 for v in values):
            continue
        target, axis = _constant(before.input_value(1)), int(values[3].item())  # type: ignore[union-attr]
        flat, cut = before.get_input_partial_shape(0), before.get_output_partial_shape(0)
        if target is None or axis != 1 or len(flat) != 3 or len(cut) != 4 or flat[1] != cut[1]:
            continue
        part = opset.slice(before.input_value(0), *[node.input_value(i) for i in range(1, 5)])
        shape = target.copy()
        shape[1] = node.get_output_partial_shape(0)[1].get_length()
        node.output(0).replace(opset.reshape(part, opset.constant(shape), True).output(0))
        count += 1
    return count


def _bias_of(product: ov.Node) -> tuple[ov.Node, np.ndarray] | None:
    """The addition of a constant vector that alone consumes a product, with that vector."""
    targets = list(product.output(0).get_target_inputs())
    if len(targets) != 1 or targets[0].get_node().get_type_name() != "Add":
        return None
    add = targets[0].get_node()
    constant = _constant(add.input_value(1 - targets[0].get_index()))
    return None if constant is None or constant.ndim == 0 or constant.shape[-1] == 1 else (add, constant)


def _slices_of(node: ov.Node) -> list[Slice]:
    """The slices of the last axis that consume a node, if nothing else does; else an empty list."""
    slices = [_last_axis_slice(target.get_node()) for target in node.output(0).get_target_inputs()]
    known = [s for s in slices if s is not None]
    return known if len(known) == len(slices) else []


def _last_axis_slice(node: ov.Node) -> Slice | None:
    if node.get_type_name() != "Slice":
        return None
    values = [_constant(node.input_value(i)) for i in range(1, 5)]
    scalars = [int(v.item()) for v in values if v is not None and v.size == 1]
    shape = node.get_input_partial_shape(0)
    rank = len(shape)
    if len(scalars) != 4 or scalars[2] != 1 or scalars[3] % rank != rank - 1:
        return None
    start, stop, _ = slice(scalars[0], scalars[1]).indices(shape[rank - 1].get_length())
    return node, start, stop


def _rows(output: Any, start: int, stop: int) -> Any | None:
    """Rows of a constant weight (out, in): float, or int8 -> Convert -> Multiply by scales (out, 1)."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return opset.constant(np.ascontiguousarray(node.data[start:stop])) if node.data.ndim == 2 else None
    parts = [_rows(node.input_value(i), start, stop) for i in range(node.get_input_size())]
    if any(part is None for part in parts):
        return None
    if kind == "Convert":
        return opset.convert(parts[0], node.get_output_element_type(0).to_string())
    return opset.multiply(*parts) if kind == "Multiply" else None


def _constant(output: Any) -> np.ndarray | None:
    node = output.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def executed(compiled: ov.CompiledModel) -> list[dict[str, str]]:
    """What a compiled model runs: per node `name`, `kind`, `precision`, `kernel`, `covers` (the names fused)."""
    rows = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        rows.append(
            {
                "name": op.get_friendly_name(),
                "kind": info.get("layerType", ""),
                "precision": info.get("runtimePrecision", ""),
                "kernel": info.get("primitiveType", ""),
                "covers": info.get("originalLayersNames", ""),
            }
        )
    return rows


def product_precisions(compiled: ov.CompiledModel) -> Counter[str]:
    """How many convolutions and products with constant weights run in each precision (u8, i8, f32, bf16)."""
    kinds = ("FullyConnected", "Convolution")  # the plugin has variants: FullyConnectedQuantizedLegacy, ...
    return Counter(row["precision"] for row in executed(compiled) if row["kind"].startswith(kinds))
