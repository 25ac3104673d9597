"""How leanvit's architectures enter timm's registry, and how their official checkpoints come to timm's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import Tensor, nn

from leanvit.models.registry import ENTRIES

Rename = Callable[[str], str | None]
_NAMED = 3  # names that an error lists


def pretrained_cfg(**given: Any) -> dict[str, Any]:
    """What timm knows of a model: ImageNet at 224x224 unless given; nothing to download."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **given,
    }


def register(entry: Callable[..., Any]) -> Callable[..., Any]:
    """`timm.models.register_model`, for a name that is free. Raises `RuntimeError` where timm has it already."""
    name = entry.__name__
    if timm.is_model(name):
        raise RuntimeError(f"timm has a model {name!r} already: leanvit's would replace it")
    return register_model(entry)


def weights_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training checkpoint, an average first; a bare one as it is."""
    return next((checkpoint[key] for key in ENTRIES if isinstance(checkpoint.get(key), Mapping)), checkpoint)


def renamed(state: Mapping[str, Any], model: nn.Module, rename: Rename) -> dict[str, Tensor]:
    """An official state dict under the names of `model`: what a checkpoint filter gives.

    A state dict that has the model's names already comes back as it is.

    Args:
        state: official names -> tensors, or a training checkpoint that holds them; not changed.
        rename: official name -> name in the model, or None where the model keeps nothing (tables that are computed).

    Raises:
        ValueError: names that are left over on either side; the first are named.
    """
    state = weights_of(state)
    own = set(model.state_dict())
    if own == set(state):
        return dict(state)
    found = {new: tensor for old, tensor in state.items() if (new := rename(old)) is not None}
    strange, missing = sorted(set(found) - own), sorted(own - set(found))
    if strange or missing:
        wrong = [f"it lacks {_few(missing)}"] * bool(missing) + [f"the model has no {_few(strange)}"] * bool(strange)
        raise ValueError(f"the checkpoint is of another model: {'; '.join(wrong)}")
    return found


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
