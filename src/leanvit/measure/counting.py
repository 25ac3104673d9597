"""One counter of parameters and multiply-accumulates for every method.

It sees the operators that torch really executes (below autograd and below `nn.Module`), so functional calls, fused
attention and the fast paths of `nn.TransformerEncoderLayer` count, whatever the modules are called. What it cannot
count it names: a number is never silently too small.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from leanvit.errors import BadInput
from leanvit.measure.formulas import FORMULAS, macs_of, qualified_name, tensors_in
from leanvit.measure.pruned import Zeros, kept_parameters, parameters
from leanvit.measure.runners import device_of, evaluating, float_dtype_of, whole_depth


@dataclass(frozen=True)
class Uncounted:
    """An executed operator whose MACs are not in the total: its name, the module that ran it, its tensors' shapes."""

    op: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    calls: int

    def __str__(self) -> str:
        where = self.module or "the model itself"
        return f"{self.op} in {where} on {' x '.join(map(str, self.shapes))}"


@dataclass(frozen=True)
class Cost:
    """What `count` found. MACs are of one image; 1 MAC = 2 FLOPs.

    `by_op` maps an operator's name to its MACs; `by_module` maps a module's path to the MACs executed inside it, its
    children included (`""` is the whole model). `macs` is a lower bound when `uncounted` is not empty.

    `params` and `macs` are of what is executed: they never fall because of a zero. What zeros of sparse tensors
    (`model.sparse`) leave of them are `kept_params` and `kept_macs`; no runtime is said to save the difference.
    """

    params: int  # elements of weights, shared ones once (`parameters`)
    macs: int
    by_op: dict[str, int]
    by_module: dict[str, int]
    uncounted: tuple[Uncounted, ...] = ()
    kept_params: int | None = None  # without the zeros of sparse tensors; None: no tensor of the model is sparse
    kept_macs: int | None = None  # likewise: a product with a sparse weight by its non-zero entries, all others whole

    @property
    def gmacs(self) -> float:
        """10⁹ multiply-accumulates for one image."""
        return self.macs / 1e9

    @property
    def flops(self) -> int:
        """Floating-point operations of the counted products for one image: 2 x MACs."""
        return 2 * self.macs

    def gaps(self) -> str:
        """The operators that were not counted, one clause each: where it ran first, and how often in all."""
        first = {item.op: item for item in reversed(self.uncounted)}
        calls = {op: sum(item.calls for item in self.uncounted if item.op == op) for op in first}
        return "; ".join(f"{first[op]}, {calls[op]} calls in all" for op in sorted(first))


def count(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    batch: int = 1,
    make_input: Callable[[int], Any] | None = None,
) -> Cost:
    """Count parameters and MACs of one forward pass in eval mode without gradients.

    Args:
        model: takes one tensor (batch, *input_size) of the model's own dtype and device. Its modes, hooks, gradients
            and torch's random state are as before afterwards.
        input_size: size of one input without the batch, `(C, H, W)` for images. Only shapes matter, unless the model
            is one whose work depends on the data. A model with early exits is counted to its end, with all heads: the
            most that an image costs.
        batch: images in the pass; the figures are divided by it.
        make_input: batch -> the tensor (or tuple of positional arguments) to use instead of random numbers. With it,
            images leave early where the model lets them.

    Convention: matrix products (fused attention's two included) and convolutions, nothing else. timm's published
    `gmacs` also hold 5 operations for each element of a LayerNorm and 2 of a BatchNorm (fvcore's way): DeiT-S has
    4.5989 G here and 4.61 G there.

    Raises BadInput for a model that is no module or for sizes that are not positive integers. Warns, once, when an
    executed operator could not be counted; `Cost.uncounted` names each.
    """
    _check(model, input_size, batch)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper hides the modules' own paths
    zeros = Zeros(model)
    recorder = _Recorder({id(module): name for name, module in model.named_modules()}, zeros)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        if make_input is None:
            stack.enter_context(whole_depth(model))
        inputs = make_input(batch) if make_input else _random_input(model, (batch, *input_size))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_eager())
        stack.enter_context(recorder.following_modules())
        stack.enter_context(recorder)
        model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    cost = recorder.cost(params=parameters(model), batch=batch)
    if zeros.are_known:
        cost = replace(cost, kept_params=kept_parameters(model), kept_macs=recorder.kept(batch))
    if cost.uncounted:
        warnings.warn(f"MACs are a lower bound; not counted: {cost.gaps()}", stacklevel=2)
    return cost


