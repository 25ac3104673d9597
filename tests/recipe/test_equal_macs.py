"""Methods at an equal share of a model's MACs, found by counting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leanvit.errors import BadInput, Refused
from leanvit.recipe import Root, at_macs, create, nearest_setting
from leanvit.recipe import equal_macs as counted
from leanvit.recipe.equal_macs import share_of

ARGS = {"img_size": 32, "patch_size": 4, "num_classes": 5, "depth": 4, "embed_dim": 48, "num_heads": 3}


@pytest.fixture(scope="module")
def model() -> Any:
    return create(Root("vit_tiny_patch16_224", {**ARGS, "patch_drop_rate": 0.5})).eval()


@pytest.mark.parametrize("slug", ["evit", "tome", "sit", "stvit"])
@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_setting_is_found_whose_counted_share_is_the_one_asked_for(model: Any, slug: str, share: float) -> None:
    assert share_of(model, at_macs(model, slug, share)) == pytest.approx(share, rel=0.04)


def test_other_knobs_stay(model: Any) -> None:
    assert at_macs(model, "evit", 0.6, {"select": "random", "blocks": [1]}).blocks == (1,)
    assert at_macs(model, "diffrate", 0.6, {"max_steps": 3}).macs == 0.6
    assert at_macs(model, "lgvit", 0.5, {"epochs": 1}).speedup == 2
    assert at_macs(model, "nvit", 0.6).macs == 0.6
    made, control = (at_macs(model, "stvit", 0.6, {"generation": how}) for how in ("attention", "average"))
    assert control == replace(made, generation="average"), "the control gets the tokens of the generation"


def test_the_nearest_of_two_neighbours_is_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def share(_: Any, setting: int, dense: int) -> float:
        asked.append(setting)
        return setting / 100

    monkeypatch.setattr(counted, "share_of", share)
    settings = [100, 90, 70, 64, 30, 10]
    assert nearest_setting(model, settings, 0.66) == 64
    assert nearest_setting(model, settings, 0.68) == 70
    assert nearest_setting(model, settings, 0.01) == 10
    assert nearest_setting(model, settings, 0.99) == 100
    assert len(asked) < 4 * len(settings), "a bisection counts few of them"


@pytest.mark.parametrize(
    ("slug", "share", "knobs", "error", "message"),
    [
        ("evit", 1.0, {}, BadInput, "macs is 1.0; accepted: .* above 0 and below 1"),
        ("evit", 0.5, {"keep_rate": 0.5}, BadInput, "evit is given keep_rate, which the share of MACs decides"),
        ("stvit", 0.5, {"after": 1}, BadInput, "stvit is given after"),
        ("evit", 0.5, {"keep": 0.5}, BadInput, "no knob 'keep'"),
        ("gmm_mask", 0.5, {}, Refused, "gmm_mask has no knob that sets its MACs"),
    ],
)
def test_what_cannot_be_set_is_named(
    model: Any, slug: str, share: float, knobs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        at_macs(model, slug, share, knobs)


def test_a_swin_has_no_share_for_stvit() -> None:
    args = {"img_size": 64, "window_size": 4, "depths": [2, 2, 6, 2], "embed_dim": 12, "num_classes": 5}
    with pytest.raises(Refused, match="its units follow from the stages"):
        at_macs(create(Root("swin_tiny_patch4_window7_224", args)), "stvit", 0.5)
