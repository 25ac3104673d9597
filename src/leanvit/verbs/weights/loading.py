"""The whole: a weights file into a model, strictly, with one line of what was taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from leanvit.verbs.weights.adapting import fitted
from leanvit.verbs.weights.choosing import choose
from leanvit.verbs.weights.describing import looks, looks_of
from leanvit.verbs.weights.flax import flax_looks, flax_state
from leanvit.verbs.weights.reading import Held, read_weights

_PLAIN = {"beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos"}  # take img_size and patch_size


def load_weights(
    model: nn.Module,
    file: Path | Held,
    *,
    name: str = "",
    option: str = "--weights",
    adapt: bool = False,
    log: Callable[[str], None] | None = None,
) -> None:
    """Load weights as timm's download does: filter of the architecture, then strictly; nothing is left fresh unsaid.

    The model's weights are found in any entry and under any prefix (`choose`). Nothing changes unless all of it fits.

    Args:
        file: its path, or what `read_weights` gave.
        name: the model's timm name, or one of leanvit's own, for the layouts that its papers' repositories have.
        adapt: take weights for other classes (or none), another image size, other channels; each is reported.
        log: called with what was taken from a file that holds more than the weights, or has other names.

    Raises:
        BadInput: there is no such file. CheckpointError: it is no weights file, or does not fit; says what does not.
    """
    held = file if isinstance(file, Held) else read_weights(file, option=option)
    host = getattr(model, "_source", (None,))[0] or model  # the timm model, whose parameters the opened one shares
    if held.flax:
        found = flax_state(held, host, adapt=adapt, option=option)
        described = [f"{len(held.tensors)} arrays"]
    else:
        choice = choose(held, host, name=name)
        found = fitted(choice, host, held, adapt=adapt, option=option)
        described = [choice.summary() + (f", an official checkpoint of {name}" if choice.official else "")]
        described = described if choice.chosen or choice.official or found["notes"] else []
    model.load_state_dict(found["state"], strict=True)
    if log is not None and described:
        log(f"{held.path.name}: {'; '.join([*described, *found['notes']])}")


def as_in_file(held: Held, host: nn.Module, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a plain ViT that the file has otherwise than `host` and the user did not give."""
    base = name.split(".")[0]
    if not timm.is_model(base) or timm.models.model_entrypoint(base).__module__.split(".")[-1] not in _PLAIN:
        return {}
    file = flax_looks(held) if held.flax else looks(choose(held, host, name=name).raw, ())
    model = looks_of(host, ())
    wanted = {"patch_size": (file.patch, model.patch), "img_size": (file.image, model.image)}
    return {
        key: list(there) if there[0] != there[1] else there[0]
        for key, (there, here) in wanted.items()
        if there is not None and here is not None and there != here and key not in given
    }
