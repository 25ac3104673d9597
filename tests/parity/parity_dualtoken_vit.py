"""Golden cases of DualToken-ViT: the parts that it takes from LightViT and ConvNeXt. Of the whole there is no code."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from leanvit.backbones.dualtoken_vit.lightvit import BiAttnMlp, LightViTStem, ResidualMerge
from leanvit.backbones.dualtoken_vit.parts import DualTokenBlock
from parity.cases import Case, handler


def part(case: Case, name: str, module: nn.Module) -> Any:
    """A part with the official weights of a case, loaded strictly."""
    weights = case.part("weights")
    own = {key.removeprefix(f"{name}."): t for key, t in weights.items() if key.startswith(f"{name}.")}
    module.load_state_dict(own, strict=True)
    return module.train(case.spec["mode"] == "train")


@handler("dualtoken_vit", "lightvit_blocks")
@torch.no_grad()
def lightvit_blocks(case: Case) -> None:
    """The chain stem -> feed-forward -> merge, and the conv encoder as a block has it."""
    weights, inputs, outputs = case.part("weights"), case.part("input"), case.part("output")
    hidden, dim = weights["biattn_mlp.fc1.weight"].shape
    encoder_ratio = weights["conv_encoder.mlp.fc1.weight"].shape[0] / dim
    stem = part(case, "stem", LightViTStem(weights["stem.stem.0.weight"].shape[1], dim))
    mlp = part(case, "biattn_mlp", BiAttnMlp(dim, hidden))
    merge = part(case, "merge", ResidualMerge(dim, weights["merge.reduction.weight"].shape[0]))
    block = DualTokenBlock(dim, conv_ratio=encoder_ratio, branch=None, ffn_ratio=1, proj_drop=0.0, path=0.0)
    encoder = part(case, "conv_encoder", block.conv_encoder)
    assert isinstance(encoder, ConvNeXtBlock)

    x = stem(inputs["x"])
    case.check("stem", x.flatten(1, 2), outputs["stem"])
    y = mlp(x.flatten(1, 2))
    case.check("biattn_mlp", y, outputs["biattn_mlp"])
    image, tokens = merge(y.unflatten(1, x.shape[1:3]), inputs["global_tokens"])
    case.check("merge_image_tokens", image.flatten(1, 2), outputs["merge_image_tokens"])
    case.check("merge_global_tokens", tokens, outputs["merge_global_tokens"])
    case.check("conv_encoder", encoder(inputs["conv_encoder_in"]), outputs["conv_encoder"])
    case.check("fused stem", stem.fuse()(inputs["x"]).flatten(1, 2), outputs["stem"])
