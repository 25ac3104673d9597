"""What a file and a model look like, in the words of constructor arguments, and which names and arguments would fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|resblocks|layer)\.(\d+)\.")
_STAGE = re.compile(r"(?:^|\.)(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.")
_PATCH = (
    "patch_embed.proj.weight",
    "conv1.weight",
    "patch_embed.projection.weight",
    "patch_embeddings.projection.weight",
)
_SIZES: dict[Any, str] = {  # of plain ViTs in timm's names: (width, depth)
    (192, 12): "tiny",
    (384, 12): "small",
    (512, 8): "medium",
    (768, 12): "base",
    (1024, 24): "large",
    (1152, 27): "so400m",
    (1280, 32): "huge",
    (1408, 40): "giant",
}


@dataclass(frozen=True)
class Looks:
    """What follows from the names and shapes of weights; None where they do not show it."""

    depth: int | tuple[int, ...] | None = None  # of each stage, where there are stages
    width: int | None = None
    patch: tuple[int, int] | None = None
    image: tuple[int, int] | None = None
    channels: int | None = None
    classes: int | None = None  # 0: no classifier
    heads: int | None = None
    registers: int | None = None

    def summary(self) -> str:
        """`depth 2, width 48, patch 8, image 32, 3 channels, 10 classes`."""
        words = [f"{name} {short(value)}" for name in ("depth", "width", "patch", "image") if (value := self[name])]
        counts = [f"{self[name]} {name}" for name in ("heads", "registers", "channels") if self[name]]
        classes = [] if self.classes is None else [f"{self.classes} classes" if self.classes else "no classifier"]
        return ", ".join([*words, *counts, *classes]) or "nothing that its names show"

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def looks(tensors: Mapping[str, Tensor], classifiers: tuple[str, ...]) -> Looks:
    """Of weights by name. `classifiers`: names of the modules that give the classes, of the model's kind."""
    stems = [key for key in tensors if key.endswith(_PATCH)]
    before = next((stems[0].removesuffix(end) for end in _PATCH if stems and stems[0].endswith(end)), "")
    shapes = {key.removeprefix(before): tuple(value.shape) for key, value in tensors.items()}
    stem = next((s for key, s in shapes.items() if key.endswith(_PATCH) and len(s) == 4), None)
    positions = next((s for key, s in shapes.items() if key.endswith(("pos_embed", "positional_embedding"))), None)
    token = shapes.get("cls_token") or shapes.get("class_token")
    registers = next((s[1] for key in ("reg_token", "register_tokens") if len(s := shapes.get(key, ())) == 3), None)
    width = token[-1] if token else stem[0] if stem else positions[-1] if positions else None
    rows = [shapes[f"{c}.weight"][0] for c in classifiers if len(shapes.get(f"{c}.weight", ())) >= 1]
    tables = [s for key, s in shapes.items() if key.endswith("relative_position_bias_table") and len(s) == 2]
    patch = (stem[2], stem[3]) if stem else None
    return Looks(
        depth=_depth(shapes),
        width=width,
        patch=patch,
        image=_image(positions, patch, bool(token), registers or 0),
        channels=stem[1] if stem else None,
        classes=rows[0] if rows else 0 if classifiers and stem else None,
        heads=tables[0][1] if tables else None,
        registers=registers,
    )


def looks_of(model: nn.Module, classifiers: tuple[str, ...]) -> Looks:
    """Of a model: its weights, and its heads, which no shape tells."""
    found = looks(model.state_dict(), classifiers)
    blocks = getattr(model, "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if isinstance(blocks, nn.Sequential) else None
    known = {field.name: found[field.name] for field in fields(found)}
    return Looks(**{**known, "heads": heads if isinstance(heads, int) else found.heads})


def advice(file: Looks, model: Looks, host: nn.Module) -> list[str]:
    """What would make a file fit: constructor arguments, and timm names of the plain family. Empty: none is known."""
    wanted = {"classes": "num_classes", "channels": "in_chans"}
    if isinstance(host, VisionTransformer) and isinstance(file.depth, int):
        wanted = {"depth": "depth", "width": "embed_dim", "patch": "patch_size", "image": "img_size", **wanted}
    differs = {arg: file[name] for name, arg in wanted.items() if file[name] and file[name] != model[name]}
    if not differs:
        return []
    given = " ".join(f"--model-arg {arg}={short(value)}" for arg, value in differs.items())
    heads = " (and num_heads as it was trained with: a file does not hold it)" if "embed_dim" in differs else ""
    size = _SIZES.get((file.width, file.depth)) if {"depth", "embed_dim", "patch_size"} & differs.keys() else None
    names = timm.list_models(f"vit_{size}_patch{file.patch[0]}_*") if size and file.patch else []
    if file.registers:
        names = [n for n in names if f"reg{file.registers}" in n]
    else:
        names = [n for n in names if "reg" not in n]
    named = f"; names of timm of this size: {', '.join(names[:3])}" if names else ""
    return [f"build the model as the file is: {given}{heads}{named}"]


def _depth(shapes: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    stages: dict[int, int] = {}
    for key in shapes:
        if found := _STAGE.search(key):
            stage, block = int(found[1]), int(found[2])
            stages[stage] = max(stages.get(stage, 0), block + 1)
    if stages:
        return tuple(stages[i] for i in sorted(stages))
    blocks = [int(found[1]) for key in shapes if (found := _BLOCK.search(key))]
    return max(blocks) + 1 if blocks else None


def _image(
    positions: tuple[int, ...] | None, patch: tuple[int, int] | None, token: bool, registers: int
) -> tuple[int, int] | None:
    """Of a table of positions for a square grid, with or without rows for what stands before the patches."""
    if positions is None or patch is None or len(positions) not in (2, 3):
        return None
    for before in (int(token), 0, int(token) + registers, 2):
        side = math.isqrt(max(0, positions[-2] - before))
        if side > 0 and side * side == positions[-2] - before:
            return side * patch[0], side * patch[1]
    return None


def short(value: Any) -> str:
    """A size as people write it: 16 for (16, 16), 16x8 else."""
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 and len(value) == 2 else "x".join(map(str, value))
    return str(value)
