"""Where a lean model comes from: its root (timm name and constructor arguments) and the ordered plans.

The root must be given or proven: timm does not always remember `img_size`, `depth` and the like, and a run that could
not be rebuilt would only be found out when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.parts.blocks import SLOTS
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.measure.machine import memory_bytes
from leanvit.models.registry import require_model
from leanvit.recipe.compat import both_reduce, reducing, refuse_behind_blends
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import Finishes, Method, Prepares
from leanvit.recipe.structure import check_structure

# Arguments of timm.create_model that load something, or that build another kind of object than the model itself.
FORBIDDEN = frozenset(
    {
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
        "features_only",
        "out_indices",
        "scriptable",
        "exportable",
        "no_jit",
        "hf_hub_id",
        "device",
        "dtype",
    }
)
LIMITS = {"depth": 512, "img_size": 16384, "patch_size": 1024, "embed_dim": 65536, "num_heads": 1024}
LARGEST = 10_000_000
LEAST = {"depth": 1, "img_size": 1, "patch_size": 1, "embed_dim": 1, "num_heads": 1, "in_chans": 1, "num_classes": 0}


@dataclass(frozen=True)
class Root:
    """A model that timm can build: `timm.create_model(name, **kwargs)`. All JSON."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_model(self.name)
        for key, value in self.kwargs.items():
            _check_argument(key, value)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kwargs": dict(self.kwargs)}


@dataclass(frozen=True)
class History:
    """A root and the plans that were applied to it, in order."""

    root: Root
    plans: tuple[Plan, ...] = ()

    def plus(self, plan: Plan) -> History:
        return History(self.root, (*self.plans, plan))


def _check_argument(key: str, value: Any) -> None:
    if key in FORBIDDEN:
        raise BadInput(f"constructor argument {key!r} is not part of a root: it loads or wraps, it does not build")
    flat = [n for v in _several(value) for n in _several(v)]  # lists of lists too: a window (rows, columns) per stage
    if not all(isinstance(v, bool | int | float | str | None) for v in flat):
        raise BadInput(f"constructor argument {key} is {value!r}: a root holds numbers, text and lists of them only")
    limit = LIMITS.get(key, LARGEST)
    too_small = [v for v in flat if isinstance(v, int | float) and not isinstance(v, bool) and v < LEAST.get(key, v)]
    if too_small:
        raise BadInput(f"constructor argument {key} is {value!r}; accepted: {LEAST[key]} or more")
    too_large = [v for v in flat if isinstance(v, int) and not isinstance(v, bool) and v > limit]
    if too_large:
        raise BadInput(f"constructor argument {key} is {value!r}; accepted: up to {limit}")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _tupled(value: Any) -> Any:
    """Lists as tuples, as timm's constructors tell one size from several."""
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


def create(root: Root, *, pretrained: bool = False, device: str = "cpu") -> OpenModel:
    """Build a root with fresh weights (or timm's pretrained ones) and open it; its history is the root alone.

    Raises `BadInput` for arguments that timm cannot build a model with, or one that is larger than this machine.
    """
    if device != "meta":
        _refuse_larger_than_memory(root, _built(root, pretrained=False, device="meta"))
    built = _built(root, pretrained=pretrained, device=device)
    try:
        opened = open_model(built, check=device != "meta")
    except RuntimeError as error:  # the one forward pass of opening
        raise BadInput(f"{root.name} with {_given(root)} cannot run: {error}") from error
    opened.history = History(root)
    return opened


class _Valueless(TorchFunctionMode):
    """Leaves out what only fills a tensor of the meta device, which holds no values.

    Initial values are most of the time that building there takes: PyTorch walks through `clamp_`, of every truncated
    normal, in Python.
    """

    FILLS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_, Tensor.mul_, Tensor.add_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.FILLS and args[0].is_meta and not any(isinstance(a, Tensor) for a in args[1:]):
            return args[0]
        return func(*args, **(kwargs or {}))


