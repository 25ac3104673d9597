"""Kept parameters and MACs: what zeros of sparse tensors leave, while what is executed stays what it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy import open_model
from leanvit.anatomy.sparse import set_sparse
from leanvit.errors import CheckpointError
from leanvit.measure import Comparison, compare, count
from leanvit.measure.table import as_text
from leanvit.quantize.int8 import Int8
from leanvit.recipe import compress
from leanvit.report.rows import groups, notes
from measure.test_comparison import edited, row
from zeroing import zero_smallest

SIZE = (3, 32, 32)
TOKENS = 17
ROWS = {"blocks.0.attn.qkv.weight": TOKENS, "blocks.1.mlp.fc2.weight": TOKENS, "patch_embed.proj.weight": 16,
        "head.weight": 1}  # name -> rows that a weight meets  # fmt: skip


def small(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> Any:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    torch.manual_seed(0)
    return open_model(timm.create_model(name, **(sizes | kwargs)).eval())


def pruned(share: float = 0.6, **kwargs: Any) -> Any:
    model = small(**kwargs)
    model.sparse = (*ROWS, "blocks.0.mlp.fc1.bias")
    zero_smallest(model, ROWS, share)
    return model


def zeros_in(model: nn.Module, name: str) -> int:
    return int((model.get_parameter(name) == 0).sum())


def test_kept_macs_are_nonzero_weights_times_rows() -> None:
    dense, lean = count(small(), SIZE), count(pruned(), SIZE)
    model = pruned()
    gone = sum(zeros_in(model, name) * rows for name, rows in ROWS.items())
    biases = zeros_in(model, "blocks.0.mlp.fc1.bias")
    assert biases > 0, "a bias has no MACs"
    assert lean.kept_macs == lean.macs - gone
    assert lean.kept_params == lean.params - sum(zeros_in(model, name) for name in ROWS) - biases
    assert (lean.macs, lean.params, lean.by_op, lean.by_module) == (
        dense.macs,
        dense.params,
        dense.by_op,
        dense.by_module,
    )
    assert dense.kept_macs is None and dense.kept_params is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_zero_and_nothing_but_zeros(share: float, batch: int) -> None:
    model = pruned(share)
    nn.init.ones_(model.blocks[0].mlp.fc1.bias)
    cost = count(model, SIZE, batch=batch)
    gone = sum(model.get_parameter(name).numel() * rows for name, rows in ROWS.items())
    assert cost.kept_macs == cost.macs - round(share) * gone


def test_half_precision_and_casts_of_weights() -> None:
    model = pruned()
    kept = count(model, SIZE).kept_macs
    assert count(copy.deepcopy(model).bfloat16(), SIZE).kept_macs == kept

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 6, bias=False)
            self.scale = nn.Parameter(torch.full((6, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, (self.inner.weight.double() * self.scale).float()[:4])

    cast = Cast()
    set_sparse(cast, ["inner.weight"])
    with torch.no_grad():
        cast.inner.weight[:3] = 0
    assert (count(cast, (8,)).macs, count(cast, (8,)).kept_macs) == (32, 8)


@pytest.mark.parametrize(
    ("layer", "size", "outputs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 5, 5), 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 5, 5), 25),
        (nn.Linear(4, 6), (7, 4), 7),
    ],
)
def test_convolutions_and_linears(layer: nn.Module, size: tuple[int, ...], outputs: int) -> None:
    set_sparse(layer, ["weight"])
    zero_smallest(layer, ["weight"], 0.25)
    cost = count(layer, size)
    weight: Any = layer.weight
    assert cost.macs == weight.numel() * outputs
    assert cost.kept_macs == int(weight.count_nonzero()) * outputs


SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "window_size": 4, "depths": (1, 1), "num_heads": (2, 4)}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", SWIN),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),  # gated MLP, q, k and v apart
        ("pvt_v2_b0", {}),  # a traced graph with depthwise convolutions
    ],
)
def test_products_of_attention_are_kept_whole_in_any_architecture(name: str, arguments: dict[str, Any]) -> None:
    model = open_model(timm.create_model(name, num_classes=5, **arguments).eval())
    model.sparse = [f"{site}.weight" for site in model.sites()]
    zero_smallest(model, model.sparse, 1.0)
    cost = count(model, (3, arguments.get("img_size", 64), arguments.get("img_size", 64)))
    attention = sum(macs for op, macs in cost.by_op.items() if op == "bmm" or "attention" in op)
    assert 0 < attention == cost.kept_macs < cost.macs


def test_activations_that_are_zero_are_no_pruned_weights() -> None:
    model = pruned()
    cost = count(model, SIZE, make_input=lambda batch: torch.zeros(batch, *SIZE))
    assert cost.kept_macs == count(model, SIZE).kept_macs


class Noise:
    """Calibration images."""

    dataset: Any = None
    seed = 0

    def images(self, number: int) -> Iterator[Tensor]:
        yield torch.randn(number, *SIZE, generator=torch.Generator().manual_seed(1))


def test_int8_counts_its_zeros() -> None:
    from zeroing import Zeros

    names = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight")
    dense = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
    lean = compress(dense, [Zeros(names=names)])
    data: Any = Noise()
    rounded = count(compress(lean, [Int8(images=4)], data), SIZE)
    exact = count(lean, SIZE)
    assert rounded.macs == exact.macs and rounded.params == exact.params
    more = exact.kept_params - rounded.kept_params  # small weights that are rounded to zero
    assert 0 <= more < 0.05 * exact.params
    assert 0 <= exact.kept_macs - rounded.kept_macs == more * TOKENS


def test_rows_show_kept_figures_of_sparse_models_alone() -> None:
    loader = [_Images()]
    found = compare({"dense": small(), "lean": pruned()}, loader, rounds=3, min_seconds=1e-4)
    dense, lean = found.rows
    cost = count(pruned(), SIZE)
    assert (dense.kept_params, dense.kept_macs_per_image) == (None, None)
    assert (lean.kept_params, lean.kept_macs_per_image) == (cost.kept_params, cost.kept_macs)
    assert lean.macs_per_image == dense.macs_per_image and lean.params == dense.params
    content = json.loads(found.to_json())
    assert content["format"] == 2
    assert "kept_params" not in content["rows"][0] and content["rows"][1]["kept_params"] == cost.kept_params
    assert Comparison.from_json(found.to_json()) == found
    assert "lean keeps 0.0" in str(found) and " G MACs" in str(found) and "kept: without weights" in str(found)
    wide = as_text(found.table())
    assert "kept" in wide and "latency" in wide
    cells = [cell for line in groups(found)[0].lines for cell in line.cells if cell.small.startswith("kept ")]
    assert len(cells) == 2 and any(note.startswith("kept: without weights") for note in notes(found))


class _Images:
    images = torch.randn(6, *SIZE, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(6) % 5
    keys = tuple(f"val/{i}" for i in range(6))

    def __len__(self) -> int:
        return 6


def test_a_comparison_without_sparse_models_shows_nothing_of_it() -> None:
    found = Comparison("dense", 3000, (3, 224, 224), 8, 3, (row("dense"),), {"cpu": "a CPU", "threads": 2})
    assert "kept" not in str(found) + as_text(found.table()) + found.to_json()


def test_kept_figures_that_cannot_be_are_refused() -> None:
    sparse = row("dense", kept_params=10, kept_macs_per_image=20)
    found = Comparison("dense", 3000, (3, 224, 224), 8, 3, (sparse,), {})
    assert Comparison.from_json(found.to_json()) == found
    for key, value in (("kept_params", 10**12), ("kept_params", -1), ("kept_macs_per_image", 10**15)):
        with pytest.raises(CheckpointError, match=rf"rows\.0\.{key}"):
            Comparison.from_json(edited(found, lambda data, k=key, v=value: data["rows"][0].update({k: v})))
    alone = replace(found, rows=(replace(sparse, params=None),))
    with pytest.raises(CheckpointError, match=r"rows\.0\.kept_params: more than params"):
        Comparison.from_json(alone.to_json())
