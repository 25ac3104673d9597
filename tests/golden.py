"""Golden cases for the tracers of the anatomy: find them, read them, and build the timm model that they describe.

A case is `<name>.json` + `<name>.safetensors`; the format is written in the README beside the cases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "parity"


@dataclass(frozen=True)
class Case:
    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix (`weights/`, `input/`, `mid/`, `output/`), without it."""
        tensors = load_file(self.path.with_suffix(".safetensors"))
        return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def cases(slug: str, kind: str) -> Any:
    """`pytest.mark.parametrize("case", ...)` over every case of a kind; one skipped case when there are none."""
    root = Path(os.environ.get("LEANVIT_PARITY", DEFAULT))
    found = [path.with_suffix("") for path in sorted(root.glob(f"{slug}/*.json")) if _kind(path) == kind]
    params = [pytest.param(Case(path), id=f"{slug}/{path.name}") for path in found]
    skip = pytest.mark.skip(reason=f"no golden case {slug} of kind {kind!r} under LEANVIT_PARITY or ../shared/parity")
    return pytest.mark.parametrize("case", params or [pytest.param(None, marks=skip, id=f"{slug}/none")])


def _kind(path: Path) -> str | None:
    meta = json.loads(path.read_text())
    return meta.get("kind") if path.with_suffix(".safetensors").exists() and isinstance(meta, dict) else None


NAMES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes", "mlp_ratio", "qkv_bias")


def vit(
    constructor: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    *,
    cls: type = VisionTransformer,
    eps: float = 1e-6,
    **more: Any,
) -> Any:
    """timm's model with the constructor arguments that it shares with a case and the weights of its own names."""
    arguments = {key: constructor[key] for key in NAMES if key in constructor}
    model = cls(**{"norm_layer": partial(nn.LayerNorm, eps=eps), **arguments, **more}).eval()
    if weights is not None:
        model.load_state_dict({key: t for key, t in weights.items() if key in model.state_dict()})
    return model


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Equal within `tolerance` of the largest wanted value."""
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())
