"""A model's forward as a graph of operations, recorded by running it on tensors without values.

The forward runs twice, with two batch sizes, under fake tensors (shapes and dtypes, no values). Every call into torch
becomes a step; modules that are one operation (convolution, linear, norm, activation, dropout) become a step that holds
their path. A whole number that differs between the two runs depends on the batch and is kept as `a · batch + b`;
everything else that differs means that the forward asks for its batch size in a way that cannot be replayed: refused.
Parameters and buffers are kept by path and read at each run, so nothing recorded can grow stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from leanvit.anatomy.traced.rules import CACHES, call_rule, module_rule, runs_whole
from leanvit.errors import Refused

BATCHES = (3, 5)  # primes that are rare as widths; a number is told apart by both runs, never by one


@dataclass(frozen=True)
class Value:
    """The result of a step, by number; 0 is the input."""

    index: int


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer of the model, by path."""

    path: str


@dataclass(frozen=True)
class PerBatch:
    """A whole number that depends on the batch: `factor · batch + offset`."""

    factor: int
    offset: int


@dataclass(frozen=True)
class Part:
    """One of the several tensors that a cut (chunk, split, unbind) gives."""

    cut: Callable[..., Any]
    index: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cut(*args, **kwargs)[self.index]


@dataclass(frozen=True)
class Step:
    """One operation. `args` and `kwargs` hold numbers, `Value`, `Stored`, `PerBatch`, and lists of them."""

    kind: str  # how to run it: a key of `traced_run.HANDLERS`
    site: str  # path of the module that ran it, kind and running number; of a module: its path
    target: Any  # a module's path, a function, or a module without parameters
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int  # number of the result
    frees: tuple[int, ...] = ()  # results that nothing needs afterwards


@dataclass(frozen=True)
class Graph:
    """Steps in order, and the result: a `Value` or a nest of them."""

    steps: tuple[Step, ...]
    result: Any
    size: int  # how many numbered results


