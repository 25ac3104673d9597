"""Units, surgery and closed forms: every ratio x every kind of supported model."""

from __future__ import annotations

import copy

import pytest
import torch

from leanvit.anatomy.surgery.norms import PhantomNorm
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.prune.nvit.cost import Macs, Parameters
from leanvit.prune.nvit.groups import all_open, open_counts
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.structure import as_text, cut, from_text, structure_of
from leanvit.prune.nvit.units import KINDS, layout
from leanvit.tokens.evit import EViT
from prune.cutting import POST_NORM, SUPPORTED, SWINS, opened, pictures, some_open, units_of

RATIOS = (0.05, 0.5, 0.9)


@pytest.mark.parametrize("name", [*SUPPORTED, *SWINS, *POST_NORM])
def test_every_ratio_runs_and_costs_what_the_closed_forms_say(name: str) -> None:
    model = opened(name)
    macs, params, units = Macs.of(model), Parameters.of(model), units_of(model)
    for ratio in RATIOS:
        gates = some_open(units, ratio)
        dims = open_counts(units, gates)
        lean = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="plain"))
        lean(pictures(lean)).square().mean().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in lean.parameters())
        cost = count(lean, lean.input_size())
        assert not cost.uncounted and (cost.macs, cost.params) == (macs.total(dims), params.total(dims))
        assert parameters(lean) < parameters(model)


@pytest.mark.parametrize("name", [*SUPPORTED, *SWINS, *POST_NORM])
@torch.no_grad()
def test_cut_with_exact_norms_equals_masked(name: str) -> None:
    model = opened(name)
    units = units_of(model)
    gates = some_open(units, 0.6)
    lean = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="exact"))
    close_units(units, dict(model.named_parameters()), gates)
    x = pictures(model)
    want = model(x)
    torch.testing.assert_close(lean(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@torch.no_grad()
def test_plain_norms_equal_masked_where_the_stream_is_whole_and_only_there() -> None:
    model = opened("deit_tiny_distilled_patch16_224")
    x = pictures(model)
    for kinds, equal in ((("head", "qk", "v", "mlp"), True), (KINDS, False)):
        units = units_of(model, *kinds)
        gates = some_open(units, 0.5)
        lean = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="plain"))
        masked = copy.deepcopy(model)
        close_units(units, dict(masked.named_parameters()), gates)
        assert torch.allclose(lean(x), masked(x), atol=1e-5) == equal


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_all_open_is_the_model_itself(name: str) -> None:
    model = opened(name)
    structure = structure_of(units_of(model), all_open(units_of(model)), emb_norm="plain")
    assert structure["embed"] is None and all(row is None for block in structure["blocks"] for row in block.values())
    lean = cut(copy.deepcopy(model), structure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), lean.parameters(), strict=True))


def test_the_scale_stays_that_of_the_original_heads() -> None:
    model = opened("vit_tiny_patch16_224")
    units = units_of(model, "qk")
    lean = cut(copy.deepcopy(model), structure_of(units, some_open(units, 0.5), emb_norm="plain"))
    assert [b.attn.scale for b in lean.blocks] == [8**-0.5] * 3 and [b.attn.qk_dim for b in lean.blocks] == [4] * 3


@torch.no_grad()
def test_a_model_is_cut_twice() -> None:
    model = opened("vit_tiny_patch16_224")
    masked = copy.deepcopy(model)
    for share, norm in ((0.7, "exact"), (0.5, "exact")):
        units = units_of(model)
        gates = some_open(units, share)
        masked = copy.deepcopy(model)
        close_units(units, dict(masked.named_parameters()), gates)
        cut(model, structure_of(units, gates, emb_norm=norm))
    assert isinstance(model.norm, PhantomNorm) and model.norm.over == 24
    torch.testing.assert_close(model(pictures(model)), masked(pictures(model)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
def test_macs_follow_tokens_that_are_taken(fuse: bool) -> None:
    """All but the products of the step itself, which are priced at the present widths."""
    model = opened("vit_tiny_patch16_224")
    evit = EViT(keep_rate=0.5, blocks=(1,), fuse=fuse)
    evit.shape(model, evit.learn(model))
    macs, units = Macs.of(model), units_of(model)
    gates = some_open(units, 0.5)
    lean = cut(model, structure_of(units, gates, emb_norm="plain"))
    want = macs.total(open_counts(units, gates))
    assert abs(count(lean, lean.input_size()).macs - want) <= 0.01 * want


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_small_patch16_18x2_224", "ManyBlock"),
        ("vit_base_patch16_xp_224", "JointBlock"),
        ("vit_relpos_small_patch16_224", "RelPosAttention"),
        ("vit_small_patch16_rope_224", "rotary positions"),
        ("beit_base_patch16_224", "BeitAttention"),
    ],
)
def test_other_structures_are_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        layout(opened(name, embed_dim=48))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", *POST_NORM, "vit_base_patch16_siglip_224"])
def test_the_stream_is_refused_where_it_cannot_be_cut(name: str) -> None:
    model = opened(name)
    assert {u.kind for u in layout(model).lists} == {"head", "qk", "v", "mlp"}
    with pytest.raises(Refused, match="embedding channels"):
        layout(model, ("embed",))


def test_kept_units_are_text() -> None:
    for kept in ([0], [0, 1, 2, 7], [3, 5, 6, 9]):
        assert from_text(as_text(kept), 10, "x").tolist() == kept
    assert as_text([0, 1, 2, 7]) == "0-2,7"
    for text in ("", "0-", "3,2", "0-10", "1,1", "2-1", None, "a", "0-3,2"):
        with pytest.raises(BadInput, match="accepted: ascending"):
            from_text(text, 10, "x")


def test_a_plan_of_another_model_is_refused() -> None:
    model, other = opened("vit_tiny_patch16_224"), opened("vit_tiny_patch16_224", embed_dim=48)
    structure = structure_of(units_of(model), some_open(units_of(model), 0.5), emb_norm="plain")
    with pytest.raises(BadInput, match="of 24 units; the model has 48"):
        cut(other, structure)
    with pytest.raises(BadInput, match="2 blocks"):
        cut(model, {**structure, "blocks": structure["blocks"][:2]})


def test_the_stream_alone_is_cut() -> None:
    model = opened("vit_tiny_patch16_224")
    units = units_of(model, "embed")
    lean = cut(copy.deepcopy(model), structure_of(units, some_open(units, 0.5), emb_norm="plain"))
    assert lean.embed_dim == 12 and [b.mlp.fc2.in_features for b in lean.blocks] == [96] * 3
