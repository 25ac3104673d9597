"""Checkpoints of SiT's authors under our names: of LV-ViTs, its teachers, and of slimmed ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from leanvit.models.registration import renamed, weights_of

_TSM = re.compile(r"tsm\.(\d+)\.(?:weight\.)?(scale|[013])(\..+)?")
_PARTS = {"0": "norm", "1": "fc1", "3": "fc2", "scale": "scale"}
_LEFT_OUT = re.compile(r"(rtsm|aux_head)\.|.*dist")  # of the training, of token labelling, of a second teacher


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint for `model`: whole files are unwrapped, positions brought to the model's image size.

    Raises:
        ValueError: tensors that are left over on either side (the first are named).
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in weights_of(state).items()}
    own = model.state_dict()
    slimming = [f"blocks.{i}.after.0" for i, block in enumerate(model.blocks) if len(block.after)]  # type: ignore[union-attr, arg-type]
    found = renamed(plain, model, lambda name: _renamed(name, slimming, own))
    if "pos_embed" in found and found["pos_embed"].shape != own["pos_embed"].shape:
        grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        table = resample_abs_pos_embed(found["pos_embed"], new_size=grid, num_prefix_tokens=model.num_prefix_tokens)  # type: ignore[arg-type]
        found = {**found, "pos_embed": table}
    return found


def _renamed(name: str, slimming: Sequence[str], own: Mapping[str, Tensor]) -> str | None:
    if name not in own and (_LEFT_OUT.match(name) or name.startswith("head.")):
        return None
    match = _TSM.fullmatch(name)
    if match is None or int(match[1]) >= len(slimming):
        return name
    return f"{slimming[int(match[1])]}.{_PARTS[match[2]]}{match[3] or ''}"
