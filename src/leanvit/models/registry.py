"""Models of the papers' own: registered with timm by the module that has them, when one is first named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from torch import nn

from leanvit.cards import import_code, models, papers
from leanvit.errors import BadInput, unknown

ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")  # of training checkpoints: an average first, as timm


def require_model(name: str, *, kind: str = "timm model") -> None:
    """Raise `BadInput`, with the nearest names, unless timm or leanvit can build a model of this name."""
    base = name.split(".")[0]
    own = models()
    if base in own:
        import_code(own[base].module)
    if timm.is_model(base):
        return
    if base in papers() and papers()[base].models:
        raise BadInput(f"{kind} {name!r} is an architecture; accepted: {', '.join(papers()[base].models)}")
    raise unknown(kind, name, {*timm.list_models(), *own})


def checkpoint_filter(name: str) -> Callable[..., dict[str, Any]] | None:
    """What brings an official checkpoint of one of leanvit's own models to its names; None for any other name."""
    card = models().get(name.split(".")[0])
    return None if card is None else getattr(import_code(card.module), "checkpoint_filter_fn", None)


def build(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A paper's model by its name, for a paper whose models are variants of another paper's.

    Args:
        name: one of `leanvit.cards.models`.
        kwargs: arguments of the model. `variant`, where the entry takes it: the name that timm knows the model by.
    """
    model: nn.Module = getattr(import_code(models()[name].module), name)(pretrained, **kwargs)
    return model
