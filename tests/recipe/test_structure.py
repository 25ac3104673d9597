"""Structures of plans are as strict as knobs: what a method did not write is refused, by plan and key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import digits
from hypothesis import given, settings
from hypothesis import strategies as st

from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError
from leanvit.exits.lgvit import LGViT
from leanvit.files import sealed_text
from leanvit.prune.nvit import NViT
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Root, compress, create, load_run, method_class, own_methods, save
from leanvit.recipe.structure import check_structure
from leanvit.tokens.diffrate import DiffRate
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.tokens.stvit import STViT
from leanvit.tokens.tome import ToMe

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 3, "num_heads": 1, "in_chans": 1, "num_classes": 10}
CHAINS = {
    "evit": [EViT(blocks=(1, 2))],
    "tome": [ToMe(r=2)],
    "diffrate": [DiffRate(prune=(17, 10, 8), merge=(17, 9, 6))],
    "sit": [SiT(stages=(1, 2))],
    "stvit": [STViT(after=1, window=2, samples=1)],
    "gmm_mask": [GmmMask(blocks=(0, 2))],
    "nvit": [NViT(macs=1, batch_size=8)],
    "int8": [Int8(images=4)],
    "lgvit": [LGViT(exits=(1, 2), epochs=0, stage1_epochs=0, held_out=0.2)],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    model = create(Root("vit_tiny_patch16_224", SMALL))
    data = Data(digits(20), Preprocess.of(model))
    for slug, chain in CHAINS.items():
        made[slug] = save(compress(model, chain, data), folder / slug)
    return made


def structure_of(run: Path) -> dict[str, Any]:
    structure: dict[str, Any] = json.loads((run / "leanvit.json").read_bytes())["plans"][0]["structure"]
    return structure


def edited(run: Path, structure: Any, to: Path) -> Path:
    """The run with another structure in its plan, sealed anew."""
    content = json.loads((run / "leanvit.json").read_bytes())
    content["plans"][0]["structure"] = structure
    to.mkdir(exist_ok=True)
    for weights in run.glob("weights-*"):
        if not (to / weights.name).exists():
            (to / weights.name).hardlink_to(weights)
    (to / "leanvit.json").write_bytes(sealed_text(content))
    return to


def test_every_method_of_ours_says_its_structure() -> None:
    assert {*CHAINS} == {*own_methods()}
    assert all(hasattr(method_class(slug), "structure_model") for slug in own_methods())


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(structure: Any) -> None:
        for key in path[:-1]:
            structure = structure[key]
        structure[path[-1]] = to

    return change


TABLE: list[tuple[str, Callable[[Any], Any], str]] = [
    ("evit", _set("extra", to=1), "plan 'evit'.*it has no key 'extra'"),
    ("evit", _set("blocks", 0, "keep_rat", to=0.5), r"blocks\[0\] has no key 'keep_rat'.*did you mean 'keep_rate'"),
    ("evit", _set("blocks", to={"0": {}}), r"blocks is .*; accepted: a list"),
    ("evit", _set("blocks", 0, "block", to=True), r"block of blocks\[0\] is True; accepted: a whole number, 0 or more"),
    ("evit", _set("blocks", 0, "block", to=-1), r"block of blocks\[0\] is -1; accepted: a whole number, 0 or more"),
    (
        "evit",
        _set("blocks", 0, "keep_rate", to=float("nan")),
        "keep_rate of block 1 is nan; accepted: a number above 0",
    ),
    ("evit", _set("blocks", 1, "keep_rate", to=2), "keep_rate of block 2 is 2; accepted: a number above 0, up to 1"),
    (
        "evit",
        lambda s: s["blocks"].append(s["blocks"][0]),
        r"blocks is .*; accepted: a list, .* each more than the last",
    ),
    ("tome", lambda s: s["blocks"].reverse(), r"blocks is .*; accepted: a list, .* each more than the last"),
    ("tome", _set("blocks", 0, "r", to="2"), "r of block 0 is '2'; accepted: a whole number"),
    ("diffrate", lambda s: s.pop("dense_macs"), "lacks dense_macs"),
    ("diffrate", _set("dense_macs", to=0), "dense_macs"),
    ("sit", _set("slimming", 0, "tokens", to=2.0), r"tokens of block 0 is 2\.0; accepted: a whole number"),
    ("sit", lambda s: s["slimming"].append(s["slimming"][0]), "each more than the last"),
    ("stvit", _set("window", to=[2]), "window"),
    ("stvit", _set("window", to=[2, True]), r"window is \[2, True\]; accepted: a list of 2, each a whole number"),
    ("stvit", _set("stage", to=0), "accepted: after and window, or of a Swin stage and units"),
    ("gmm_mask", _set("blocks", to=[0, 0]), r"blocks is \[0, 0\]; accepted: .*each more than the last"),
    ("gmm_mask", _set("blocks", to="02"), "blocks is '02'; accepted: a list"),
    ("nvit", _set("blocks", 0, "heads", to=None), r"blocks\[0\] has no key 'heads'.*head"),
    ("nvit", _set("embed", to={"before": 24, "after": 3, "kept": "0-1"}), "embed: after is 3, and kept names 2"),
    ("nvit", _set("embed", to={"before": 24, "after": 2, "kept": "1,0"}), "ascending numbers"),
    ("nvit", _set("emb_norm", to="other"), "emb_norm is 'other'; accepted: plain or exact"),
    ("int8", lambda s: s["sites"].append(s["sites"][0]), r"site is .*; accepted: a list, .*none twice"),
    ("int8", lambda s: s["sites"][0]["operands"].pop("weight"), r"operands of '.*' are input; accepted: input, weight"),
    (
        "int8",
        _set("sites", 0, "kind", to="conv3d"),
        r"kind of sites\[0\] is 'conv3d'; accepted: .*linear.*did you mean 'conv'",
    ),
    ("lgvit", lambda s: s["exits"].append(s["exits"][0]), r"layer of exits is .*none twice"),
    ("lgvit", _set("held_out", "images", to=True), "images of held_out is True; accepted: a whole number"),
    ("lgvit", _set("macs", to={}), "macs is {}; accepted: a list"),
]


@pytest.mark.parametrize(("slug", "change", "says"), TABLE)
def test_an_edited_structure_is_refused_by_plan_and_key(slug, change, says, runs, tmp_path) -> None:
    structure = structure_of(runs[slug])
    change(structure)
    with pytest.raises(CheckpointError, match=rf"(?s)structure of plan '{slug}'.*{says.removeprefix('plan ')}|{says}"):
        load_run(edited(runs[slug], structure, tmp_path / "run"))


@pytest.mark.parametrize("slug", CHAINS)
def test_what_a_method_writes_is_accepted(slug, runs) -> None:
    structure = structure_of(runs[slug])
    check_structure(CHAINS[slug][0], structure)
    assert load_run(runs[slug]).model.history.plans[0].structure == structure


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


ODD = st.sampled_from([None, True, -1, 0, 1, 2, 10**30, 0.5, float("nan"), float("inf"), "", "0-1", [], {}, [1, 1]])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(slug=st.sampled_from(sorted(CHAINS)), draw=st.data())
def test_any_change_is_refused_or_gives_a_model_that_fits(slug, draw, runs, tmp_path_factory) -> None:
    structure = copy.deepcopy(structure_of(runs[slug]))
    *path, last = draw.draw(st.sampled_from([place for place in _places(structure) if place]))
    parent = structure
    for key in path:
        parent = parent[key]
    how = draw.draw(st.sampled_from(["set", "drop", "double", "rename"]))
    if how == "set":
        parent[last] = draw.draw(ODD)
    elif how == "drop":
        del parent[last]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[last]))
    else:
        parent[f"{last}_"] = parent.pop(last)
    run = edited(runs[slug], structure, tmp_path_factory.mktemp("edited"))
    try:
        found = load_run(run).model
    except (CheckpointError, BadInput):
        return
    whole = load_run(runs[slug]).model.state_dict()  # what can differ without a trace is no tensor's shape
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in whole.items()}
    with torch.no_grad():
        assert found(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
