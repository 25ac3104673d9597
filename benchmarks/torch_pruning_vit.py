"""torch-pruning on a timm ViT, the way its authors do it: group Taylor importance over its dependency graph.

What it needs on a ViT: an attention whose forward does not tie head widths to the embedding, the number of heads of
each qkv linear, example inputs, and gradients of the plain task loss summed over some batches. One thing is done better
than in its own example: the attention scale stays that of the trained network, where the example's fused kernel would
take the one of the narrowed heads.
"""

from __future__ import annotations

import types
import warnings
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess, loader

TAYLOR_BATCHES, TAYLOR_BATCH_SIZE = 10, 64  # of its published ViT results


@dataclass(frozen=True)
class Variant:
    """How torch-pruning ranks and what it may cut."""

    name: str
    global_ranking: bool = False  # one ranking over all layers, else the same share of each
    isomorphic: bool = False  # one ranking over layers of the same structure (Fang et al., arXiv 2407.04616)
    bottleneck: bool = False  # only inside attention and MLP: the embedding stays


VARIANTS = (
    Variant("uniform"),
    Variant("bottleneck", bottleneck=True),
    Variant("isomorphic", global_ranking=True, isomorphic=True),
    Variant("global", global_ranking=True),
)


def attend(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention of any head width, (B, N, C) -> (B, N, C)."""
    batch, tokens, _ = x.shape
    q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask, scale=self.scale)
    return self.proj_drop(self.proj(self.norm(x.transpose(1, 2).reshape(batch, tokens, -1))))


def as_timm(dense: OpenModel) -> nn.Module:
    """The dense network as a timm model of its own, ready for torch-pruning."""
    assert dense.history is not None
    root = dense.history.root
    model = timm.create_model(root.name, **root.kwargs)
    model.load_state_dict(dense.state_dict(), strict=True)
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = types.MethodType(attend, module)  # type: ignore[method-assign]
    return model.eval()


def task_gradients(dense: OpenModel, dataset: Any, preprocess: Preprocess, *, seed: int) -> dict[str, Tensor]:
    """Gradients of the cross-entropy, summed over the batches: what all prunings of one seed share."""
    model = as_timm(dense)
    batches = loader(dataset, preprocess, batch_size=TAYLOR_BATCH_SIZE, seed=seed, train=True, augment=None)
    for _, batch in zip(range(TAYLOR_BATCHES), batches, strict=False):
        F.cross_entropy(model(batch.images), batch.targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def prune(dense: OpenModel, gradients: dict[str, Tensor], variant: Variant, ratio: float) -> nn.Module:
    """A pruned copy: `ratio` is the share of channels that go, of every kind that the variant cuts."""
    import torch_pruning as tp

    model = as_timm(dense)
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    fixed = [model.head, *(m.fc2 for m in model.modules() if isinstance(m, Mlp) and variant.bottleneck)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it prunes the tables of tokens along, as it should
        pruner = tp.pruner.BasePruner(
            model,
            torch.zeros(1, *dense.input_size()),
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=variant.global_ranking,
            isomorphic=variant.isomorphic,
            pruning_ratio=ratio,
            ignored_layers=fixed,
            num_heads={m.qkv: m.num_heads for m in attentions},
            round_to=2,
        )
    for name, p in model.named_parameters():
        p.grad = gradients[name].clone() if name in gradients else None
    pruner.step()
    model.zero_grad(set_to_none=True)
    for m in attentions:
        m.num_heads = pruner.num_heads[m.qkv]
        m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    return model


def widths(model: nn.Module) -> dict[str, Any]:
    """What is left: embedding, and per block heads, head width and MLP width."""
    return {
        "embed": model.patch_embed.proj.out_channels,
        "heads": [b.attn.num_heads for b in model.blocks],
        "head_dim": [b.attn.head_dim for b in model.blocks],
        "mlp": [b.mlp.fc1.out_features for b in model.blocks],
    }
