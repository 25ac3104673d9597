"""Feature maps: sizes as declared on every family, dense ones as timm's, reduced tokens back on their patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import hybrid_zoo
import zoo
from backbones.small import SMALL
from leanvit.anatomy import OpenModel, Step, open_model
from leanvit.anatomy.arithmetic.quant_ops import ObserverOps
from leanvit.anatomy.parts.maps import MapSizes
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width
from leanvit.errors import BadInput, Refused
from leanvit.exits.lgvit import LGViT
from leanvit.measure import count
from leanvit.quantize.int8 import Int8
from leanvit.recipe.compat import TRAITS, method_class
from leanvit.tokens.diffrate import DiffRate
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.tokens.stvit import STViT
from leanvit.tokens.tome import ToMe
from matrix import every
from tokens.reduction import images, reduced

SMALLER = ("pit_ti_224",)  # patches overlap and nothing is padded: its maps lack a row and a column
OWN = [name for name in SMALL if name not in hybrid_zoo.HYBRIDS]
EVERY = [*zoo.ZOO, *zoo.ODD, *zoo.ZOO_SWIN, *OWN, *every(6, hybrid_zoo.HYBRIDS)]
LEAN = {
    "tome": (ToMe(r=3),),
    "evit": (EViT(keep_rate=0.6, blocks=(1, 2)),),
    "evit, nothing fused": (EViT(keep_rate=0.6, blocks=(1, 2), fuse=False),),
    "evit, as many tokens as before": (EViT(keep_rate=(1, 0.9, 1, 1)),),  # 15 and the fused one of 16
    "diffrate from block 0": (DiffRate(prune=(14, 12, 12, 9), merge=(11, 10, 9, 7)),),
    "evit, then tome": (EViT(keep_rate=0.7, blocks=(1,)), ToMe(r=(2, 0, 2, 2))),
    "tome, then evit": (ToMe(r=(2, 2, 0, 1)), EViT(keep_rate=0.7, blocks=(2,))),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def built(name: str) -> nn.Module:
    if name in hybrid_zoo.HYBRIDS:
        return hybrid_zoo.build(name)
    if name in SMALL:
        return timm.create_model(name, **SMALL[name]).eval()
    return zoo.build_swin(name) if name in zoo.ZOO_SWIN else zoo.build(name)


def inputs(model: OpenModel, batch: int = 2) -> Tensor:
    return torch.randn(batch, *model.probe_size(), generator=torch.Generator().manual_seed(1))


def same(got: tuple[Tensor, ...], want: Any) -> None:
    assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# --- every family --------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_maps_are_as_declared_and_as_timms(name: str) -> None:
    """Where tokens reach the last block; before them the whole of timm's class, its norm on or off."""
    model = open_model(built(name), check=False).eval()
    x = inputs(model).to(next(model.parameters()).dtype)
    if name == "sit_large":
        with pytest.raises(Refused, match=r"no feature maps: sit mixes its patches in blocks\.1"):
            model.maps(x)
        return
    number = len(model._map_levels())
    default, whole = model.maps(x), model.maps(x, number)
    assert len(default) == (1 if model.isotropic else number) and len(whole) == number
    same(default, whole[-len(default) :])
    assert "maps" in model.traits() and model.map_refusal() == ""
    sizes = model.map_sizes(number)
    assert sizes.channels == tuple(m.shape[1] for m in whole)
    for found, stride in zip(whole, sizes.strides, strict=True):
        cells = [math.ceil(side / pixels) for side, pixels in zip(x.shape[-2:], stride, strict=True)]
        assert list(found.shape[2:]) == cells or (name in SMALLER and found.shape[2] == cells[0] - 1)
    source = model._source[0]
    if hasattr(source, "forward_intermediates"):
        same(whole, source.forward_intermediates(x, intermediates_only=True))
        options = {"indices": [0, number - 1] if number > 1 else 1, "norm": True, "intermediates_only": True}
        same(model.maps(x, [-1, 0], norm=True), source.forward_intermediates(x, **options))


