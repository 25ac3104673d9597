"""Properties of compositions: save and load, off, reapply, order, recovery."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.errors import BadInput, Refused
from leanvit.exits.lgvit import LGViT
from leanvit.prune.nvit import NViT
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Plan, Recovery, compatibility, compress, load, own_methods, reapply, save
from leanvit.recipe.compat import Cell, cell
from leanvit.tokens.diffrate import DiffRate
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.tokens.stvit import STViT
from leanvit.tokens.tome import ToMe


def _random_methods(rng: random.Random) -> list:
    pool = [
        EViT(keep_rate=rng.choice([0.3, 0.5, 0.9]), blocks=(1,), fuse=rng.random() < 0.5),
        EViT(keep_rate=0.8, blocks=(3,)),
        ToMe(r=[0, 0, rng.randint(1, 4), 0]),
    ]
    chosen = rng.sample(pool, rng.randint(0, 3))
    return [*chosen, Int8()] if rng.random() < 0.6 else chosen


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_saves_and_loads_bit_identically(tiny, noise, images: Tensor, tmp_path: Path, seed: int) -> None:
    methods = _random_methods(random.Random(seed))
    lean = compress(tiny(), methods, noise)
    save(lean, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(images), lean(images))
    assert [p.slug for p in again.history.plans] == [m.slug for m in methods]


def test_no_method_is_the_original(tiny, images: Tensor) -> None:
    model = tiny()
    for methods in ([], [EViT(keep_rate=1.0)], [ToMe(r=0)], [EViT(keep_rate=1.0), ToMe(r=0)]):
        assert torch.equal(compress(model, methods)(images), model(images))


def test_an_edited_plan_goes_to_the_root(tiny, images: Tensor) -> None:
    model = tiny()
    lean = compress(model, [EViT(keep_rate=0.5, blocks=(1,))])
    assert torch.equal(reapply(model, lean.history.plans)(images), lean(images))
    edited = Plan("evit", {"keep_rate": 0.75, "blocks": [1]}, EViT(keep_rate=0.75, blocks=(1,)).learn(lean, None))
    assert torch.equal(reapply(model, [edited])(images), compress(model, [edited.method()])(images))
    with pytest.raises(Refused, match="root"):
        reapply(lean, [edited])


def test_learned_values_are_not_redone_from_a_plan(tiny, noise) -> None:
    lean = compress(tiny(), [Int8()], noise)
    with pytest.raises(Refused, match="int8 learns values from data"):
        reapply(tiny(), lean.history.plans)


def test_a_wrong_order_is_refused_with_one_that_works(tiny, noise) -> None:
    with pytest.raises(Refused, match=r"evit needs float.*int8 takes away.*This order works: evit, int8"):
        compress(tiny(), [Int8(), EViT()], noise)
    with pytest.raises(Refused, match="class token"):
        compress(tiny(class_token=False, global_pool="avg"), [EViT()])


def test_two_reductions_in_one_block_are_refused(tiny) -> None:
    with pytest.raises(Refused, match=r"evit and tome both reduce tokens in blocks\.1"):
        compress(tiny(), [EViT(blocks=(1,)), ToMe(r=2)])
    with pytest.raises(Refused, match=r"blocks\.1 already reduces tokens by evit"):
        compress(tiny(), [EViT(blocks=(1,)), EViT(blocks=(1, 2))])


def test_a_clash_is_refused_before_any_work(tiny, monkeypatch) -> None:
    """Also with what an earlier run put there."""
    model = tiny()
    before = compress(model, [ToMe(r=2)])
    monkeypatch.setattr(EViT, "shape", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(ToMe, "shape", lambda *_: pytest.fail("work was done"))
    for start, methods in ((model, [EViT(blocks=(1,)), ToMe(r=2)]), (before, [EViT(blocks=(1,))])):
        with pytest.raises(Refused, match=r"evit and tome both reduce tokens in blocks\.1 \(between\)"):
            compress(start, methods)


def pairs() -> list[Any]:
    """Each cell of the computed table; those outside the first of each reason and three a method are `e2e`."""
    slugs = own_methods()
    table = compatibility()
    by_reason: dict[tuple[str, str], Cell] = {}
    for c in table:
        by_reason.setdefault((c.verdict, c.reason.replace(c.first, "").replace(c.second, "")), c)
    near = {(a, slugs[(i + step) % len(slugs)]) for i, a in enumerate(slugs) for step in (1, 2, 3)}
    first = {(c.first, c.second) for c in by_reason.values()} | near
    return [
        pytest.param(c, id=f"{c.first}-{c.second}", marks=[] if (c.first, c.second) in first else pytest.mark.e2e)
        for c in table
    ]


@pytest.mark.parametrize("c", pairs())
def test_the_table_is_what_happens(tiny, noise, c: Cell) -> None:
    """A cell of the computed table against a real composition."""
    make = {
        "evit": lambda i: EViT(blocks=(1 + i,)),
        "tome": lambda i: ToMe(r=[0, 2 - 2 * i, 2 * i, 0]),
        "int8": lambda i: Int8(),
        "diffrate": lambda i: DiffRate(prune=[17, 15 + 2 * i, 15 - 2 * i, 15 - 2 * i]),
        "nvit": lambda i: NViT(macs=1.0),  # keeps all: nothing to train
        "gmm_mask": lambda i: GmmMask(blocks=[i]),
        "stvit": lambda i: STViT(samples=1),
        "sit": lambda i: SiT(stages=(3, 1)),
        "lgvit": lambda i: LGViT(exits=(1 + i,), heads=("linear",), epochs=0, held_out=0),
    }
    methods = [make[c.first](0), make[c.second](1)]
    if c.verdict == "no":
        with pytest.raises(Refused):
            compress(tiny(), methods, noise)
    else:
        assert len(compress(tiny(), methods, noise).history.plans) == 2


def test_float_comes_before_int8() -> None:
    assert cell("evit", "int8").verdict == "yes" and cell("int8", "evit").verdict == "no"


def test_data_that_is_needed_is_asked_for_first(tiny) -> None:
    with pytest.raises(BadInput, match="int8 calibrates"):
        compress(tiny(), [Int8()])
    with pytest.raises(BadInput, match="recovery trains"):
        compress(tiny(), [EViT()], recovery=Recovery())


def test_recovery_needs_something_to_train(tiny, noise) -> None:
    with pytest.raises(BadInput, match="leaves nothing to train"):
        compress(tiny(), [Int8()], noise, recovery=Recovery())
    for bad in ({"epochs": 0}, {"alpha": 2.0}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            Recovery(**bad)


def test_steps_are_reported_in_order(tiny, noise) -> None:
    seen = []
    compress(tiny(), [EViT(blocks=(1,)), Int8()], noise, on_step=lambda label, model: seen.append(label))
    assert seen == ["dense", "evit", "int8"]