class _Recorder(TorchDispatchMode):
    """Adds up MACs by operator and by module while it is active."""

    supports_higher_order_operators = True  # they run, and are named as not counted

    def __init__(self, paths: dict[int, str], zeros: Zeros) -> None:
        super().__init__()
        self._zeros = zeros
        self._kept = 0
        self._paths = paths  # id of a module -> its path in the model
        self._inside: list[str] = []  # paths of the modules being executed, outermost first
        self._by_op: Counter[str] = Counter()
        self._by_module: Counter[str] = Counter()
        self._unknown: Counter[tuple[str, str, tuple[tuple[int, ...], ...]]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _may_be_composite(func, args):  # composite operators arrive whole in inference mode
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._record(func, args, kwargs, out)
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name, module = qualified_name(func), self._inside[-1] if self._inside else ""
        macs = macs_of(func, args, kwargs, out)
        if macs is None:
            shapes = tuple(tuple(t.shape) if not t.is_nested else () for t in tensors_in((args, kwargs)))
            self._unknown[name, module, shapes] += 1
        elif not macs:
            self._zeros.follow((args, kwargs), out)
        else:
            self._by_op[name] += macs
            self._kept += self._zeros.kept(name, args, macs)
            for path in {"", *self._inside}:  # a set: a module that calls itself counts once
                self._by_module[path] += macs

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module runs. The hooks are torch's global ones: nothing is attached to the model."""

        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self._paths:
                self._inside.append(self._paths[id(module)])

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if id(module) in self._paths:
                self._inside.pop()

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),  # also when a model catches an error of a part
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def kept(self, batch: int) -> int:
        """MACs of one image with zeros of sparse tensors left out."""
        return round(self._kept / batch)

    def cost(self, *, params: int, batch: int) -> Cost:
        per_image = {name.removeprefix("aten."): round(n / batch) for name, n in self._by_op.most_common()}
        return Cost(
            params=params,
            macs=round(self._by_module[""] / batch),
            by_op=per_image,
            by_module={path: round(n / batch) for path, n in self._by_module.items()},
            uncounted=tuple(Uncounted(*what, calls=calls) for what, calls in self._unknown.items()),
        )


def _may_be_composite(func: Any, args: tuple[Any, ...]) -> bool:
    known = not isinstance(func, torch._ops.OpOverload) or qualified_name(func) in FORMULAS
    return not known and not any(t.is_nested for t in tensors_in(args))  # nested tensors have kernels of their own


def _eager() -> AbstractContextManager[Any]:
    """Run compiled functions as they were written: a compiled kernel shows no operators.

    torch 2.15 does so by itself under a dispatch mode; this does not rely on it.
    """
    compiling = "torch._dynamo" in sys.modules  # importing it takes seconds; if nothing has, nothing is compiled
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _random_input(model: nn.Module, size: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator).to(device_of(model), float_dtype_of(model))


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def _check(model: Any, input_size: Any, batch: Any) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"model must be a torch.nn.Module to be counted, got {type(model).__name__}")
    sizes = tuple(input_size) if isinstance(input_size, Sequence) and not isinstance(input_size, str) else ()
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise BadInput(f"input_size must be positive integers without the batch, such as (3, 224, 224): {input_size!r}")
    if not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch must be a positive integer, got {batch!r}")
