"""Other constructor arguments: weights that follow, as timm moves them; plans that hold; what is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

import leanvit.backbones  # noqa: F401 (registers leanvit's)
import zoo
from leanvit.anatomy import OpenModel
from leanvit.backbones.dct_histo.model import resized_positions
from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.backbones.t2t_vit.model import sinusoid
from leanvit.data import Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.prune.nvit import NViT
from leanvit.recipe import History, Root, compress, create, load, rebuilt, save
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from saved.make import FOLDER

VIT = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 7}
SWIN = {**zoo.SMALL_SWIN, "depths": [2, 1], "num_heads": [2, 2]}


def dense(name: str = VIT, **kwargs: Any) -> OpenModel:
    """Opened, every parameter random, in eval mode."""
    given = {**({} if "depths" in kwargs else SMALL), **kwargs}
    return compress(zoo.randomise(timm.create_model(name, **given)).eval(), [], root=Root(name, given))


def pictures(model: OpenModel) -> torch.Tensor:
    return torch.randn(2, *model.input_size(), generator=torch.Generator().manual_seed(1))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "kwargs", "changed"),
    [
        (VIT, {}, {"img_size": 48}),
        (VIT, {"patch_size": 16, "img_size": 64}, {"patch_size": 8}),
        (VIT, {"dynamic_img_size": True}, {"img_size": [48, 16]}),
        ("deit_tiny_distilled_patch16_224", {}, {"img_size": 16}),
        ("vit_so150m_patch16_reg4_map_256", {}, {"img_size": 48}),
        ("eva02_tiny_patch14_224", {"embed_dim": 48, "num_heads": 3}, {"img_size": 48}),
        ("vit_small_patch16_rope_mixed_224", {"embed_dim": 48, "num_heads": 3}, {"img_size": 48}),
        ("beit_base_patch16_224", {}, {"img_size": 48}),
        ("vit_relpos_base_patch16_clsgap_224", {}, {"img_size": 48}),
        ("swin_tiny_patch4_window7_224", SWIN, {"img_size": 48, "window_size": 6}),
        ("swin_tiny_patch4_window7_224", SWIN, {"img_size": 12}),
        ("swinv2_tiny_window8_256", SWIN, {"img_size": 48, "window_size": 6}),
    ],
)
def test_weights_are_what_timm_makes_of_the_same_file(name: str, kwargs: Any, changed: Any, tmp_path: Path) -> None:
    model = dense(name, **kwargs)
    root = model.history.root
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "old.safetensors")
    overlay = {"file": str(tmp_path / "old.safetensors"), "num_classes": 7}
    want = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**root.kwargs, **changed}).eval()
    got = rebuilt(model, changed)
    assert same(got.state_dict(), want.state_dict())
    assert torch.equal(got(pictures(got)), want(pictures(got)))
    assert got.history.root == Root(name, {**root.kwargs, **changed}) and not got.training


@pytest.mark.parametrize("new", [[32, 24], [40, 24]])
def test_the_old_grid_need_not_be_square(new: list[int]) -> None:
    """Also where the number of tokens stays."""
    model = dense(img_size=[24, 32])
    table = resample_abs_pos_embed(model.pos_embed, [new[0] // 8, 3], [3, 4], num_prefix_tokens=1)
    assert torch.equal(rebuilt(model, {"img_size": new}).pos_embed, table)


def test_architectures_resize_as_their_own_code_does() -> None:
    t2t = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "depth": 1, "token_dim": 8, "num_classes": 3}
    wide = {"img_size": 64}
    table = create(Root("t2t_vit_7", t2t)).pos_embed
    interpolated = rebuilt(create(Root("t2t_vit_7", t2t)), wide).pos_embed
    assert torch.equal(interpolated, resample_abs_pos_embed(table, [4, 4], [2, 2], num_prefix_tokens=1))
    regenerated = rebuilt(create(Root("t2t_vit_7", {**t2t, "resize_positions": "sinusoid"})), wide).pos_embed
    assert torch.equal(regenerated, sinusoid(17, 16)) and not torch.equal(regenerated, interpolated)
    larger = rebuilt(create(Root("t2t_vit_7", {**t2t, "img_size": 32})), wide)
    again = rebuilt(larger, {"resize_positions": "sinusoid", "drop_path_rate": 0.1})
    assert torch.equal(again.pos_embed, larger.pos_embed), "the size is the same"
    dct = {"img_size": 64, "dims": [8, 8, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 2], "num_classes": 3}
    old = create(Root("dct_histo_tiny", dct))
    key = "stages.0.blocks.0.dct.pos_embed"
    got = rebuilt(old, {"img_size": 96}).state_dict()[key]
    assert got.shape[1:3] == (6, 6) and torch.equal(got, resized_positions(old.state_dict()[key], (6, 6)))


def test_a_hybrid_follows() -> None:
    kwargs = {"img_size": 32, "embed_dim": [16] * 3, "key_dim": 8, "depth": [1] * 3, "num_heads": [1, 2, 2]}
    model = create(Root("levit_128s", {**kwargs, "num_classes": 3}))
    lines: list[str] = []
    got = rebuilt(model, {"img_size": 64}, log=lines.append)
    key = "stages.0.blocks.0.attn.attention_biases"
    assert got.state_dict()[key].shape == (1, 16) and any(key in line and "resized" in line for line in lines)
    assert got(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_drop_rates_change_no_bit() -> None:
    model = dense()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    got = rebuilt(model, {"drop_path_rate": 0.5, "proj_drop_rate": 0.1})
    assert same(got.state_dict(), before) and same(model.state_dict(), before)
    assert torch.equal(got(pictures(got)), model(pictures(got)))
    assert not torch.equal(got.train()(pictures(got)), model(pictures(got))), "paths are dropped"
    again = rebuilt(got, {"drop_path_rate": 0.5})
    assert again is not got and again.history.root == got.history.root


def test_other_classes_get_a_fresh_classifier_and_the_same_number_keeps_it() -> None:
    model = dense("deit_tiny_distilled_patch16_224")
    model.classes = tuple("abcdefg")
    lines: list[str] = []
    three, again, other = (rebuilt(model, {"num_classes": 3}, seed=s, log=lines.append) for s in (1, 1, 2))
    state, old = three.state_dict(), model.state_dict()
    heads = [key for key in old if key.startswith("head")]
    assert heads == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert all(torch.equal(state[key], old[key]) for key in old if key not in heads)
    assert state["head.weight"].shape[0] == three.num_classes == 3 and three.classes == ()
    assert same(again.state_dict(), state) and not torch.equal(other.head.weight, three.head.weight)
    assert "head.weight, head.bias, head_dist.weight and 1 more made anew (3 classes, before 7)" in lines
    wider = rebuilt(model, {"img_size": 48})
    assert wider.classes == model.classes and torch.equal(wider.head.weight, model.head.weight)
    headless = rebuilt(model, {"num_classes": 0}, log=lines.append)
    assert "head.weight, head.bias, head_dist.weight and 1 more left out" in lines
    assert not any(key.startswith("head") for key in headless.state_dict())


def test_another_pooling_moves_the_last_norm() -> None:
    model, lines = dense(), []
    mean = rebuilt(model, {"global_pool": "avg"}, log=lines.append)
    assert {"norm.weight becomes fc_norm.weight", "norm.bias becomes fc_norm.bias"} <= set(lines)
    assert torch.equal(mean.fc_norm.weight, model.norm.weight) and "norm.weight" not in mean.state_dict()
    tokens, _ = model.run(*model.embed(pictures(model), model.start(pictures(model))))
    by_hand = model.head(model.norm(tokens[:, 1:].mean(dim=1)))
    torch.testing.assert_close(mean(pictures(mean)), by_hand, rtol=1e-5, atol=1e-5)
    back = rebuilt(mean, {"global_pool": "token"})
    assert same(back.state_dict(), model.state_dict())
    assert torch.equal(back(pictures(back)), model(pictures(back)))


def test_preprocessing_follows_the_size_and_everything_is_said() -> None:
    model, lines = dense(), []
    model.preprocess = Preprocess((3, 32, 32), (0.4,) * 3, (0.2,) * 3, "bilinear", 0.9, "center")
    got = rebuilt(model, {"img_size": [48, 16]}, log=lines.append)
    assert got.preprocess == Preprocess((3, 48, 16), (0.4,) * 3, (0.2,) * 3, "bilinear", 0.9, "center")
    assert lines == [
        f"rebuilt {VIT} with img_size=[48, 16]: {len(model.state_dict()) - 1} tensors as they were",
        "pos_embed resized, a grid of 4x4 to 6x2, bicubic with antialias",
        "images are prepared at 48x16, before at 32x32",
    ]
    assert rebuilt(got, {"drop_path_rate": 0.1}).preprocess == got.preprocess


def test_precision_stays() -> None:
    model = dense().half()
    got = rebuilt(model, {"img_size": 48})
    assert {p.dtype for p in got.parameters()} == {torch.float16}
    assert torch.equal(got.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    "methods", [[EViT(keep_rate=0.5, blocks=(0,))], [ToMe(r=3)], [ToMe(r=(2, 0)), EViT(blocks=(1,))]]
)
def test_plans_that_hold_for_any_grid_are_replayed(methods: list[Any]) -> None:
    """To rebuild what was compressed, or to compress what was rebuilt, is the same."""
    model = dense()
    one = rebuilt(compress(model, methods), {"img_size": 48, "drop_path_rate": 0.1})
    other = compress(rebuilt(model, {"img_size": 48, "drop_path_rate": 0.1}), methods)
    assert one.history == other.history and same(one.state_dict(), other.state_dict())
    assert one.patch_tokens() == other.patch_tokens()
    assert torch.equal(one(pictures(one)), other(pictures(other)))


def unpacked(name: str, folder: Path) -> Path:
    shutil.unpack_archive(FOLDER / f"{name}.zip", folder / name)
    return folder / name


def test_widths_that_were_cut_stay(tmp_path: Path) -> None:
    cut = load(unpacked("nvit", tmp_path))
    got = rebuilt(tmp_path / "nvit", {"img_size": 32, "num_classes": 9})
    state, old = got.state_dict(), cut.state_dict()
    assert [plan.slug for plan in got.history.plans] == [NViT.slug] and got.history.plans == cut.history.plans
    assert all(torch.equal(state[key], old[key]) for key in old if not key.startswith(("head.", "pos_embed")))
    assert got.grid() == (8, 8) and got(pictures(got)).shape == (2, 9)
    save(got, tmp_path / "again")
    loaded = load(tmp_path / "again")
    assert same(loaded.state_dict(), state) and loaded.history == got.history
    assert torch.equal(loaded(pictures(got)), got(pictures(got)))


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        (
            "evit-distilled",
            {"img_size": 32},
            "'evit' is tied to its grid of 4x4 tokens, which becomes 8x8: .* 9, 5",
        ),
        ("diffrate", {"img_size": 32}, "'diffrate' is tied to its grid"),
        ("sit", {"img_size": 32}, "'sit' is tied to its grid.*slims it to 8 tokens"),
        ("stvit", {"img_size": 32}, "'stvit' is tied to its grid"),
        ("lgvit", {"img_size": 32}, "'lgvit' is tied to its grid.*thresholds"),
        ("lgvit", {"num_classes": 3}, "'lgvit' is tied to its 5 classes, which become 3"),
        (
            "int8",
            {"drop_path_rate": 0.1},
            "'int8' is tied to the model as it is.*Build the model that int8",
        ),
        ("int8-levit", {"num_classes": 3}, "'int8' is tied to the model as it is"),
        ("nvit-evit-int8", {"num_classes": 3}, "'int8' is tied to the model as it is"),
    ],
)
def test_plans_that_are_tied_are_refused(name: str, changed: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=says):
        rebuilt(unpacked(name, tmp_path), changed)


@pytest.mark.parametrize("name", ["evit-distilled", "diffrate", "sit", "lgvit", "gmm_mask"])
def test_what_a_plan_is_not_tied_to_may_change(name: str, tmp_path: Path) -> None:
    lean = load(unpacked(name, tmp_path))
    got = rebuilt(lean, {"drop_path_rate": 0.1, **({"img_size": 32} if name == "gmm_mask" else {})})
    assert [p.slug for p in got.history.plans] == [p.slug for p in lean.history.plans]
    if name != "gmm_mask":
        assert torch.equal(got(pictures(got)), lean(pictures(lean)))


def test_elm_masks_are_tied_to_the_grid_and_gaussian_ones_are_not() -> None:
    gmm, elm = (GmmMask(mask=kind).tied_to({"blocks": [0]}) for kind in ("gmm", "elm"))
    assert gmm == {} and "grid" in elm
    with pytest.raises(Refused, match="'gmm_mask' is tied to its grid"):
        rebuilt(compress(dense(), [GmmMask(mask="elm")]), {"img_size": 48})


def test_a_method_that_is_tied_to_something_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GmmMask, "tied_to", lambda self, structure: {"gird": "its masks are of it"})
    with pytest.raises(Refused, match="'gmm_mask' is tied to 'gird'; known: grid, classes, make"):
        rebuilt(compress(dense(), [GmmMask()]), {"img_size": 48})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"depth": 3}, r"depth is 3, which the weights of a run cannot follow: blocks\.2.* absent, and would be"),
        ({"num_heads": 4}, r"num_heads is 4.*blocks\.0\.attn is \(2, .*and would be \(4, "),
        ({"embed_dim": 48}, "embed_dim is 48"),
        ({"in_chans": 1}, "in_chans is 1"),
        ({"img_size": 48, "mlp_ratio": 2.0}, r"mlp_ratio is 2\.0.*accepted: drop rates.*img_size"),
        ({"img_sizes": 48}, "timm cannot build.*img_sizes"),
        ({"pretrained": True}, "'pretrained' is not part of a root"),
        ({"img_size": 0}, "img_size is 0; accepted: 1 or more"),
    ],
)
def test_arguments_that_weights_cannot_follow_are_refused_by_name(changed: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        rebuilt(dense(), changed)


def test_tables_that_nothing_resizes_are_refused_by_name() -> None:
    model = create(Root("visformer_tiny", {"img_size": 64, "depth": [1, 1, 1], "num_classes": 3}))
    with pytest.raises(Refused, match=r"cannot follow img_size=96: pos_embed1 is \(1, 96, 8, 8\), and would be"):
        rebuilt(model, {"img_size": 96})


def test_a_model_without_a_history_or_in_the_middle_of_a_compression_is_refused() -> None:
    model = compress(dense(), [EViT(blocks=(0,))])
    (plan,) = model.history.plans
    model.history = History(model.history.root, (replace(plan, finished=False),))
    with pytest.raises(Refused, match="'evit' is unfinished"):
        rebuilt(model, {"img_size": 48})
    model.history = None
    with pytest.raises(Refused, match="no history"):
        rebuilt(model, {"img_size": 48})


def test_the_arguments_are_json_in_the_saved_run(tmp_path: Path) -> None:
    save(rebuilt(dense(), {"img_size": (48, 16)}), tmp_path / "run")
    content = json.loads((tmp_path / "run/leanvit.json").read_text(encoding="utf-8"))
    assert content["root"]["kwargs"]["img_size"] == [48, 16]
