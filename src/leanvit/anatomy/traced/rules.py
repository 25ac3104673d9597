"""What the traced level understands: which modules and functions of torch are which operation of the op set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm import layers
from timm.models import metaformer
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.errors import Refused

CACHES = ("attention_bias_cache",)  # dictionaries of timm that hold what was computed from parameters

# --- modules that are one operation --------------------------------------------------


@dataclass(frozen=True)
class ModuleRule:
    """The operation that a module is, and how to know the shape of its result without running it."""

    kind: str
    shape: Callable[[Any, Tensor], Tensor]


def _same(module: nn.Module, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], module.out_features)


def _conv(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Of the module's geometry: its weight may be kept elsewhere (int8)."""
    weight = x.new_empty(module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)


def _conv_1d(module: nn.Conv1d, x: Tensor) -> Tensor:
    weight = x.new_empty(module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return F.conv1d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)


def _conv_transposed(module: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    weight = x.new_empty(module.in_channels, module.out_channels // module.groups, *module.kernel_size)
    geometry = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    return F.conv_transpose2d(x, weight, None, *geometry)  # type: ignore[arg-type]


def _conv_same(module: Any, x: Tensor) -> Tensor:
    weight = x.new_empty(module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return layers.conv2d_same(x, weight, None, module.stride, module.padding, module.dilation, module.groups)


_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    layers.BatchNormAct2d,
    layers.GroupNorm,
    layers.GroupNorm1,
    layers.LayerNorm,
    layers.LayerNorm2d,
    layers.RmsNorm,
    layers.RmsNorm2d,
    metaformer.GroupNorm1NoBias,
    metaformer.LayerNorm2dNoBias,
    metaformer.LayerNormNoBias,
)
_ACTS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.ELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softplus,
    layers.GELU,
    layers.GELUTanh,
    layers.QuickGELU,
    layers.Sigmoid,
    layers.Swish,
    layers.HardSwish,
    layers.HardSigmoid,
    layers.Tanh,
)
_RUN_AS_IS = (
    nn.AvgPool1d,
    nn.Unfold,
    nn.Fold,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
    layers.AvgPool2dSame,
)
_MODULES: dict[type, ModuleRule] = {
    nn.Conv2d: ModuleRule("conv", _conv),
    nn.Conv1d: ModuleRule("conv", _conv_1d),
    nn.ConvTranspose2d: ModuleRule("conv", _conv_transposed),
    layers.Conv2dSame: ModuleRule("conv", _conv_same),
    nn.Linear: ModuleRule("linear", _linear),
    nn.Identity: ModuleRule("identity", _same),
    **{kind: ModuleRule("norm", _same) for kind in _NORMS},
    **{kind: ModuleRule("act", _same) for kind in _ACTS},
    **{kind: ModuleRule("drop", _same) for kind in (nn.Dropout, nn.Dropout2d, layers.DropPath)},
    **{kind: ModuleRule("module", _run) for kind in _RUN_AS_IS},
}
_HOMES = (
    "timm.",
    "leanvit.",
    "torch.nn.modules.container",
    "torch.nn.modules.flatten",
    "torch.nn.modules.pixelshuffle",
)
_FOLLOWED = (nn.Softmax,)  # classes of torch whose forward is one function that `call_rule` knows


def runs_whole(module: nn.Module) -> bool:
    """Whether a module of leanvit's own is one step, run as it is in float: what must not be rounded inside."""
    return getattr(type(module), "RUNS_WHOLE", False)


def module_rule(path: str, module: nn.Module, model: nn.Module) -> ModuleRule | None:
    """The rule of a module that is one operation; None: its forward is followed. Raises `Refused` for any other.

    Followed are modules of timm, of leanvit, and of the package that the class of the model itself is of.
    """
    if type(module) in _MODULES:
        return _MODULES[type(module)]
    if runs_whole(module):
        return ModuleRule("module", _run)
    homes = (*_HOMES, _package(model))
    if type(module) not in _FOLLOWED and not f"{type(module).__module__}.".startswith(homes):
        raise Refused(f"{path} is a {type(module).__name__}, which the traced level does not know")
    return None


def _package(model: nn.Module) -> str:
    """The name of the package that a model's class is of, with a dot behind it."""
    return type(model).__module__.partition(".")[0] + "."


# --- functions -------------------------------------------------------------------------


@dataclass(frozen=True)
class CallRule:
    """The operation that a call is; `select` picks its operands from the call's encoded arguments."""

    kind: str
    target: Any
    select: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    def arguments(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self.select(args, kwargs) if self.select else (args, kwargs)


_MOVES = """
    reshape view flatten unflatten permute transpose swapaxes movedim squeeze unsqueeze contiguous expand expand_as
    reshape_as view_as roll flip repeat pixel_shuffle pixel_unshuffle T mT rot90
"""
_CUTS = "chunk split unbind split_with_sizes tensor_split"
_COMPUTES = """
    sub rsub __rsub__ div rdiv __rdiv__ neg abs pow __rpow__ sqrt rsqrt exp log sin cos clamp sum mean amax amin square
    cumsum maximum minimum where masked_fill normalize norm interpolate pad avg_pool2d max_pool2d adaptive_avg_pool2d
    adaptive_max_pool2d unfold fold to float long type type_as stack cat zeros ones full arange linspace zeros_like
    ones_like meshgrid __invert__ index_select gather __eq__ __ne__ __ge__ eq ne ge add mul log_softmax clone detach
    softplus tanh reciprocal floor_divide __rfloordiv__ new_zeros new_ones div_ sub_ clamp_ broadcast_to
    repeat_interleave std var grid_sample
"""
_ACT_MODULES: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
}
MOVES, CUTS, COMPUTES = frozenset(_MOVES.split()), frozenset(_CUTS.split()), frozenset(_COMPUTES.split())


def call_rule(func: Any, args: Any, kwargs: Any, out: Any, *, where: str) -> CallRule | None:
    """The rule of a call into torch; None where it only asks (shapes, dtypes). Raises `Refused` by the call's name."""
    name = _name(func)
    if next(_tensors(out), None) is None:
        if name in ("__setitem__", "copy_"):
            raise Refused(f"{where} writes into a tensor ({name}), which the traced level cannot follow")
        return None
    rule = _operation(name, func, args, kwargs)
    if rule is None:
        raise Refused(f"{where} calls {name}, which the traced level does not know")
    if not isinstance(out, Tensor) and not rule.kind == "move":
        raise Refused(f"{where} calls {name}, which gives several tensors")
    return rule


def _operation(name: str, func: Any, args: Any, kwargs: Any) -> CallRule | None:
    plain = not kwargs and len(args) == 2
    tensors = [isinstance(a, Tensor) for a in args[:2]]
    if name in ("add", "add_", "__radd__") and plain and all(tensors):
        return CallRule("add", None)
    if name in ("mul", "mul_", "__rmul__") and plain:
        if all(tensors):
            return CallRule("mul", None)
        if isinstance(args[1], int | float) and args[0].is_floating_point():
            return CallRule("scale", None)
    if name in ("matmul", "bmm", "__rmatmul__") and plain:
        return CallRule("matmul", None)
    if name == "softmax":
        return CallRule("softmax", _softmax_dim(args, kwargs), lambda a, k: (a[:1], {}))
    if name == "sigmoid":
        return CallRule("sigmoid", None)
    if name in _ACT_MODULES:
        settings = {key: value for key, value in kwargs.items() if key != "inplace"}
        return CallRule("act_call", _ACT_MODULES[name](**settings), lambda a, k: (a[:1], {}))
    if name == "scaled_dot_product_attention":
        return CallRule("attention", None, _attention_arguments)
    if name == "cat" and args and _cat_dim(args, kwargs) == 1:
        return CallRule("cat", None, lambda a, k: (a[:1], {}))
    if name == "dropout":
        return CallRule("drop_call", _dropout(*args[1:], **kwargs), lambda a, k: (a[:1], {}))
    if name == "__getitem__":
        return CallRule("move" if _slices_only(args[1]) else "compute", func)
    if name in MOVES or name in CUTS:
        return CallRule("move", func)
    if name in COMPUTES or name in ("add_", "mul_", "__radd__", "__rmul__"):
        return CallRule("compute", func)
    return None


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


def _softmax_dim(args: Any, kwargs: Any) -> int:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None or kwargs.get("dtype") is not None:
        raise Refused("a softmax without a dimension, or to another dtype, is not understood")
    return dim - args[0].dim() if dim >= 0 else dim


def _cat_dim(args: Any, kwargs: Any) -> int:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    return dim if dim >= 0 else dim + args[0][0].dim()


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p).train(training)


def _attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    foreign = set(given) - {*names, "scale"}
    if given.get("is_causal") or foreign:
        raise Refused(f"attention with {', '.join(sorted(foreign)) or 'is_causal'} is not understood")
    return tuple(given[n] for n in names[:3]), {
        "bias": given.get("attn_mask"),
        "dropout": given.get("dropout_p", 0.0),
        "scale": given.get("scale"),
    }


def _slices_only(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