def test_sizes_are_known_before_a_run() -> None:
    vit, swin = (open_model(built(n)) for n in ("vit_base_patch16_224:qk_norm", "swin_tiny_patch4_window7_224"))
    assert vit.map_sizes() == MapSizes((24,), ((8, 4),)) and vit.map_sizes([0, -1]).multiple_of == (8, 4)
    assert swin.map_sizes() == MapSizes((12, 24, 48), ((2, 2), (4, 4), (8, 8)))
    assert swin.map_sizes().multiple_of == (8, 8) and swin.map_sizes([0]).multiple_of == (2, 2)
    traced = open_model(built("mobilevit_xxs"))
    assert traced.map_sizes([1, -1]) == MapSizes((24, 320), ((4, 4), (32, 32)))


def test_narrower_models_say_their_width() -> None:
    vit, swin = (open_model(built(n)) for n in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"))
    set_embed_width(vit, 8)
    for block in swin.blocks:
        set_attention_widths(block.attn, heads=1)
    for model, channels in ((vit, (8,)), (swin, (12, 24, 48))):
        assert tuple(m.shape[1] for m in model.maps(inputs(model))) == model.map_sizes().channels == channels


def test_other_sizes_where_the_model_takes_them() -> None:
    small, other = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 24, 40)
    fixed, free = (open_model(built(f"vit_tiny_patch16_224{kind}")) for kind in ("", ":dynamic"))
    with pytest.raises(BadInput, match="images are 24x40, the model takes 32x32"):
        fixed.maps(other)
    assert free.maps(small)[0].shape == (1, 24, 4, 4) and free.maps(other)[0].shape == (1, 24, 3, 5)
    with pytest.raises(BadInput, match="multiples of the patch size 8x8"):
        free.maps(torch.randn(1, 3, 25, 40))
    lean = reduced(built("vit_tiny_patch16_224:dynamic"), ToMe(r=2))
    assert lean.maps(other)[0].shape == (1, 24, 3, 5)
    swin = open_model(built("swinv2_tiny_window16_256:any_size"))
    assert [m.shape[2:] for m in swin.maps(torch.randn(1, 3, 48, 24))] == [(24, 12), (12, 6), (6, 3)]
    traced = open_model(built("cait_xxs24_224"))
    with pytest.raises(BadInput, match="images are 3x32x48, the model takes 3x64x64"):
        traced.maps(torch.randn(1, 3, 32, 48))


@pytest.mark.parametrize("indices", [0, 4, -1, True, 1.0, "last", [], [3], [-4], [0, 1.5], [None], {0}])
def test_indices_that_there_are_not(indices: Any) -> None:
    model = open_model(built("vit_tiny_patch16_224"))
    for ask in (lambda: model.maps(torch.zeros(1, 3, 32, 32), indices), lambda: model.map_sizes(indices)):
        with pytest.raises(BadInput, match=r"indices is .*; accepted: how many of the last of 3 maps \(1 to 3\), or"):
            ask()


def test_indices_as_timm_takes_them() -> None:
    model = open_model(built("vit_tiny_patch16_224"))
    x = inputs(model)
    whole = model.maps(x, 3)
    for indices, want in ((None, [2]), (2, [1, 2]), ([1], [1]), ((-1, 0, 2), [0, 2])):
        same(model.maps(x, indices), [whole[i] for i in want])


def test_the_state_of_a_run_is_that_behind_the_last_map() -> None:
    model = reduced(built("vit_tiny_patch16_224"), EViT(keep_rate=(1, 0.5, 0.5)))
    _, state = model.trace_maps(inputs(model), [0, 1], tap=frozenset({"blocks.0"}))
    assert len(state.tokens) == 2 and "blocks.0" in state.taps
    _, other = model.trace_maps(inputs(model), keep_rate=0.9)
    assert other.tokens[-1] > model.trace_maps(inputs(model))[1].tokens[-1]


