"""AugReg's `.npz` files, in the layout of Flax: read by timm's own text into a fresh plain ViT, and checked."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.errors import CheckpointError
from leanvit.verbs.weights.adapting import Fitted, compare, convert, fresh, misfit, modules_named
from leanvit.verbs.weights.choosing import Choice
from leanvit.verbs.weights.describing import Looks, looks_of, short
from leanvit.verbs.weights.reading import Held


def flax_state(held: Held, host: nn.Module, *, adapt: bool, option: str) -> dict[str, Any]:
    """As `fitted`, of an `.npz` in the layout of AugReg, through timm's own reading into a fresh plain ViT."""
    classifiers = modules_named(host, "classifier")
    file, model = flax_looks(held), looks_of(host, classifiers)
    found = Fitted({})
    if not isinstance(host, VisionTransformer):
        raise CheckpointError(f"{held.what} is in the layout of Flax, which is read into plain ViTs of timm only")
    for name in ("patch", "image", "channels"):
        if file[name] != model[name] and file[name] is not None:
            there, here = short(file[name]), short(model[name])
            found.adapted.append((f"{name} is {there}, not {here}", f"{name} adapted, {there} to {here}"))
    found.problems += [
        f"{name} is {file[name]} in the file, {model[name]} in the model"
        for name in ("depth", "width")
        if file[name] != model[name]
    ]
    own = host.state_dict()
    if not found.problems:
        found.tensors = _read_flax(host, held)
        for classifier in classifiers:
            keys = [k for k in (f"{classifier}.weight", f"{classifier}.bias") if k in own and k not in found.tensors]
            if keys:
                found.adapted.append(fresh(classifier, file.classes, model.classes))
                found.tensors |= {key: own[key] for key in keys}
        compare(found, own, held)
    if found.problems or (found.adapted and not adapt):
        choice = Choice("", "", held.tensors, held.tensors, False, ())
        raise CheckpointError(misfit(found, choice, host, held, adapt=adapt, option=option, file=file))
    convert(found, own, host, held.what)
    return {"state": {**own, **found.tensors}, "notes": ["the layout of Flax (AugReg)", *found.done]}


def flax_looks(held: Held) -> Looks:
    """What an AugReg file looks like."""
    shapes = {key: tuple(value.shape) for key, value in held.tensors.items()}

    def by_end(end: str) -> Any:
        return next((shape for key, shape in shapes.items() if key.endswith(end)), None)

    blocks = [int(n[1]) for key in shapes if (n := re.search(r"encoderblock_(\d+)/", key))]
    stem, positions, head = by_end("embedding/kernel"), by_end("pos_embedding"), by_end("head/kernel")
    scanned = by_end("encoderblock/LayerNorm_0/scale")
    patch = (stem[0], stem[1]) if stem and len(stem) == 4 else None
    tokens = 1 if any(key.endswith("cls") for key in shapes) else 0
    rows = positions[-2] if positions else 0
    side = next((int(n**0.5) for n in (rows - tokens, rows) if n > 0 and int(n**0.5) ** 2 == n), None)
    return Looks(
        depth=max(blocks) + 1 if blocks else scanned[0] if scanned else None,
        width=stem[-1] if stem else None,
        patch=patch,
        image=(side * patch[0], side * patch[1]) if side and patch else None,
        channels=stem[-2] if stem else None,
        classes=head[-1] if head else 0,
    )


@torch.no_grad()
def _read_flax(host: VisionTransformer, held: Held) -> dict[str, Tensor]:
    """What timm takes from the file: what it leaves alone stays the NaN that the copy is filled with."""
    copied = copy.deepcopy(host)
    for parameter in copied.parameters():
        parameter.fill_(float("nan"))
    try:
        copied.load_pretrained(str(held.path))
    except Exception as error:  # a layout that its text did not foresee breaks anywhere
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{held.what} does not fit: timm cannot read it into this model: {reason}") from error
    return {key: value for key, value in copied.state_dict().items() if not bool(value.isnan().all())}
