"""Token maps: traced from a model, kept as JSON, drawn."""

import json

import pytest
import timm
import torch

import leanvit as lv
from leanvit.errors import CheckpointError
from leanvit.recipe import Root
from leanvit.report.token_maps import TokenMaps, trace_tokens
from leanvit.report.token_pictures import draw, strips, thinned

KWARGS = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10, "depth": 3, "embed_dim": 24, "num_heads": 3}


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()


def traced(model, *methods) -> TokenMaps:
    lean = lv.compress(model, methods, root=Root("vit_tiny_patch16_224", KWARGS))
    return trace_tokens(lean, lv.open_dataset("digits", "val"), lv.Preprocess.of(model), name="lean", count=4)


def test_evit_keeps_and_fuses(dense) -> None:
    maps = traced(dense, lv.EViT(keep_rate=0.5, blocks=(1,)))
    assert maps.tokens == (65, 34, 34)
    (reduction,) = maps.reductions
    assert (reduction.block, reduction.source, reduction.tokens) == (1, "evit", 34)
    for owners in reduction.owners:
        sizes = sorted(owners.count(token) for token in set(owners))
        assert sizes == [1] * 32 + [32] and -1 not in owners


def test_evit_without_fusing_drops(dense) -> None:
    (reduction,) = traced(dense, lv.EViT(keep_rate=0.5, blocks=(1,), fuse=False)).reductions
    assert [owners.count(-1) for owners in reduction.owners] == [32] * 4


def test_tome_merges_in_every_block(dense) -> None:
    maps = traced(dense, lv.ToMe(r=5))
    assert [r.tokens for r in maps.reductions] == [60, 55, 50]
    assert len(set(maps.reductions[-1].owners[0])) == 49, "patch tokens; the class token holds no patch"


def test_a_dense_model_has_counts_and_no_pictures(dense) -> None:
    maps = traced(dense)
    assert maps.tokens == (65, 65, 65)
    assert maps.reductions == () and maps.pictures == ()


def test_json_round_trip(maps) -> None:
    assert TokenMaps.from_json(maps.to_json()) == maps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"extra": 1}, "extra"),
        ({"grid": [2, 3]}, "6 patches"),
        ({"tokens": ["a"]}, "tokens.0"),
    ],
)
def test_foreign_json_is_refused(maps, change, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        TokenMaps.from_json(json.dumps({**json.loads(maps.to_json()), **change}))


def test_truncated_json_is_refused(maps) -> None:
    with pytest.raises(CheckpointError, match="not token maps"):
        TokenMaps.from_json(maps.to_json()[:40])


def test_a_drawing_outlines_small_groups_and_veils_large_ones() -> None:
    owners = [0] * 6 + [1, 1] + list(range(2, 10))  # a 4x4 grid: six fused, two merged, eight alone
    drawing = draw(owners, (4, 4), block=3, tokens=10)
    assert drawing.veil.count("z") == 6
    (outline,) = drawing.outlines
    assert outline.size == 2 and outline.path.count("M") == 6, "two neighbours have six outer edges"
    assert drawing.alone == 8


def test_dropped_patches_are_veiled() -> None:
    drawing = draw([-1, 0, 1, 2], (2, 2), block=0, tokens=3)
    assert drawing.veil == "M0 0h10v10h-10z"
    assert drawing.outlines == ()


def test_a_border_does_not_wrap_round_the_rows() -> None:
    """Of 6 rows of 4: patches 3 and 4 touch in index, not in space; 0 and 4 touch in space."""
    apart = draw([0, 1, 2, 9, 9, *range(10, 29)], (6, 4), block=0, tokens=23)
    assert apart.outlines[0].path.count("M") == 8
    together = draw([9, 1, 2, 3, 9, *range(10, 29)], (6, 4), block=0, tokens=23)
    assert together.outlines[0].path.count("M") == 6


def test_strips_name_the_classes(maps) -> None:
    (strip,) = strips(maps, ["zero", "one"])
    assert (strip.target, strip.answer, strip.right) == ("zero", "one", False)
    assert [d.tokens for d in strip.drawings] == [3], "patch tokens, without the class token"
    assert strips(maps, [])[0].target == "0"


def test_many_blocks_are_thinned_evenly() -> None:
    assert thinned(list(range(12)), 6) == [0, 2, 4, 7, 9, 11]
    assert thinned([1, 2], 6) == [1, 2]
