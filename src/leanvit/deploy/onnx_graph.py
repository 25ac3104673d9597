"""Rewriting an ONNX graph so that ONNX Runtime's CPU kernels multiply integers, and reading what it really runs.

The exporter writes our activation quantizers as QuantizeLinear / DequantizeLinear pairs, which is the form that ONNX
Runtime fuses (on x64 it shifts signed activations to unsigned ones itself). What keeps products from integer kernels
is rewritten here: weights that are computed (Cast, Mul) instead of dequantized, weights behind a transposition, Gemm,
whose integer form also rounds the bias, and the patch convolution, whose integer form also rounds its result.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

INTEGER_PRODUCTS = (
    *("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "DynamicQuantizeMatMul"),
    *("QLinearConv", "ConvInteger", "QAttention"),
)
FLOAT_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "Attention")


def dequantize_weights(model: ir.Model) -> int:
    """Turn Cast(int8) · scale into DequantizeLinear in the layout that the product reads; returns how many weights.

    Must run before constants are folded, which would turn int8 weights into float ones. The new constants are int8,
    (in, out) with one scale a column for a product and (out, ...) for a convolution.
    """
    count = 0
    for node in list(model.graph):
        found = _weight(node)
        if found is None:
            continue
        values, scale = found
        for user, index in list(node.outputs[0].uses()):
            if user.op_type == "Transpose" and values.ndim == 2:
                products = [product for product, _ in user.outputs[0].uses()]
                _replace(user, _dequantized(user, values.T, scale, axis=1))
                for product in products:
                    _subtract_bias_after(product)
            elif user.op_type == "Gemm" and index == 1 and _flag(user, "transB"):
                _gemm_as_matmul(user, values, scale)
            elif user.op_type == "Conv" and _is_patches(user, values):
                _patches_as_matmul(user, values, scale)
            else:
                user.replace_input_with(index, _dequantized(user, values, scale, axis=0))
        count += 1
    return count


def forget_sources(model: ir.Model) -> None:
    """Take out what the exporter notes of where each node came from: stack traces with paths, half of a small file."""
    holders: list[Any] = [model, model.graph, *model.graph.all_nodes()]
    for holder in holders:
        holder.metadata_props.clear()
        holder.doc_string = None
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def product_kernels(optimised: Path) -> Counter[str]:
    """Operator types of the products in a graph that ONNX Runtime wrote after its optimisation, and how many of each.

    Raises nothing for operators that it does not know: only those of `INTEGER_PRODUCTS` and `FLOAT_PRODUCTS` count.
    """
    graph = ir.load(optimised).graph
    return Counter(n.op_type for n in graph.all_nodes() if n.op_type in (*INTEGER_PRODUCTS, *FLOAT_PRODUCTS))


def integer_share(kernels: Counter[str]) -> tuple[int, int]:
    """(products that run in integers, all products)."""
    return sum(kernels[name] for name in INTEGER_PRODUCTS), kernels.total()


# --- weights ------------------------------------------------------------------------


def _weight(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(int8 (out, ...), scale (out,)) if a node multiplies a constant int8 weight by its scales."""
    if node.op_type != "Mul":
        return None
    for cast, factor in (node.inputs, node.inputs[::-1]):
        maker = cast.producer() if cast is not None else None
        values = _constant(maker.inputs[0]) if maker is not None and maker.op_type == "Cast" else None
        scale = _constant(_source(factor))
        if values is not None and scale is not None and values.dtype == np.int8 and scale.size == len(values):
            return values, scale.reshape(-1)
    return None