def record(model: nn.Module, method: str, like: Tensor, kwargs: Mapping[str, Any]) -> Graph:
    """Record `model.<method>(x, **kwargs)` for x shaped as `like` (B, ...) whatever its batch.

    Raises:
        Refused: a module, a function or a tensor in it that cannot be replayed (named).
    """
    with _disable_current_modes(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = [torch.empty(n, *map(int, like.shape[1:]), dtype=like.dtype, device=like.device) for n in BATCHES]
        first, second = (_Recording(model).run(method, x, kwargs) for x in inputs)
    torch.clear_autocast_cache()  # it may hold casts of weights that were made without values
    return _with_frees(_merged(first, second))


@dataclass
class _Recording(TorchFunctionMode):
    """One run of a forward that notes each operation."""

    model: nn.Module
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, int] = {}  # id of a tensor -> number of the value that it holds now
        self.alive: list[Tensor] = []  # ids must not be given to another tensor
        self.count = 0
        self.paths = [""]
        self.sites: dict[str, int] = {}
        self.stored = {id(t): path for path, t in _state_of(self.model)}

    def run(self, method: str, x: Tensor, kwargs: Mapping[str, Any]) -> Graph:
        self._numbered(x)
        with _instrumented(self.model, self._forward_of), self:
            out = getattr(self.model, method)(x, **kwargs)
        return Graph(tuple(self.steps), self._encoded(out), self.count)

    # --- calls into torch --------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = call_rule(func, args, kwargs, out, where=self.paths[-1] or "the model")
        if rule is None:
            return out
        operands = rule.arguments(self._encoded(tuple(args)), self._encoded(kwargs))
        site = self._site(rule.kind.removesuffix("_call"))
        for i, part in enumerate([out] if isinstance(out, Tensor) else out):
            one = isinstance(out, Tensor)
            at, target = (site, rule.target) if one else (f"{site}.{i}", Part(rule.target, i))
            self._add(rule.kind, at, target, *operands, part)
        return out

    def _add(self, kind: str, site: str, target: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        self.steps.append(Step(kind, site, target, args, kwargs, self._numbered(out)))

    def _numbered(self, t: Tensor) -> int:
        self.alive.append(t)
        self.numbers[id(t)] = self.count
        self.count += 1
        return self.count - 1

    def _site(self, kind: str) -> str:
        name = ".".join(part for part in (self.paths[-1], kind) if part)
        self.sites[name] = self.sites.get(name, 0) + 1
        return f"{name}{self.sites[name]}"

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.numbers:
                return Value(self.numbers[id(value)])
            if id(value) in self.stored:
                return Stored(self.stored[id(value)])
            raise Refused(
                f"{self.paths[-1] or 'the model'} uses a tensor {tuple(value.shape)} that is neither a parameter, a "
                "buffer nor computed from the image"
            )
        if isinstance(value, list | tuple):
            return tuple(self._encoded(v) for v in value)
        if isinstance(value, dict):
            return {key: self._encoded(v) for key, v in value.items()}
        return value

    # --- modules -----------------------------------------------------------------

    def _forward_of(self, path: str, module: nn.Module) -> Callable[..., Any]:
        original = module.forward
        rule = module_rule(path, module, self.model)

        def follow(*args: Any, **kwargs: Any) -> Any:
            self.paths.append(path)
            try:
                return original(*args, **kwargs)
            finally:
                self.paths.pop()

        def note(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert rule is not None
            if args or kwargs:
                raise Refused(f"{path} ({type(module).__name__}) is called with more than one tensor")
            if rule.kind == "identity":
                return x
            number = self._encoded(x)
            with torch._C.DisableTorchFunction():
                out = rule.shape(module, x)
            used = self.sites[path] = self.sites.get(path, 0) + 1
            if used > 1 and rule.kind != "norm" and any(True for _ in module.parameters()):  # one site, one weight
                raise Refused(f"{path} ({type(module).__name__}) runs {used} times in one forward")
            site = path if used == 1 else f"{path}.{used}"
            self._add(rule.kind, site, path, (number,), {}, out)
            if isinstance(module, BatchNormAct2d):  # its norm is done; its own children follow
                out = module.act(module.drop(out))
            return out

        return follow if rule is None else note


def _state_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _instrumented(model: nn.Module, forward_of: Callable[[str, nn.Module], Any]) -> Iterator[None]:
    """Forwards replaced on each module of this model; caches of timm emptied before, and put back as found."""
    modules = list(model.named_modules())
    caches = [(vars(m), name, vars(m)[name]) for _, m in modules for name in CACHES if name in vars(m)]
    try:
        for namespace, name, _ in caches:
            namespace[name] = {}
        whole = tuple(f"{path}." for path, module in modules if runs_whole(module))
        for path, module in modules:
            if path and not (whole and path.startswith(whole)):
                vars(module)["forward"] = forward_of(path, module)
        yield
    finally:
        for _, module in modules:
            vars(module).pop("forward", None)
        for namespace, name, kept in caches:
            namespace[name] = kept


# --- two recordings become one ---------------------------------------------------------


def _merged(first: Graph, second: Graph) -> Graph:
    if [(s.kind, s.site) for s in first.steps] != [(s.kind, s.site) for s in second.steps]:
        raise Refused("the forward takes another way for another batch size")
    steps = tuple(
        replace(a, args=_both(a.args, b.args, a.site), kwargs=_both(a.kwargs, b.kwargs, a.site))
        for a, b in zip(first.steps, second.steps, strict=True)
    )
    return Graph(steps, _both(first.result, second.result, "the result"), first.size)


def _both(a: Any, b: Any, site: str) -> Any:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_both(x, y, site) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _both(a[key], b[key], site) for key in a}
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*(_both(getattr(a, k), getattr(b, k), site) for k in ("start", "stop", "step")))
    if type(a) is type(b) and a == b:
        return a
    if type(a) is int and type(b) is int:
        factor, left = divmod(b - a, BATCHES[1] - BATCHES[0])
        if left == 0:
            return PerBatch(factor, a - factor * BATCHES[0])
    raise Refused(f"{site} depends on the batch size in a way that cannot be replayed: {a!r} and {b!r}")


def _with_frees(graph: Graph) -> Graph:
    """Say for each step what it used last; what the result needs is kept, and steps that nothing needs are left out."""
    kept = set(_values(graph.result))
    seen = set(kept)
    steps = []
    for step in reversed(graph.steps):
        used = set(_values((step.args, step.kwargs)))
        in_place = step.kind == "compute" and getattr(step.target, "__name__", "").endswith("_")
        if step.out not in seen and not in_place:
            continue
        steps.append(replace(step, frees=tuple(sorted(used - seen))))
        seen |= used
    return replace(graph, steps=tuple(reversed(steps)))


def _values(tree: Any) -> Iterator[int]:
    if isinstance(tree, Value):
        yield tree.index
    elif isinstance(tree, tuple):
        for part in tree:
            yield from _values(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from _values(part)
