"""Which method runs on which family, found by doing it: `make pages` writes docs/support.md.

Each family has one small example, opened with random weights; each method that has `shape` is applied to it with its
default knobs on a few digits, and the lean model run once. Feature maps are asked of all of them. A refusal is a
cell's reason, in the words of the refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from leanvit.anatomy import OpenModel
from leanvit.anatomy.adapters.refusals import REASONS
from leanvit.cards import paper, papers
from leanvit.data import Preprocess, open_dataset
from leanvit.errors import Refused
from leanvit.recipe import Data, Root, compress, create, make_method
from leanvit.recipe.registry import shaping_methods


@dataclass(frozen=True)
class Example:
    """One family: what people call it, a timm name of it, and arguments that make the model small."""

    family: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Support:
    """Whether a method runs on a family."""

    family: str
    name: str
    slug: str
    works: bool
    reason: str = ""
    lost: tuple[str, ...] = ()  # of maps: methods after which there are none


def _vit(**changes: Any) -> dict[str, Any]:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
    return small | changes


def _swin(**changes: Any) -> dict[str, Any]:
    sizes = {"img_size": 56, "patch_size": 2, "window_size": 7, "embed_dim": 12, "num_classes": 7}
    return sizes | {"depths": [2, 2, 1], "num_heads": [2, 2, 3]} | changes


OF_TIMM = (
    Example("ViT (AugReg, DeiT)", "vit_tiny_patch16_224", _vit()),
    Example("DeiT, distilled", "deit_tiny_distilled_patch16_224", _vit()),
    Example("DeiT III", "deit3_small_patch16_224", _vit()),
    Example("CLIP towers", "vit_base_patch32_clip_224", _vit()),
    Example("DINOv2, registers", "vit_small_patch14_reg4_dinov2", _vit()),
    Example("AIMv2", "aimv2_large_patch14_224", _vit()),
    Example("ViT, mean-pooled", "vit_medium_patch16_gap_240", _vit()),
    Example("SigLIP (attention-pooled)", "vit_base_patch16_siglip_224", _vit()),
    Example("ViT, attention and MLP in parallel", "vit_base_patch16_xp_224", _vit()),
    Example("ViT, two attentions side by side", "vit_small_patch16_18x2_224", _vit()),
    Example("ViT, post-norm", "vit_base_patch16_rpn_224", _vit()),
    Example("ViT, differential attention", "vit_dwee_patch16_reg1_gap_256", _vit(num_heads=4)),
    Example("ViT, relative positions", "vit_relpos_base_patch16_clsgap_224", _vit()),
    Example("BEiT, BEiT v2", "beit_base_patch16_224", _vit()),
    Example("EVA", "eva_giant_patch14_224", _vit()),
    Example("EVA-02", "eva02_base_patch14_224", _vit()),
    Example("ROPE-ViT, axial", "vit_small_patch16_rope_224", _vit()),
    Example("ROPE-ViT, mixed", "vit_small_patch16_rope_mixed_224", _vit()),
    Example("DINOv3", "vit_small_patch16_dinov3", _vit()),
    Example("Sapiens2 (grouped queries)", "vit_base_patch16_sapiens2", _vit(num_heads=4, num_kv_heads=2)),
    Example("Perception Encoder", "vit_pe_core_tiny_patch16_384", _vit(attn_pool_num_heads=3)),
    Example("Swin", "swin_tiny_patch4_window7_224", _swin(depths=[2, 6, 1])),
    Example("Swin V2", "swinv2_tiny_window8_256", _swin()),
    Example("MobileViT (traced)", "mobilevit_xxs", {"num_classes": 7}),
    Example("MobileViT V2 (traced)", "mobilevitv2_050", {"num_classes": 7}),
    Example("EfficientFormer (traced)", "efficientformer_l1", {"depths": [1, 1, 1, 2], "num_classes": 7}),
    Example("EfficientFormer V2 (traced)", "efficientformerv2_s0", {"depths": [1, 1, 2, 3], "num_classes": 7}),
    Example("TinyViT (traced)", "tiny_vit_5m_224", {"depths": [1, 1, 2, 1], "num_classes": 7}),
    Example("LeViT (traced)", "levit_128s", {"depth": [1, 1, 1], "num_classes": 7}),
    Example("PVT V2 (traced)", "pvt_v2_b0", {"depths": [1, 1, 1, 1], "num_classes": 7}),
    Example("MaxViT (traced)", "maxvit_nano_rw_256", {"img_size": 64, "depths": [1, 1, 1, 1], "num_classes": 7}),
    Example("CaiT (traced)", "cait_xxs24_224", {"img_size": 64, "depth": 2, "num_classes": 7}),
)

MAPS = "maps"  # the column beside those of the methods
_CLASSES = [str(digit) for digit in range(7)]  # as many as the examples have


def examples() -> list[Example]:
    """timm's families, then the models of papers whose cards give them a row."""
    own = [one for card in papers().values() for one in card.example if one.title]
    return [*OF_TIMM, *(Example(one.title, one.model, {**one.args, "num_classes": len(_CLASSES)}) for one in own)]


