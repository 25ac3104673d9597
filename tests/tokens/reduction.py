"""What the tests of both token reductions share: images, models, gradients, what the MLPs see, what a graph holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenViT, open_model
from leanvit.recipe.compressing import apply
from leanvit.recipe.history import History
from leanvit.recipe.roots import Root

VARIANTS: dict[str, dict[str, Any]] = {  # of a small plain ViT: what an implementation easily forgets
    "plain": {},
    "layer_scale": {"init_values": 0.5},
    "qk_norm": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "registers_no_embed": {"reg_tokens": 4, "no_embed_class": True},
    "pool_avg": {"global_pool": "avg"},
}


def images(batch: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(5))


def reduced(model: nn.Module, *methods: Any) -> OpenViT:
    """The methods on an opened model, in place."""
    opened = open_model(model)
    if opened.history is None:
        opened.history = History(Root("vit_tiny_patch16_224", {}))
    for m in methods:
        apply(opened, m)
    return opened


def lengths_in_mlps(model: OpenViT, x: Tensor) -> list[int]:
    """Sequence lengths that really enter the first linear of each MLP."""
    seen: list[int] = []
    hooks = [b.mlp.fc1.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1])) for b in model.blocks]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def explicit(model: OpenViT) -> OpenViT:
    """Attention as separate products instead of the fused kernel."""
    for block in model.blocks:
        block.attn.fused = False
    return model


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the operators of an exported graph, without their overloads."""
    return {str(node.target).split(".")[1] for node in program.graph.nodes if str(node.target).startswith("aten.")}


def gradients(model: OpenViT, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
