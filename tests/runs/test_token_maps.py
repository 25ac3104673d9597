"""Token maps: traced from a model, kept as JSON, drawn."""

import json
from dataclasses import replace

import pytest
import timm
import torch

import leanvit as lv
from leanvit.anatomy.composite import Wiring, wiring
from leanvit.data import loader
from leanvit.errors import CheckpointError
from leanvit.recipe import Root, compose
from leanvit.report.token_pictures import draw, stacks
from leanvit.runs.token_maps import NO_CLASS, TokenMaps, trace_tokens

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


def test_pictures_without_labels_have_no_class_and_no_verdict(dense) -> None:
    model = lv.compress(dense, [lv.ToMe(r=5)], root=Root("vit_tiny_patch16_224", KWARGS))
    digits = lv.open_dataset("digits", "val").limited(4)
    unlabelled = replace(digits, targets=None, classes=[])
    maps = trace_tokens(model, unlabelled, lv.Preprocess.of(dense), name="lean", count=4)
    assert {picture.target for picture in maps.pictures} == {NO_CLASS} and TokenMaps.from_json(maps.to_json()) == maps
    assert all(stack.right is None and stack.target == "" for stack in stacks(maps, list("0123456789")))


@wiring("test_answering")
class Answering(Wiring):
    """The backbone's logits; of fewer than ten classes as outputs of one pixel."""

    def run(self, model, images, **context):
        logits, state = model.main_part.trace(images, **context)
        return (logits if logits.shape[-1] == 10 else logits[..., None, None]), state

    def outputs(self, parts) -> int:
        return parts["backbone"].num_classes


@pytest.mark.parametrize(("classes", "answered"), [(10, True), (3, False)])
def test_a_model_of_parts_is_traced_in_its_main_part(classes: int, answered: bool) -> None:
    torch.manual_seed(0)
    whole = compose(Answering(), {"backbone": Root("vit_tiny_patch16_224", {**KWARGS, "num_classes": classes})})
    lean = lv.compress(whole, [lv.ToMe(r=5)])
    digits = lv.open_dataset("digits", "val").limited(4)
    maps = trace_tokens(lean, digits, lv.Preprocess.of(lean), name="lean", count=4)
    assert maps.tokens == (60, 55, 50) and len(maps.pictures) == 4
    assert all((picture.answer != NO_CLASS) is answered for picture in maps.pictures)
    if answered:
        images = next(iter(loader(digits, lv.Preprocess.of(lean), batch_size=4))).images
        assert [picture.answer for picture in maps.pictures] == lean(images).argmax(dim=-1).tolist()


def test_json_round_trip(maps) -> None:
    assert TokenMaps.from_json(maps.to_json()) == maps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3"),
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


def test_format_1_is_still_read(maps) -> None:
    old = json.loads(maps.to_json())
    old["format"] = 1
    old["pictures"] = [{("png" if key == "image" else key): v for key, v in p.items()} for p in old["pictures"]]
    assert TokenMaps.from_json(json.dumps(old)) == maps


def test_photos_are_kept_small(dense, shared) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3).eval()
    lean = lv.compress(
        model,
        [lv.EViT(keep_rate=0.5, blocks=(1,))],
        root=Root("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 3}),
    )
    photos = lv.open_dataset(str(shared / "data" / "imagenet_sample"), "val", limit=2)
    maps = trace_tokens(lean, photos, lv.Preprocess.of(model), name="lean", count=2)
    assert [stack.source[:15] for stack in stacks(maps, photos.classes)] == ["data:image/jpeg"] * 2
    assert all(len(picture.image) < 60_000 for picture in maps.pictures)


def test_a_drawing_outlines_small_groups_and_veils_large_ones() -> None:
    owners = [0] * 6 + [1, 1] + list(range(2, 10))  # a 4x4 grid: six fused, two merged, eight alone
    drawing = draw(owners, (4, 4), block=3, tokens=10)
    assert drawing.veil == "M0 0h40v10h-40zM0 10h20v10h-20z"
    (group,) = drawing.groups
    assert group.size == 2 and group.area == "M20 10h20v10h-20z"
    assert group.border == "M20 10h20M20 20h20M20 10v10M40 10v10", "two neighbours have one border"
    assert (drawing.alone, drawing.merged, drawing.fused, drawing.dropped) == (8, 2, 6, 0)


def test_dropped_patches_are_veiled() -> None:
    drawing = draw([-1, 0, 1, 2], (2, 2), block=0, tokens=3)
    assert (drawing.veil, drawing.dropped) == ("M0 0h10v10h-10z", 1)
    assert drawing.groups == ()


def test_a_border_does_not_wrap_round_the_rows() -> None:
    """Of 6 rows of 4: patches 3 and 4 touch in index, not in space; 0 and 4 touch in space."""
    apart = draw([0, 1, 2, 9, 9, *range(10, 29)], (6, 4), block=0, tokens=23)
    assert apart.groups[0].area == "M30 0h10v10h-10zM0 10h10v10h-10z" and apart.groups[0].border.count("M") == 8
    together = draw([9, 1, 2, 3, 9, *range(10, 29)], (6, 4), block=0, tokens=23)
    assert together.groups[0].border == "M0 0h10M0 20h10M0 0v20M10 0v20"


def test_stacks_name_the_classes(maps) -> None:
    (stack,) = stacks(maps, ["zero", "one"])
    assert (stack.target, stack.answer, stack.right) == ("zero", "one", False)
    assert [d.tokens for d in stack.drawings] == [3], "patch tokens, without the class token"
    assert stacks(maps, [])[0].target == "0"