def attempt(example: Example, slug: str, model: OpenModel | None = None) -> tuple[Support, OpenModel | None]:
    """Apply one method to one family for real; the lean model where it worked.

    Anything but a refusal is raised: a cell never hides an error.
    """
    dense = model or create(Root(example.name, example.kwargs))
    data = Data(open_dataset("digits", "train", limit=32, classes=_CLASSES), Preprocess.of(dense), batch_size=16)
    try:
        lean = compress(dense, [make_method(slug, paper(slug).knobs.small)], data)
    except Refused as refusal:
        return Support(example.family, example.name, slug, False, str(refusal)), None
    with torch.no_grad():
        out = lean(torch.zeros(2, *dense.probe_size()))
    if not torch.isfinite(out).all():
        raise ArithmeticError(f"{slug} on {example.name}: the lean model's output is not finite")
    return Support(example.family, example.name, slug, True), lean


def maps_of(
    example: Example, model: OpenModel | None = None, leans: Mapping[str, OpenModel] = MappingProxyType({})
) -> Support:
    """Whether `model.maps` gives feature maps of one family, and of which of `leans` (by method) it does not."""
    dense = model or create(Root(example.name, example.kwargs))
    lost = tuple(slug for slug, lean in leans.items() if _refused_maps(lean))
    reason = _refused_maps(dense)
    return Support(example.family, example.name, MAPS, not reason, reason, lost)


def _refused_maps(model: OpenModel) -> str:
    """Why it gives no maps; "" where it does, and they are those that it declares."""
    try:
        with torch.no_grad():
            maps = model.maps(torch.zeros(2, *model.probe_size()))
    except Refused as refusal:
        return str(refusal)
    if tuple(m.shape[1] for m in maps) != model.map_sizes().channels or not all(m.isfinite().all() for m in maps):
        raise ArithmeticError(f"{type(model).__name__}: its maps are not those that it declares")
    return ""


def cells(families: Sequence[Example] | None = None, slugs: Sequence[str] | None = None) -> Iterator[Support]:
    """Every family with every method that has `shape`, then its maps, row by row; by default all of both."""
    slugs = shaping_methods() if slugs is None else slugs
    for example in examples() if families is None else families:
        dense = create(Root(example.name, example.kwargs))
        tried = [attempt(example, slug, dense) for slug in slugs]
        yield from (cell for cell, _ in tried)
        yield maps_of(example, dense, {cell.slug: lean for cell, lean in tried if lean is not None})


def page(found: Sequence[Support]) -> str:
    """The table as markdown, reasons below it, and what is not opened at all."""
    slugs = list(dict.fromkeys(cell.slug for cell in found))
    reasons = list(dict.fromkeys(cell.reason for cell in found if not cell.works))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in found:
        but = f", not after {', '.join(cell.lost)}" if cell.lost else ""
        mark = f"yes{but}" if cell.works else f"no [{reasons.index(cell.reason) + 1}]"
        rows.setdefault((cell.family, cell.name), {})[cell.slug] = mark
    lines = [
        "# Support",
        "",
        "Made by `make pages`: a small model of each family is opened, each method applied,",
        'and the result run. "yes" means that this worked; a number leads to the refusal below.',
        f"`{MAPS}` is no method: whether `model.maps(images)` gives feature maps, and after which methods it does not.",
        "",
        f"| family | for example | {' | '.join(f'`{slug}`' for slug in slugs)} |",
        f"|---|---|{'---|' * len(slugs)}",
    ]
    for (family, name), marks in rows.items():
        lines.append(f"| {family} | `{name}` | {' | '.join(marks.get(slug, '–') for slug in slugs)} |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, start=1))]
    lines += [
        "",
        "## Not opened",
        "",
        "`open_model` refuses these classes of timm by name. Others without attention are refused as what they are.",
        "",
        "| class | why |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in sorted(REASONS.items(), key=lambda row: row[0].lower())),
    ]
    return "\n".join(lines) + "\n"