def _source(value: ir.Value | None) -> ir.Value | None:
    """Where a value comes from, behind nodes that only change its shape."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in ("Reshape", "Unsqueeze", "Identity"):
        value = maker.inputs[0]
        maker = value.producer() if value is not None else None
    return value


def _dequantized(user: ir.Node, values: np.ndarray, scale: np.ndarray, *, axis: int) -> ir.Value:
    graph = _graph(user)
    parts = (values, scale, np.zeros(len(scale), np.int8))
    node = ir.node("DequantizeLinear", [_initializer(graph, part) for part in parts], {"axis": axis})
    _type_as(node.outputs[0], ir.DataType.FLOAT, values.shape)
    graph.insert_before(user, node)
    return node.outputs[0]


def _gemm_as_matmul(gemm: ir.Node, values: np.ndarray, scale: np.ndarray) -> None:
    """x · wᵀ + bias in two nodes."""
    product = ir.node("MatMul", [gemm.inputs[0], _dequantized(gemm, values.T, scale, axis=1)])
    _graph(gemm).insert_before(gemm, product)
    _replace(gemm, _plus_bias(gemm, product.outputs[0], gemm.inputs[2] if len(gemm.inputs) > 2 else None))


def _subtract_bias_after(product: ir.Node) -> None:
    """Where a product is added to a bias, subtract the bias instead."""
    add = _only_user(product.outputs[0])
    if add is None or add.op_type != "Add":
        return
    bias = next(value for value in add.inputs if value is not product.outputs[0])
    if bias is not None and _constant(bias) is not None and _constant(bias).ndim == 1:  # type: ignore[union-attr]
        _replace(add, _plus_bias(add, product.outputs[0], bias))


def _plus_bias(before: ir.Node, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    """x + bias, written as x - (-bias): ONNX Runtime makes a product and a sum a Gemm, too early."""
    values = _constant(bias)
    if values is None:
        return x
    node = ir.node("Sub", [x, _initializer(_graph(before), -values)])
    _graph(before).insert_before(before, node)
    return node.outputs[0]


def _is_patches(conv: ir.Node, values: np.ndarray) -> bool:
    """Whether a convolution reads each pixel once: its stride is its kernel, it neither pads nor dilates nor groups."""
    kernel = list(values.shape[2:])
    pads = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else (0,)
    dilations = conv.attributes["dilations"].as_ints() if "dilations" in conv.attributes else (1,)
    strides = list(conv.attributes["strides"].as_ints()) if "strides" in conv.attributes else []
    plain = not any(pads) and set(dilations) == {1} and _flag(conv, "group", 1) == 1
    return values.ndim == 4 and strides == kernel and plain and _dequantizer(conv) is not None and _tiles(conv, kernel)


def _tiles(conv: ir.Node, kernel: list[int]) -> bool:
    """Whether the kernel tiles the whole image: a convolution leaves a narrow border out, a reshape cannot."""
    before, after = (value.shape if value is not None else None for value in (conv.inputs[0], conv.outputs[0]))
    if before is None or after is None:
        return False
    sizes = zip(before[2:], after[2:], kernel, strict=True)
    return all(isinstance(a, int) and isinstance(b, int) and a == b * k for a, b, k in sizes)


def _dequantizer(conv: ir.Node) -> ir.Node | None:
    maker = conv.inputs[0].producer() if conv.inputs[0] is not None else None
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _patches_as_matmul(conv: ir.Node, values: np.ndarray, scale: np.ndarray) -> None:
    """A patch embedding as a product: ONNX Runtime's integer convolution also rounds its result, its product does not.

    The bytes (B, C, H, W) are cut into patches (B, h·w, C·p·q) before they are dequantized.
    """
    out, channels, p, q = values.shape
    dequantizer = _dequantizer(conv)
    shape = conv.outputs[0].shape
    assert dequantizer is not None and shape is not None
    h, w = int(shape[2]), int(shape[3])  # type: ignore[arg-type]
    graph = _graph(conv)

    def after(op: str, x: ir.Value | None, shape_or_perm: list[int]) -> ir.Value:
        if op == "Reshape":  # 0 keeps the batch, whatever it is
            node = ir.node(op, [x, _initializer(graph, np.array(shape_or_perm, np.int64))])
        else:
            node = ir.node(op, [x], {"perm": shape_or_perm})
        graph.insert_before(conv, node)
        return node.outputs[0]

    cut = dequantizer.inputs[0]
    cut = after("Reshape", cut, [0, channels, h, p, w, q])
    cut = after("Transpose", cut, [0, 2, 4, 1, 3, 5])
    cut = after("Reshape", cut, [0, h * w, channels * p * q])
    _type_as(cut, dequantizer.inputs[0].dtype, None)  # type: ignore[union-attr]
    floats = ir.node("DequantizeLinear", [cut, *dequantizer.inputs[1:]])
    graph.insert_before(conv, floats)
    weight = _dequantized(conv, values.reshape(out, -1).T, scale, axis=1)
    multiplied = ir.node("MatMul", [floats.outputs[0], weight])
    graph.insert_before(conv, multiplied)
    product = _plus_bias(conv, multiplied.outputs[0], conv.inputs[2] if len(conv.inputs) > 2 else None)  # (B, h·w, out)
    tokens = _flattened(conv)
    if tokens is not None:
        _replace(tokens, product)
        return
    planes = after("Transpose", product, [0, 2, 1])
    _replace(conv, after("Reshape", planes, [0, out, h, w]))


def _flattened(conv: ir.Node) -> ir.Node | None:
    """The transposition that alone reads a convolution's planes as tokens (B, h·w, out), behind a reshape."""
    reshape = _only_user(conv.outputs[0])
    last = _only_user(reshape.outputs[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    if last is None or last.op_type != "Transpose" or list(last.attributes["perm"].as_ints()) != [0, 2, 1]:
        return None
    return last


# --- the graph ----------------------------------------------------------------------


def _only_user(value: ir.Value) -> ir.Node | None:
    users = value.uses()
    return next(iter(users))[0] if len(users) == 1 else None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _flag(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _graph(node: ir.Node) -> Any:
    assert node.graph is not None
    return node.graph


def _initializer(graph: Any, array: np.ndarray) -> ir.Value:
    name = f"leanvit.{len(graph.initializers)}"
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value


def _type_as(value: ir.Value, dtype: Any, shape: Any) -> None:
    value.dtype = dtype
    value.shape = None if shape is None else ir.Shape(shape)


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Let everything that read a node's result read another value. The dead node goes with the next optimisation."""
    old = node.outputs[0]
    if value.dtype is None or value.shape is None:
        _type_as(value, old.dtype, old.shape)
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
