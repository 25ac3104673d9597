"""The structure of a plan, as JSON that a person can read, and the surgery that it describes.

{"embed": {"before": 192, "after": 160, "kept": "0-31,40-167"},           # null where nothing of it was cut
 "blocks": [{"head": {...}, "qk": null, "v": null, "mlp": {...}}, ...],
 "emb_norm": "plain"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width, set_mlp_width
from leanvit.errors import BadInput
from leanvit.prune.nvit.masking import shrunk
from leanvit.prune.nvit.units import KINDS, Layout, layout

Structure = dict[str, Any]
BLOCK_KINDS = KINDS[1:]


def structure_of(units: Layout, gates: Tensor, *, emb_norm: str) -> Structure:
    """What `gates` (total,) bool leave of a model. Kinds that lose nothing are null."""
    embed = None
    rows: list[dict[str, Any]] = [dict.fromkeys(BLOCK_KINDS) for _ in range(units.depth)]
    for u, span in units.spans():
        kept = gates[span].nonzero()[:, 0].tolist()
        if len(kept) == u.size:
            continue
        row = {"before": u.size, "after": len(kept), "kept": as_text(kept)}
        if u.kind == "embed":
            embed = row
        else:
            rows[u.block][u.kind] = row
    return {"embed": embed, "blocks": rows, "emb_norm": emb_norm}


def as_text(kept: list[int]) -> str:
    """Ascending numbers as ranges: [0, 1, 2, 7] -> "0-2,7"."""
    ranges: list[list[int]] = []
    for n in kept:
        if ranges and ranges[-1][1] == n - 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def from_text(text: Any, size: int, what: str) -> Tensor:
    """The way back, (n,) int64. Raises `BadInput` unless the text names some of `size` units, in ascending order."""
    accepted = f"accepted: ascending numbers and ranges from 0 to {size - 1}, as in '0-31,40'"
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise BadInput(f"{what} keeps {text!r}; {accepted}")
    spans = [(int(a), int(b or a)) for a, _, b in (piece.partition("-") for piece in text.split(","))]
    edges = [edge for span in spans for edge in (span[0], span[1] + 1)]
    if edges != sorted(edges) or spans[-1][1] >= size or any(a > b for a, b in spans):
        raise BadInput(f"{what} keeps {text!r}; {accepted}")
    kept = torch.cat([torch.arange(a, b + 1) for a, b in spans])
    if len(kept.unique()) != len(kept):
        raise BadInput(f"{what} keeps {text!r}; {accepted}")
    return kept


def rows_of(units: Layout, structure: Mapping[str, Any]) -> dict[str, Tensor]:
    """Kept units of each list that loses some, by its name. Raises `BadInput` for what does not fit the model."""
    blocks = structure["blocks"]
    if len(blocks) != units.depth:
        raise BadInput(f"the plan cuts {len(blocks)} blocks; the model has {units.depth}")
    if structure["embed"] and not any(u.kind == "embed" for u in units.lists):
        raise BadInput("the plan cuts embedding channels, which nvit cannot cut in this model")
    kept = {}
    for u in units.lists:
        row = structure["embed"] if u.kind == "embed" else blocks[u.block][u.kind]
        if row is None:
            continue
        if row["before"] != u.size:
            raise BadInput(f"the plan cuts {u.name} of {row['before']} units; the model has {u.size}")
        kept[u.name] = from_text(row["kept"], u.size, f"{u.name} of the plan")
    return kept


def set_widths(model: OpenModel, structure: Mapping[str, Any]) -> None:
    """Give the model the widths of a structure; values are zeros until they are moved in."""
    units = layout(model)
    kept = {name: len(indices) for name, indices in rows_of(units, structure).items()}
    exact = structure["emb_norm"] == "exact"
    for block in model.blocks:
        head, qk, v, hidden = (kept.get(f"{block.name}.{kind}") for kind in BLOCK_KINDS)
        if head or qk or v:
            set_attention_widths(block.attn, heads=head, qk_dim=qk, v_dim=v, exact=exact)
        if hidden:
            set_mlp_width(block.mlp, hidden, exact=exact)
    if "embed" in kept:
        set_embed_width(model, kept["embed"], exact=exact)  # type: ignore[arg-type]


@torch.no_grad()
def move_weights(model: OpenModel, structure: Mapping[str, Any], before: Mapping[str, Tensor]) -> None:
    """Fill a model that has the structure's widths from the state dict that it had before."""
    units = layout(model, sizes=_sizes_before(model, structure))
    model.load_state_dict({**before, **shrunk(units, before, rows_of(units, structure))})


def cut(model: OpenModel, structure: Mapping[str, Any]) -> OpenModel:
    """Widths and weights at once, in place; returns the model."""
    before = dict(model.state_dict())
    set_widths(model, structure)
    move_weights(model, structure, before)
    return model


def _sizes_before(model: OpenModel, structure: Mapping[str, Any]) -> dict[str, int]:
    rows = {"embed": structure["embed"]}
    for block, row in zip(model.blocks, structure["blocks"], strict=True):
        rows |= {f"{block.name}.{kind}": row[kind] for kind in BLOCK_KINDS}
    return {name: row["before"] for name, row in rows.items() if row is not None}