def _built(root: Root, *, pretrained: bool, device: str) -> nn.Module:
    kwargs: dict[str, Any] = {k: _tupled(v) for k, v in root.kwargs.items()}
    try:
        with torch.device(device), _Valueless() if device == "meta" else nullcontext():
            return timm.create_model(root.name, pretrained=pretrained, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = str(error) or type(error).__name__
        raise BadInput(f"timm cannot build {root.name} with {_given(root)}: {reason}") from error


def _refuse_larger_than_memory(root: Root, planned: nn.Module) -> None:
    needed = sum(t.numel() * t.element_size() for t in (*planned.parameters(), *planned.buffers()))
    memory = memory_bytes()
    if memory is not None and needed > memory:
        raise BadInput(
            f"{root.name} with {_given(root)} has weights of {needed / 2**30:.0f} GiB; this machine has "
            f"{memory / 2**30:.0f} GiB of memory"
        )


def _given(root: Root) -> str:
    return ", ".join(f"{k}={v}" for k, v in root.kwargs.items()) or "no arguments"


def root_of(model: nn.Module, *, name: str | None = None, kwargs: Mapping[str, Any] | None = None) -> Root:
    """The root of a dense model, given or read from timm's own record, and proven by building it once more.

    Args:
        model: a timm model or an opened one to which no method was applied.
        name: timm name; default: what timm recorded.
        kwargs: constructor arguments; default: what timm recorded.

    Raises:
        Refused: the rebuilt model differs (the first differences are named): give the missing arguments.
    """
    name = name or _recorded_name(model)
    if not name:
        raise BadInput("the timm name of the model is not known: give root=Root(name, kwargs)")
    given = dict(getattr(model, "_model_args", {}) if kwargs is None else kwargs)
    given["num_classes"] = model.num_classes  # a classifier may have been reset since
    root = Root(name, {k: _listed(v) for k, v in given.items() if k not in FORBIDDEN})
    _prove(root, open_model(model, check=False))
    return root


def _recorded_name(model: nn.Module) -> str | None:
    """The timm name that a model says, with its tag where that is not the architecture's own first one."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    given = cfg if isinstance(cfg, Mapping) else vars(cfg)
    architecture, tag = given.get("architecture"), given.get("tag")
    if not architecture or not tag or not timm.is_model(architecture):
        return architecture
    usual = timm.get_pretrained_cfg(architecture)
    known = timm.get_pretrained_cfg(f"{architecture}.{tag}", allow_unregistered=False)
    return architecture if known is None or usual is None or usual.tag == tag else f"{architecture}.{tag}"


def _prove(root: Root, model: OpenModel) -> None:
    """Refuse unless building the root gives a model of the same make: names, shapes, layers and settings."""
    built = create(root, device="meta")
    differences = [f"{key}: {was} here, {now} when rebuilt" for key, was, now in _differences(model, built)]
    if differences:
        more = f" (and {len(differences) - 4} more)" if len(differences) > 4 else ""
        raise Refused(
            f"{root.name} with {json.dumps(dict(root.kwargs))} does not rebuild this model: "
            f"{'; '.join(differences[:4])}{more}. Give root=Root(name, kwargs) with the arguments it was made with"
        )


def _differences(model: OpenModel, built: OpenModel) -> list[tuple[str, Any, Any]]:
    ours, theirs = model.make(), built.make()
    keys = [*ours, *(k for k in theirs if k not in ours)]
    return [(k, ours.get(k, "absent"), theirs.get(k, "absent")) for k in keys if ours.get(k) != theirs.get(k)]


def replay(root: Root, plans: tuple[Plan, ...], *, device: str = "cpu") -> OpenModel:
    """Build a root and replay the shapes of plans on it, with the temporary parts of those that are unfinished.

    Values are those of a fresh model: load them next.
    """
    model = create(root, device=device)
    for plan in plans:
        shape(model, plan, again=True)
    return model


def shape(model: OpenModel, plan: Plan, *, again: bool = False) -> None:
    """Build one plan's structure on a model and write it into the history. `again`: what was built once is replayed."""
    m = plan.method()
    check_structure(m, plan.structure)
    try:
        if again and not plan.finished:
            _prepare(model, m)
        m.shape(model, dict(plan.structure))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"the structure of plan {plan.slug!r} does not fit: {type(error).__name__}: {error}"
        ) from error
    _check_slots(model)
    model.history = model.history.plus(plan)


def _prepare(model: OpenModel, m: Method) -> None:
    if not isinstance(m, Prepares) or not isinstance(m, Finishes):
        raise CheckpointError(f"plan {m.slug!r} is unfinished, and its method puts nothing in that could be taken out")
    m.prepare(model)


@torch.no_grad()
def finish(model: OpenModel) -> None:
    """Take the temporary parts of unfinished plans out of a model, in place; those that came last go first."""
    plans = list(model.history.plans)
    for i, plan in reversed(list(enumerate(plans))):
        if not plan.finished:
            m = plan.method()
            assert isinstance(m, Finishes)  # as `shape` saw to
            m.finish(model, dict(plan.structure))
            plans[i] = replace(plan, finished=True)
    model.history = History(model.history.root, tuple(plans))


def _check_slots(model: OpenModel) -> None:
    """Two methods may not put reducing steps into one slot of one block: their scores would not mean what they say."""
    for block in model.blocks:
        for slot in SLOTS:
            sources = sorted({step.source for step in getattr(block, slot) if step.reduces})
            if len(sources) > 1:
                raise Refused(both_reduce(sources, block.name, slot))
    refuse_behind_blends(model, [(*place, step.source, step.blends) for place, step in reducing(model)])
