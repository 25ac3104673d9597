"""LV-ViT and SiT: official checkpoints, methods on them, and that they live like any other root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.anatomy import open_model
from leanvit.backbones.lv_vit import checkpoint_filter_fn
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.prune.nvit import NViT
from leanvit.recipe import Root, compress, create, load, root_of, save
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT

TINY = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
STAGES = {"stage_blocks": (1, 1, 1)}


def built(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **kwargs}).eval()


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def official(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of a SiT under its official names, with what the official one holds besides."""
    inside = {"norm": "weight.0", "fc1": "weight.1", "fc2": "weight.3", "scale": "scale"}
    state = {}
    for name, tensor in model.state_dict().items():
        if ".after.0." in name:
            block, _, rest = name.removeprefix("blocks.").partition(".after.0.")
            part, _, leaf = rest.partition(".")
            name = f"tsm.{block}.{inside[part]}" + (f".{leaf}" if leaf else "")
        state[f"module.{name}"] = tensor
    extra = ("rtsm.1.norm1.weight", "aux_head.weight", "dist_token", "pos_embed_dist")
    return state | {f"module.{name}": torch.zeros(3) for name in extra}


def test_official_names_load_and_what_is_of_the_training_is_left_out() -> None:
    model, other = built("sit_tiny", **STAGES), built("sit_tiny", **STAGES)
    other.load_state_dict(checkpoint_filter_fn({"model": official(model)}, other), strict=True)
    assert torch.equal(other(picture()), model(picture()))
    larger = built("sit_tiny", **STAGES, img_size=64, keep_rate=0.25)
    assert checkpoint_filter_fn(official(model), larger)["pos_embed"].shape == larger.pos_embed.shape
    headless = built("lvvit_tiny", num_classes=0)
    headless.load_state_dict(checkpoint_filter_fn(built("lvvit_tiny").state_dict(), headless), strict=True)
    with pytest.raises(ValueError, match="the model has no blocks"):
        checkpoint_filter_fn(official(model), built("sit_tiny", depth=2, stage_blocks=(1, 1)))


def test_built_and_slimmed_by_the_method_are_one_network() -> None:
    model, dense = built("sit_tiny", **STAGES), built("lvvit_tiny")
    assert [b.after[0].slots for b in model.blocks if len(b.after)] == [2, 1]
    lean = compress(dense, [SiT(stages=(1, 1, 1))])
    lean.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(lean(picture()), model(picture()))
    assert count(lean, (3, 32, 32)).macs == count(model, (3, 32, 32)).macs


def test_methods_run_on_it_and_runs_load(tmp_path: Path) -> None:
    dense = create(Root("lvvit_tiny", {**TINY, "skip_lam": 3.0}))
    lean = compress(dense, [EViT(keep_rate=0.5, blocks=(1,))])
    save(lean, tmp_path)
    assert torch.equal(load(tmp_path)(picture()), lean(picture()))
    with pytest.raises(Refused, match="its stem is several convolutions"):
        compress(dense, [NViT(macs=0.5, kinds=("embed",))], object())
    with pytest.raises(Refused, match=r"evit would reduce tokens in blocks\.2, behind blocks\.0, where sit mixes them"):
        compress(create(Root("sit_tiny", {**TINY, "stage_blocks": [1, 2]})), [EViT(blocks=(2,))])


def test_the_root_is_proven_with_its_scale() -> None:
    assert root_of(built("lvvit_tiny")).name == "lvvit_tiny"
    with pytest.raises(Refused, match="branch_scale"):
        root_of(built("lvvit_tiny", skip_lam=4.0), name="lvvit_tiny", kwargs=TINY)


def test_a_plain_patch_embedding_opens_too() -> None:
    model = built("lvvit_tiny", stem="naive", patch_size=8, global_pool="avg", class_token=False)
    assert torch.equal(open_model(model)(picture()), model(picture()))


def test_features_behind_the_first_slimming_are_refused() -> None:
    with pytest.raises(BadInput, match="slimmed behind the first block"):
        built("sit_tiny", **STAGES).forward_intermediates(picture())
