"""Opening and closing models: one file per family, each with a whitelist of what it understands."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

from leanvit.anatomy.adapters import eva, hybrid, plain_vit, relpos, swin
from leanvit.anatomy.adapters.parts import opens_itself
from leanvit.anatomy.adapters.refusals import reason
from leanvit.anatomy.model import OpenModel
from leanvit.arguments import require_model
from leanvit.errors import BadInput, Refused

# each: `understands(model)`, `open_family(model)`, `close_family(opened, source)`
FAMILIES = (plain_vit, eva, relpos, swin, hybrid)


def open_model(model: nn.Module, *, check: bool = True) -> OpenModel:
    """Open a timm model: the same children and parameters (by reference), run by leanvit's text.

    Args:
        model: a timm model of a supported family. It keeps working; parameters are shared with the opened one.
        check: compare one forward pass of a random image bit for bit.

    Raises:
        BadInput: no model at all, but a name or a path.
        Refused: a family, child or attribute that no adapter understands (named), or a forward that differs.
    """
    if isinstance(model, OpenModel):
        return model
    require_model(model)
    for family in _adapters(model):
        if family.understands(model):
            opened = family.open_family(model)
            _hand_on(model, opened)
            if check:
                _compare(model, opened)
            return opened
    kinds = "; ".join(family.SUPPORTED for family in FAMILIES)
    raise Refused(
        f"{_named(model)} is not of a family that leanvit can open: {reason(model)}. "
        f"Supported: {kinds}; the architectures of `leanvit methods`"
    )


def close_model(opened: OpenModel) -> nn.Module:
    """The timm model again, with the opened one's children (new classifiers and changed weights included).

    What was set on the opened one goes along as attributes: `classes`, `task`, `preprocess`.

    Raises:
        BadInput: no opened model.
        Refused: the model holds something that timm's class cannot run (steps, op sets, unequal q and v widths).
    """
    require_model(opened, "opened")
    if not isinstance(opened, OpenModel):
        raise BadInput(f"opened is a {type(opened).__name__}; accepted: a model that open_model or compress gave")
    (source,) = opened._source
    own = set() if source is None else set(source.modules())  # a model may be built with steps: those it runs itself
    held = sorted({step.source or type(step).__name__ for step in opened.steps() if step not in own})
    if held:
        raise Refused(f"cannot close: the blocks hold steps of {', '.join(held)}, which timm's class would not run")
    replaced = sorted({block.source for block in opened.blocks if block.source})
    if replaced:
        raise Refused(f"cannot close: {', '.join(replaced)} put other blocks in, which timm's class would not run")
    if isinstance(opened.ops, nn.Module):
        raise Refused(f"cannot close: the op set {type(opened.ops).__name__} is part of the model")
    if opened.exits is not None:
        raise Refused(f"cannot close: the model holds exits of {opened.exits.source}, which timm's class would not run")
    if source is None:
        raise Refused("cannot close: this model was not opened from a timm model")
    for family in _adapters(source):
        if family.understands(source):
            closed = family.close_family(opened, source)
            _hand_on(opened, closed)
            return closed
    raise Refused(f"cannot close {_named(source)}")


def _adapters(model: nn.Module) -> Iterator[Any]:
    """What may open a model: the adapter that its class names (`OPENS`), or else those of timm's families."""
    named = opens_itself(type(model))
    if named is None:
        yield from FAMILIES
    else:
        yield import_module(named)


def _hand_on(given: nn.Module, made: Any) -> None:
    """What a model declares of its outputs and images, where it does."""
    for name in ("classes", "task", "preprocess"):
        if value := getattr(given, name, None):
            setattr(made, name, tuple(value) if name == "classes" else value)


@torch.no_grad()
def _compare(model: nn.Module, opened: OpenModel) -> None:
    """Random images through both, in eval mode; refuses on the first different bit."""
    like = next(model.parameters())
    noise = torch.randn(max(opened.PROBES), *opened.probe_size(), generator=torch.Generator().manual_seed(0))
    images = noise.to(device=like.device, dtype=like.dtype)
    training = [(m, m.training) for m in (*model.modules(), *opened.modules())]
    try:
        model.eval()
        opened.eval()
        pairs = [(model(images[:n]), opened(images[:n])) for n in opened.PROBES]
    finally:
        for module, mode in training:
            module.training = mode
    if not all(_same(want, got) for want, got in pairs):
        raise Refused(
            f"{_named(model)}: the opened model's output differs from the original's: something in it is not understood"
        )


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _named(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") if isinstance(cfg, dict) else getattr(cfg, "architecture", None)
    return f"{type(model).__name__} ({name})" if name else type(model).__name__
