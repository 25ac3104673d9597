"""Running a recorded graph through an op set: one handler for each kind of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.arithmetic.score import NO_PHASES, attend
from leanvit.anatomy.traced.graph import Graph, PerBatch, Step, Stored, Value


class NormPart(nn.Module):
    """The norm of a module that holds its activation too, as a module of its own; tensors are the other's."""

    def __init__(self, whole: BatchNormAct2d) -> None:
        super().__init__()
        self._whole = (whole,)  # in a tuple: no child, the tensors stay where they are
        self.training = whole.training

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "_whole" else getattr(self._whole[0], name)

    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self._whole[0], x)


@dataclass
class Run:
    """One pass over a graph."""

    model: nn.Module
    ops: Ops
    batch: Any  # int, or symbolic while a graph is exported
    values: dict[int, Any] = field(default_factory=dict)

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def get(self, tree: Any) -> Any:
        """Numbers, tensors and nests of them, in place of what stands for them."""
        if isinstance(tree, Value):
            return self.values[tree.index]
        if isinstance(tree, Stored):
            return _stored(self.model, tree.path)
        if isinstance(tree, PerBatch):
            return tree.factor * self.batch + tree.offset
        if isinstance(tree, tuple):
            return tuple(self.get(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self.get(part) for key, part in tree.items()}
        if isinstance(tree, slice):
            return slice(self.get(tree.start), self.get(tree.stop), self.get(tree.step))
        return tree


def run_graph(graph: Graph, model: nn.Module, ops: Ops, x: Any) -> Any:
    """The graph's result for x (B, ...), every operation done by the op set."""
    run = Run(model, ops, ops.shape(x)[0], {0: x})
    for step in graph.steps:
        run.values[step.out] = HANDLERS[step.kind](run, step)
        for index in step.frees:
            del run.values[index]
    return run.get(graph.result)


def _stored(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _conv(run: Run, s: Step) -> Any:
    return run.ops.conv(s.site, run.module(s.target), run.get(s.args[0]))


def _linear(run: Run, s: Step) -> Any:
    return run.ops.linear(s.site, run.module(s.target), run.get(s.args[0]))


def _norm(run: Run, s: Step) -> Any:
    module = run.module(s.target)
    return run.ops.norm(s.site, NormPart(module) if isinstance(module, BatchNormAct2d) else module, run.get(s.args[0]))


def _act(run: Run, s: Step) -> Any:
    return run.ops.act(s.site, run.module(s.target), run.get(s.args[0]))


def _act_call(run: Run, s: Step) -> Any:
    return run.ops.act(s.site, s.target, run.get(s.args[0]))


def _sigmoid(run: Run, s: Step) -> Any:
    return run.ops.sigmoid(s.site, run.get(s.args[0]))


def _drop(run: Run, s: Step) -> Any:
    return run.ops.drop(run.module(s.target), run.get(s.args[0]))


def _drop_call(run: Run, s: Step) -> Any:
    return run.ops.drop(s.target, run.get(s.args[0]))


def _module(run: Run, s: Step) -> Any:
    return run.module(s.target)(run.get(s.args[0]))


def _matmul(run: Run, s: Step) -> Any:
    return run.ops.matmul(s.site, *run.get(s.args))


def _softmax(run: Run, s: Step) -> Any:
    x, dim = run.get(s.args[0]), s.target
    if dim == -1:
        return run.ops.softmax(s.site, x)
    turned = run.ops.rearrange(f"{s.site}.in", x, lambda t: t.transpose(dim, -1))
    return run.ops.rearrange(f"{s.site}.out", run.ops.softmax(s.site, turned), lambda t: t.transpose(dim, -1))


def _attention(run: Run, s: Step) -> Any:
    """The fused kernel, or, for an op set that must see the products, the score pipeline."""
    q, k, v = run.get(s.args)
    bias, dropout, scale = (run.get(s.kwargs[key]) for key in ("bias", "dropout", "scale"))
    scale = run.ops.shape(q)[-1] ** -0.5 if scale is None else scale
    if run.ops.fused:
        return run.ops.attention(s.site, q, k, v, scale=scale, bias=bias, dropout=dropout)
    if bias is not None and not bias.is_floating_point():
        phases = NO_PHASES.plus_mask(bias)
    else:
        phases = NO_PHASES if bias is None else NO_PHASES.with_(model_bias=bias)
    drop = nn.Dropout(dropout) if dropout else None
    return attend(run.ops, s.site, q, k, v, scale=scale, phases=phases, fused=False, dropout=drop)[0]


def _add(run: Run, s: Step) -> Any:
    """Two tensors; a parameter comes second and enters the arithmetic of the other."""
    first, second = sorted(s.args, key=lambda a: isinstance(a, Stored))
    x, y = run.get(first), run.get(second)
    if isinstance(second, Stored):
        y = run.ops.param(f"{s.site}.param", y, x)
    return run.ops.add(s.site, x, y)


def _mul(run: Run, s: Step) -> Any:
    first, second = sorted(s.args, key=lambda a: isinstance(a, Stored))
    return run.ops.mul(s.site, run.get(first), run.get(second))


def _scale(run: Run, s: Step) -> Any:
    return run.ops.scale(s.site, *run.get(s.args))


def _cat(run: Run, s: Step) -> Any:
    return run.ops.cat(s.site, run.get(s.args[0]))


def _move(run: Run, s: Step) -> Any:
    x, *args = run.get(s.args)
    move, kwargs = s.target, run.get(s.kwargs)  # a name of its own: older compilers take `s.target(...)` for a method
    return run.ops.rearrange(s.site, x, lambda t: move(t, *args, **kwargs))


def _compute(run: Run, s: Step) -> Any:
    function = s.target
    return function(*run.get(s.args), **run.get(s.kwargs))


HANDLERS: dict[str, Callable[[Run, Step], Any]] = {
    "conv": _conv,
    "linear": _linear,
    "norm": _norm,
    "act": _act,
    "act_call": _act_call,
    "sigmoid": _sigmoid,
    "drop": _drop,
    "drop_call": _drop_call,
    "module": _module,
    "matmul": _matmul,
    "softmax": _softmax,
    "attention": _attention,
    "add": _add,
    "mul": _mul,
    "scale": _scale,
    "cat": _cat,
    "move": _move,
    "compute": _compute,
}
