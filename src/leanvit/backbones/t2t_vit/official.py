"""Official checkpoints under our names, at the model's image size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from leanvit.backbones.t2t_vit.model import sinusoid
from leanvit.models.registration import renamed, weights_of


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint for `model`: whole files are unwrapped, positions brought to the model's image size.

    Raises:
        ValueError: tensors that are left over on either side (the first are named); another number of input channels,
            which a soft split cannot take over from three.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in weights_of(state).items()}
    own = model.state_dict()
    found = renamed(plain, model, lambda name: None if name.startswith("head.") and name not in own else name)
    _require_channels(found, own)
    return found | {"pos_embed": _positions(found["pos_embed"], model)}


def _require_channels(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    name = "tokens_to_token.attention1.norm1.weight"  # a weight for each pixel of a window of 7 x 7
    has, wants = found[name].numel() // 49, own[name].numel() // 49
    if has != wants:
        raise ValueError(
            f"the checkpoint is of images with {has} channels, the model takes {wants} (in_chans): the windows of a "
            "soft split are normed over all their channels, so its weights cannot be summed or repeated"
        )


def _positions(table: Tensor, model: Any) -> Tensor:
    """The checkpoint's table (1, 1 + N, D) at the model's grid; a square grid is assumed of the checkpoint."""
    if table.shape[1] == model.pos_embed.shape[1]:
        return table
    if model.tokens_to_token.resize_positions == "sinusoid":
        return sinusoid(model.pos_embed.shape[1], table.shape[2]).to(table)
    return resample_abs_pos_embed(table, new_size=list(model.tokens_to_token.grid_size), num_prefix_tokens=1)
