"""Models with exits and untrained heads, for the tests of this room: decisions then are as good as random, and costs
and bits can be checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.exits.rules import Rule
from leanvit.anatomy.exits.running import ExitPolicy, Exits
from leanvit.exits.cost import exit_macs
from leanvit.exits.lgvit.heads import build_heads

ROWS = [(1, "lph_dw"), (2, "gah2"), (3, "linear")]
NEVER = 1.1  # no probability is above it


def images(batch: int = 6, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


def exiting(model: nn.Module, threshold: float = NEVER, *, kind: str = "confidence", rows: Any = ROWS) -> OpenModel:
    """A copy-free model with heads behind some of its blocks; their weights are random, and large enough to be sure."""
    opened = open_model(model).eval()
    layers = [layer for layer, _ in rows]
    heads = build_heads(opened, rows)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for head in heads:
            for name, tensor in head.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(noise.abs() + 0.5 if "running_var" in name else 0.4 * noise)
    rule = Rule(kind, (threshold,) * len(rows))
    opened.exits = Exits(heads, ExitPolicy(layers, len(opened.blocks), rule), source="lgvit").eval()
    opened.exits.policy.macs = exit_macs(opened)
    return opened


def split_threshold(model: OpenModel, x: Tensor, at: float = 0.5) -> float:
    """A confidence between those that were seen at the exits, so that some leave and some stay."""
    from leanvit.exits.lgvit.losses import run_all

    with torch.no_grad():
        seen = torch.cat([logits.softmax(-1).amax(-1) for logits in run_all(model, x, {}).logits]).sort().values
    i = int(at * len(seen))
    return float((seen[i - 1] + seen[i]) / 2)
