"""Where a lean model comes from: its root (timm name and constructor arguments) and the ordered plans.

The root must be given or proven: timm does not always remember `img_size`, `depth` and the like, and a run that could
not be rebuilt would only be found out when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.composite import Composite, make_foreign, make_part, make_wiring
from leanvit.anatomy.parts.blocks import SLOTS
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.measure.machine import memory_bytes
from leanvit.recipe.compat import both_reduce, reducing, refuse_behind_blends, taken_away
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import Finishes, Method, Prepares
from leanvit.recipe.roots import FORBIDDEN, AnyRoot, CompositeRoot, ForeignRoot, Root, given
from leanvit.recipe.structure import check_structure
from leanvit.values import as_lists, as_tuples


@dataclass(frozen=True)
class History:
    """A root and the plans that were applied to it, in order."""

    root: Root | CompositeRoot
    plans: tuple[Plan, ...] = ()


def create(root: Root | CompositeRoot, *, pretrained: bool = False, device: str = "cpu") -> OpenModel:
    """Build a root with fresh weights (or timm's pretrained ones) and open it; its history is the root alone.

    Raises `BadInput` for arguments that timm cannot build a model with, or one that is larger than this machine.
    """
    if isinstance(root, CompositeRoot):
        parts = {name: create_part(part, device=device) for name, part in root.parts.items()}
        composite = Composite(make_wiring(root.wiring, root.arguments), parts)
        composite.history = History(root)
        return composite
    if root.is_part:
        raise BadInput(f"{root.name} is a part of models, no image model by itself: give it to a wiring")
    if device != "meta":
        _refuse_larger_than_memory(root, _built(root, pretrained=False, device="meta"))
    built = _built(root, pretrained=pretrained, device=device)
    try:
        opened = open_model(built, check=device != "meta")
    except RuntimeError as error:  # the one forward pass of opening
        raise BadInput(f"{root.name} with {given(root)} cannot run: {error}") from error
    opened.history = History(root)
    return opened


def create_part(root: AnyRoot, *, device: str = "cpu") -> nn.Module:
    """Build what a root stands for as a part: opened, with a history, or a foreign module, always on the CPU."""
    if isinstance(root, ForeignRoot):
        module = make_foreign(root.name, root.config)
        module.foreign_root = root  # type: ignore[assignment]  # what it is built of, for another composite
        return module
    if not isinstance(root, Root) or not root.is_part:
        return create(root, device=device)
    part = make_part(root.name, root.kwargs, device=device)
    part.history = History(root)
    return part


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
    kwargs: dict[str, Any] = {k: as_tuples(v) for k, v in root.kwargs.items()}
    try:
        with torch.device(device), _Valueless() if device == "meta" else nullcontext():
            return timm.create_model(root.name, pretrained=pretrained, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = str(error) or type(error).__name__
        raise BadInput(f"timm cannot build {root.name} with {given(root)}: {reason}") from error


def _refuse_larger_than_memory(root: Root, planned: nn.Module) -> None:
    needed = sum(t.numel() * t.element_size() for t in (*planned.parameters(), *planned.buffers()))
    memory = memory_bytes()
    if memory is not None and needed > memory:
        raise BadInput(
            f"{root.name} with {given(root)} has weights of {needed / 2**30:.0f} GiB; this machine has "
            f"{memory / 2**30:.0f} GiB of memory"
        )


def root_of(model: nn.Module, *, name: str | None = None, kwargs: Mapping[str, Any] | None = None) -> Root:
    """The root of a dense model, given or read from timm's own record, and proven by building it once more.

    Args:
        model: a timm model or an opened one to which no method was applied.
        name: timm name; default: what timm recorded.
        kwargs: constructor arguments; default: what timm recorded.

    Raises:
        Refused: the rebuilt model differs (the first differences are named): give the missing arguments.
    """
    if isinstance(model, Composite):
        raise BadInput(
            "model is of parts, whose roots it does not know: compose(wiring, parts) puts one together with its history"
        )
    name = name or _recorded_name(model)
    if not name:
        raise BadInput("the timm name of the model is not known: give root=Root(name, kwargs)")
    given = dict(getattr(model, "_model_args", {}) if kwargs is None else kwargs)
    given["num_classes"] = model.num_classes  # a classifier may have been reset since
    root = Root(name, {k: as_lists(v) for k, v in given.items() if k not in FORBIDDEN})
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


def replay(root: Root | CompositeRoot, plans: tuple[Plan, ...], *, device: str = "cpu") -> OpenModel:
    """Build a root and replay the shapes of plans on it, with the temporary parts of those that are unfinished.

    Values are those of a fresh model: load them next.
    """
    model = create(root, device=device)
    for plan in plans:
        shape(model, plan, again=True)
    return model


def shape(model: OpenModel, plan: Plan, *, again: bool = False) -> None:
    """Build one plan's structure on a model, or the part that it names, and write it into the history.

    `again`: what was built once is replayed.
    """
    m, part = plan.method(), part_of(model, plan.part)
    check_structure(m, plan.structure)
    try:
        if again and not plan.finished:
            _prepare(part, m)
        m.shape(part, dict(plan.structure))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"the structure of plan {plan.slug!r} does not fit: {type(error).__name__}: {error}"
        ) from error
    _check_slots(part)
    if lost := part.lost_traits():
        raise Refused(taken_away(plan.slug, lost))
    note(model, [*model.history.plans, plan])


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
            m.finish(part_of(model, plan.part), dict(plan.structure))
            plans[i] = replace(plan, finished=True)
    note(model, plans)


def part_of(model: OpenModel, path: str) -> OpenModel:
    """What a plan is applied to: the model, or its opened part of this name (a part of a part: `encoder.backbone`).

    Raises `BadInput` for any other name.
    """
    if not path:
        return model
    name, _, rest = path.partition(".")
    parts = model.opened_parts if isinstance(model, Composite) else {}
    if name not in parts:
        raise BadInput(f"part is {path!r}; accepted: {', '.join(parts) or 'none, the model is no model of parts'}")
    return part_of(cast(OpenModel, parts[name]), rest)


def note(model: OpenModel, plans: Sequence[Plan]) -> None:
    """Write plans into the history, and into that of each part those that are its own."""
    model.history = History(model.history.root, tuple(plans))
    for name, part in model.opened_parts.items() if isinstance(model, Composite) else ():
        note(cast(OpenModel, part), plans_of(name, plans))


def plans_of(name: str, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans of one part, as that part's own."""
    own = [(plan, plan.part.partition(".")) for plan in plans]
    return tuple(replace(plan, part=rest) for plan, (first, _, rest) in own if first == name)


def _check_slots(model: OpenModel) -> None:
    """Two methods may not put reducing steps into one slot of one block: their scores would not mean what they say."""
    for block in model.blocks:
        for slot in SLOTS:
            sources = sorted({step.source for step in getattr(block, slot) if step.reduces})
            if len(sources) > 1:
                raise Refused(both_reduce(sources, block.name, slot))
    refuse_behind_blends(model, [(*place, step.source, step.blends) for place, step in reducing(model)])