# --- reduced tokens --------------------------------------------------------------------


def by_hand(model: OpenModel, x: Tensor) -> list[Tensor]:
    """Grids (B, P, C) behind each block: patch by patch, from what the trace of the tokens tells."""
    state = model.start(x, trace=True, tap=frozenset("*"))
    tokens, state = model.embed(x, state)
    grid, found = tokens[:, state.num_prefix :].clone(), []
    gone = torch.zeros(grid.shape[:2], dtype=torch.bool)
    for i, block in enumerate(model.blocks):
        seen = set(state.taps)
        tokens, state = model.run(tokens, state, i, i + 1)
        owner = state.owners(len(x), x.device)
        fused = tokens.shape[1] - 1 if f"blocks.{i}.topk" in set(state.taps) - seen and block.between[0].fuses else None
        for image in range(grid.shape[0]):
            for patch in range(grid.shape[1]):
                holder = int(owner[image, patch])
                gone[image, patch] |= holder < 0 or holder == fused
                if not gone[image, patch]:
                    grid[image, patch] = tokens[image, holder]
        found.append(grid.clone())
    return found


@pytest.mark.parametrize("variant", [{}, {"reg_tokens": 3}])
@pytest.mark.parametrize("methods", LEAN.values(), ids=LEAN)
def test_each_patch_gets_its_holder_or_keeps_its_last_value(tiny, methods: tuple, variant: dict) -> None:
    model = reduced(tiny(**variant), *methods)
    x = images(3)
    maps, state = model.trace_maps(x, 4)
    want = by_hand(model, x)
    same(maps, [grid.unflatten(1, (4, 4)).permute(0, 3, 1, 2) for grid in want])
    assert len({tuple(row.tolist()) for row in state.owner}) > 1  # images differ in which tokens hold which patches
    normed = model.norm(want[-1]).unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.maps(x, norm=True)[0], normed)
    same(model.forward_intermediates(x, norm=True, intermediates_only=True, indices=1), model.maps(x, norm=True))
    assert torch.equal(model(x), reduced(tiny(**variant), *methods)(x))


def test_merged_patches_are_alike_and_dropped_ones_are_not(tiny) -> None:
    """What tells the two rules apart: a merged patch is its holder's equal, one that went into a sum stands alone."""
    merged, summed = (reduced(tiny(), one) for one in (ToMe(r=6), EViT(keep_rate=0.3, blocks=(1,))))
    x = images(1)
    distinct = [len(m.maps(x)[0].flatten(2)[0].T.unique(dim=0)) for m in (merged, summed)]
    assert distinct == [2, 16]  # 16 patches, four times six of those that are left, at most half of them


def test_the_last_value_is_nearer_to_the_dense_map_than_the_sum(tiny) -> None:
    x, evit = images(4), EViT(keep_rate=0.4, blocks=(1,))
    dense, lean = open_model(tiny()).maps(x)[0], reduced(tiny(), evit)
    _, state = lean.trace(x, trace=True)
    tokens, state = lean.run(*lean.embed(x, lean.start(x, trace=True)))
    held = torch.stack([row[owner] for row, owner in zip(tokens, state.owner, strict=True)])
    held = held.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    assert (lean.maps(x)[0] - dense).norm() < (held - dense).norm()


@pytest.mark.parametrize(
    "methods", [(ToMe(r=0),), (EViT(keep_rate=(1, 1.0, 1, 1)),), (EViT(keep_rate=0.99, tokens=16),)]
)
def test_nothing_reduced_is_the_dense_map(tiny, methods: tuple) -> None:
    x = images(2)
    same(reduced(tiny(), *methods).maps(x, 4), open_model(tiny()).maps(x, 4))


