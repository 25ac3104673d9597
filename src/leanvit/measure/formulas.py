"""Multiply-accumulates of one executed operator, from the shapes it was called with.

A MAC is one multiplication plus one addition inside a matrix product or a convolution. Elementwise work, norms,
softmax, pooling, resampling and data movement are not MACs (what the field's tables call "MACs" or "GMACs").
Shapes count as they are: padded borders, masked scores and the upper half of a causal mask are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[tuple[Any, ...], Any], int]  # (positional arguments, output) -> MACs of the call


def _product(first: int) -> Formula:
    """(…, n, m) x (…, m, p): n·m·p for each matrix; the operands are arguments `first` and `first + 1`."""
    return lambda args, out: args[first].numel() * args[first + 1].shape[-1]


def _matrix_vector(first: int) -> Formula:
    return lambda args, out: args[first].numel()


def _dot(args: tuple[Any, ...], out: Any) -> int:
    return args[0].numel()


def _linear_by_output(args: tuple[Any, ...], out: Tensor) -> int:
    """(…, m) x packed weight -> (…, p): the packed weight's layout is not read."""
    return out.numel() * args[0].shape[-1]


def _convolve(args: tuple[Any, ...], out: Tensor, *, transposed: bool = False) -> int:
    """Each output element of a convolution (each input element of a transposed one) meets weight[0] once."""
    x, weight = (
        args[0],
        args[1],
    )  # weight (C_out, C_in / groups, *kernel), transposed (C_in, C_out / groups, *kernel)
    return (x if transposed else out).numel() * (weight.numel() // weight.shape[0])


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    return _convolve(args, out, transposed=bool(args[6]))


def _attention(args: tuple[Any, ...], out: Any) -> int:
    """Fused attention: q (B, H, L, E), k (B, H', S, E), v (B, H', S, Ev): q·kᵀ and weights·v."""
    q, k, v = args[:3]
    return q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _native_attention(args: tuple[Any, ...], out: Any) -> int:
    """Fast path of nn.MultiheadAttention: (query, key, value (B, N, E), embed_dim, heads, qkv_weight, …)."""
    q, k, v, width = args[:4]
    projections = (q.numel() + k.numel() + v.numel() + q.numel()) * width
    return projections + 2 * q.numel() * k.shape[-2]


def _native_encoder_layer(args: tuple[Any, ...], out: Any) -> int:
    """Fast path of nn.TransformerEncoderLayer: args[14] and args[16] are the weights of the two MLP layers."""
    x, width = args[0], args[1]  # x (B, N, E)
    attention = x.numel() * 4 * width + 2 * x.numel() * x.shape[-2]
    return attention + x.shape[:-1].numel() * (args[14].numel() + args[16].numel())


FORMULAS: dict[str, Formula] = {
    "aten.mm": _product(0),
    "aten.bmm": _product(0),
    "aten._int_mm": _product(0),
    "aten._scaled_mm": _product(0),
    "aten._scaled_mm_v2": _product(0),
    "aten.addmm": _product(1),
    "aten.addbmm": _product(1),
    "aten.baddbmm": _product(1),
    "aten._addmm_activation": _product(1),
    "aten.mv": _matrix_vector(0),
    "aten.addmv": _matrix_vector(1),
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten.mkldnn_linear": _linear_by_output,
    "aten._weight_int8pack_mm": _linear_by_output,
    "aten._weight_int4pack_mm": _linear_by_output,
    "aten._weight_int4pack_mm_for_cpu": _linear_by_output,
    "quantized.linear": _linear_by_output,
    "quantized.linear_relu": _linear_by_output,
    "quantized.linear_dynamic": _linear_by_output,
    "quantized.linear_relu_dynamic": _linear_by_output,
    "aten.convolution": _convolution,
    "aten._convolution": _convolution,
    "aten.convolution_overrideable": _convolution,
    "aten.cudnn_convolution": _convolve,
    "aten.mkldnn_convolution": _convolve,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,  # torch 2.13 counts this one as zero
    "aten._scaled_dot_product_flash_attention": _attention,
    "aten._scaled_dot_product_efficient_attention": _attention,
    "aten._scaled_dot_product_cudnn_attention": _attention,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    "aten._scaled_dot_product_attention_math_for_mps": _attention,
    "aten._native_multi_head_attention": _native_attention,
    "aten._transformer_encoder_layer_fwd": _native_encoder_layer,
}

# where a call has its two operands; of a convolution, and beside a packed weight: the weight alone. Attention kernels
# multiply no weight, and fused layers, which hold several, count whole.
OPERANDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mm", "bmm", "_int_mm", "_scaled_mm", "_scaled_mm_v2", "mv", "dot", "vdot"), (0, 1)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "_addmm_activation", "addmv"), (1, 2)),
    **{name: (1,) for name in FORMULAS if FORMULAS[name] in (_linear_by_output, _convolution, _convolve)},
}
OPERANDS = {name if "." in name else f"aten.{name}": places for name, places in OPERANDS.items()}

