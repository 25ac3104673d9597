"""How wide each block of a model is, read from its modules: whatever made them so, a root's arguments or a pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from leanvit.anatomy.model import OpenModel


@dataclass(frozen=True)
class BlockWidths:
    """Widths of one block in features; 0 for what it does not have."""

    name: str
    embed: int  # of the residual stream
    heads: int  # of all its attentions
    qk: int  # of q and of k, a head
    v: int  # of v, a head
    mlp: int  # hidden features (of a gated MLP: after the gate; of several: their sum)


def block_widths(model: OpenModel) -> tuple[BlockWidths, ...]:
    """The widths of every block, in the order in which they run; none for a model without blocks."""
    return tuple(_of(block) for block in model.blocks)


def _of(block: Any) -> BlockWidths:
    attentions = block.attentions()
    first = attentions[0] if attentions else None
    taken_in = {m for step in block.steps() for m in step.modules()}  # what methods put into slots is not the block's
    own = [m for m in block.modules() if m not in taken_in]
    entering = (m.in_features for m in own if isinstance(m, nn.Linear))
    hidden = [m.fc2.in_features for m in own if isinstance(getattr(m, "fc2", None), nn.Linear)]
    joint = getattr(block, "hidden", 0)  # attention and MLP in one projection
    return BlockWidths(
        name=block.name,
        embed=next(entering, 0),
        heads=sum(attn.heads for attn in attentions),
        qk=first.qk_dim if first else 0,
        v=first.v_dim if first else 0,
        mlp=sum(hidden) or (joint if isinstance(joint, int) else 0),
    )