def test_merging_in_windows_and_units_give_whole_maps() -> None:
    swin = zoo.build_swin("swin_tiny_patch4_window7_224")
    merged = reduced(swin, ToMe(r=4))
    assert [m.shape[1:] for m in merged.maps(inputs(merged))] == [(12, 16, 16), (24, 8, 8), (48, 4, 4)]
    sizes = {"img_size": 56, "window_size": 7, "depths": (2, 6, 1)}
    whole = reduced(zoo.build_swin("swin_tiny_patch4_window7_224", **sizes), STViT(stage=1))
    assert "maps" in whole.traits() and whole.blocks[3].source == "stvit"
    assert [m.shape[1:] for m in whole.maps(inputs(whole))] == [(12, 28, 28), (24, 14, 14), (48, 7, 7)]


@pytest.mark.parametrize("name", ["vit_base_patch16_224:regularised", "eva02_base_patch14_224:regularised"])
def test_patches_that_dropout_took_keep_their_embedding(name: str) -> None:
    """`norm_pre` included: the embedding is what the first block gets."""
    arguments = {"pre_norm": True} if name.startswith("vit") else {}
    model = open_model(zoo.build(name, **arguments, drop_path_rate=0.0, drop_rate=0.0, pos_drop_rate=0.0)).train()
    for block in model.blocks:
        block.eval()
    model.pos_drop.eval()
    x = inputs(model)
    whole, _ = model.eval().embed(x, model.start(x))
    model.patch_drop.train()
    state = model.start(x, trace=True)
    torch.manual_seed(3)
    tokens, state = model.embed(x, state)
    tokens, state = model.run(tokens, state)
    owner, prefix = state.owner, model.num_prefix_tokens
    assert owner is not None and (owner < 0).float().mean() == 0.5
    torch.manual_seed(3)
    found = model.maps(x)[0].flatten(2).mT
    for image in range(len(x)):
        for patch in range(owner.shape[1]):
            at = int(owner[image, patch])
            want = whole[image, prefix + patch] if at < 0 else tokens[image, at]
            torch.testing.assert_close(found[image, patch], want, rtol=0, atol=0)


def test_gradients_reach_every_patch_and_checkpointing_changes_nothing(tiny) -> None:
    model, found = reduced(tiny(), *LEAN["evit, then tome"]).train(), []
    with torch.enable_grad():
        for checkpointed in (False, True):
            model.set_grad_checkpointing(checkpointed)
            x = images(2).requires_grad_()
            model.maps(x, 2)[0].square().sum().backward()
            assert (x.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().amax((1, 4, 5)) > 0).all()
            found.append(x.grad)
    assert torch.equal(*found)


# --- refusals --------------------------------------------------------------------------


def refused(model: OpenModel, says: str) -> None:
    assert "maps" not in model.traits()
    for ask in (model.map_sizes, lambda: model.maps("no images: asked before any work")):
        with pytest.raises(Refused, match=rf"the model gives no feature maps: {says}"):
            ask()


def test_methods_that_leave_no_grid_are_named(tiny) -> None:
    refused(reduced(tiny(), SiT(keep_rate=0.5, stages=(2, 2))), r"sit mixes its patches in blocks\.1")
    refused(reduced(tiny(), STViT(after=1, window=2, samples=1)), r"stvit mixes its patches in blocks\.1")
    exits = reduced(tiny())
    LGViT(exits=(2,), threshold=0.9).shape(exits, LGVIT)
    refused(exits, "lgvit lets images leave before its end")
    with exits.without_exits():
        assert exits.maps(images(1))[0].shape == (1, 48, 4, 4)
    assert TRAITS["maps"] and all("maps" in method_class(slug).destroys for slug in ("sit", "lgvit"))


LGVIT = {
    "exits": [{"layer": 2, "head": "cnn"}],
    "rule": "confidence",
    "thresholds": [0.9],
    "patience": 2,
    "macs": [1, 2],
    "dense_macs": 2,
}