# aten operators that move, compare, normalise, pool or resample; a trailing underscore (in place) is the same operator.
# Views, operators that torch tags as pointwise or reduction, and those that take no tensor need no entry.
_NO_MACS = """
    _to_copy _to_dense _unsafe_view _reshape_alias _reshape_copy as_strided cat clone constant_pad_nd copy diag_embed
    fill flip im2col col2im lift_fresh lift_fresh_copy native_channel_shuffle pixel_shuffle pixel_unshuffle
    reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d resize roll rot90
    select_scatter set slice_scatter split_with_sizes_copy stack trace tril triu unfold_copy view_copy zero

    _unsafe_index _unsafe_index_put _unsafe_masked_index _index_put_impl embedding _embedding_bag gather index
    index_add index_copy index_fill index_put index_reduce index_select masked_fill masked_scatter masked_select
    nonzero nonzero_static put scatter scatter_add scatter_reduce take

    _local_scalar_dense _unique _unique2 argmax argmin bincount bucketize count_nonzero cummax cummin cumprod cumsum
    equal histc is_same_size isin item kthvalue logcumsumexp max median min mode nanmedian searchsorted sort topk
    unique_consecutive unique_dim

    all amax amin aminmax any linalg_vector_norm logsumexp mean norm prod std std_mean sum var var_mean

    empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like rand_like randint_like
    randn_like zeros_like bernoulli exponential multinomial native_dropout normal random rrelu_with_noise uniform

    _batch_norm_no_update _batch_norm_with_update _fused_rms_norm _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _weight_norm_interface cudnn_batch_norm
    miopen_batch_norm native_batch_norm native_group_norm native_layer_norm rms_norm

    _log_softmax _masked_softmax _prelu_kernel _safe_softmax _softmax glu hardswish log_sigmoid_forward

    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool2d avg_pool3d max_pool2d_with_indices
    max_pool3d_with_indices _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d grid_sampler_2d grid_sampler_3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d

    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper dequantize
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask int_repr
    q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point quantize_per_channel
    quantize_per_tensor quantize_per_tensor_dynamic to_mkldnn mkldnn_reorder_conv2d_weight
"""
NO_MACS = frozenset(_NO_MACS.split())

_ELEMENTWISE = frozenset(tag for tag in (torch.Tag.pointwise, getattr(torch.Tag, "reduction", None)) if tag is not None)


def qualified_name(op: Any) -> str:
    """`aten.addmm` for an overload of it; the operator's own name for a higher-order operator."""
    packet = getattr(op, "_overloadpacket", None)
    return str(packet) if packet is not None else f"higher_order.{op}"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts of arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def macs_of(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """MACs of one executed operator; None when they cannot be known (an unknown operator or memory layout)."""
    name = qualified_name(op)
    if name in FORMULAS:
        dense = all(_is_dense(t) for t in tensors_in(args))  # a guessed layout is worse than a visible gap
        return FORMULAS[name](args, out) if dense else None
    return 0 if _has_no_macs(name, op, (args, kwargs)) else None


def _is_dense(tensor: Tensor) -> bool:
    return not tensor.is_nested and (tensor.layout is torch.strided or tensor.is_mkldnn)


def _has_no_macs(name: str, op: Any, arguments: Any) -> bool:
    if not isinstance(op, torch._ops.OpOverload):
        return False
    namespace, short = name.split(".", 1)
    if namespace == "prim" or op.is_view or _ELEMENTWISE & set(op.tags):
        return True
    if namespace == "aten" and short.rstrip("_") in NO_MACS:
        return True
    return namespace == "aten" and next(tensors_in(arguments), None) is None  # creates a tensor