class Half(Step):
    """Keeps half of the patches and does not say which."""

    reduces = True
    source = "half"

    def forward(self, x: Any, state: Any) -> Any:
        return x[:, : state.num_prefix + (x.shape[1] - state.num_prefix) // 2], state


def test_a_step_that_does_not_say_which_token_holds_a_patch(tiny) -> None:
    model = reduced(tiny(), EViT(keep_rate=0.7, blocks=(1,)))
    model.blocks[2].after.append(Half())
    assert model.maps(images(1), [1])[0].shape == (1, 48, 4, 4)
    with pytest.raises(Refused, match="block 2 gives 7 tokens, not 17: token reduction left no full grid"):
        model.maps(images(1))
    swin = open_model(zoo.build_swin("swin_tiny_patch4_window7_224"))
    swin.blocks[2].after.append(Half())
    refused(swin, r"steps take tokens away in layers\.1\.blocks\.0, and a stage needs its full grid")


def test_a_traced_class_without_stages_is_refused_by_name() -> None:
    model = open_model(built("mobilevit_xxs"))
    model.feature_info = []
    refused(model, "ByobNet names no stages")


# --- op sets, counting -----------------------------------------------------------------


class Maps(nn.Module):
    def __init__(self, model: OpenModel, indices: Any = None) -> None:
        super().__init__()
        self.model, self.indices = model, indices

    def forward(self, images: Tensor) -> Any:
        return self.model.maps(images, self.indices)


class Noise:
    """What `Int8.learn` asks of data."""

    def images(self, number: int) -> Iterator[Tensor]:
        yield images(number)


def rounded(model: OpenModel) -> OpenModel:
    method = Int8(images=8)
    structure = method.learn(model, Noise())  # type: ignore[arg-type]
    method.shape(model, structure)
    method.fold(model, structure, {})
    return model


@pytest.mark.parametrize("methods", [(), *LEAN.values()], ids=["dense", *LEAN])
def test_int8_after_reduction(tiny, methods: tuple) -> None:
    """The same rule on rounded tokens, bit for bit. Where rounding moves a choice, an image's map differs by more."""
    model, x = rounded(reduced(tiny(), *methods)), images(8)
    got = model.maps(x, 4)
    same(got, [grid.unflatten(1, (4, 4)).permute(0, 3, 1, 2) for grid in by_hand(model, x)])
    want = reduced(tiny(), *methods).maps(x, [0])[0].flatten(1)
    drift = (got[0].flatten(1) - want).norm(dim=1) / want.norm(dim=1)
    assert 0.001 < drift.median() < 0.1


def test_observers_see_the_same_sites_and_no_more(tiny) -> None:
    model, x = reduced(tiny(), *LEAN["tome"]), images(2)
    seen = [ObserverOps(), ObserverOps()]
    model.trace(x, ops=seen[0])
    maps, _ = model.trace_maps(x, ops=seen[1])
    assert [*seen[0].kinds] == [*seen[1].kinds, "head"]
    torch.testing.assert_close(maps[0], model.maps(x)[0], rtol=1e-4, atol=1e-5)


def test_traced_models_round_maps_too() -> None:
    model = open_model(hybrid_zoo.build("mobilevit_xxs"))
    x, observer = hybrid_zoo.images(model), ObserverOps()
    model.trace(x, ops=observer)
    sites = set(observer.kinds)
    observer = ObserverOps()
    model.trace_maps(x, ops=observer)
    assert set(observer.kinds) == sites - {"head.fc"}


@pytest.mark.parametrize("methods", [(), *LEAN.values()], ids=["dense", *LEAN])
def test_maps_cost_what_the_blocks_cost(tiny, recwarn, methods: tuple) -> None:
    model = reduced(tiny(), *methods)
    whole, maps = count(model, (3, 32, 32)), count(Maps(model), (3, 32, 32))
    assert whole.macs - maps.macs == 48 * 7 and not maps.uncounted  # the classifier
