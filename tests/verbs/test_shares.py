"""Asked and achieved: each method's own share of MACs and parameters, and what is left of the dense model in all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leanvit.measure import count
from leanvit.recipe import Recovery, load, parse_with
from leanvit.report.page import render
from leanvit.report.values import share_in_words
from leanvit.runs.record import read_run
from leanvit.verbs.compressing import Compressed, compress

ARGS = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10, "depth": 3, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def made(out: Path, *methods: str, model: Any = NAME, **given: Any) -> Compressed:
    args = {} if model != NAME else {"model_args": ARGS}
    return compress(
        model, [parse_with(m) for m in methods], "digits", limit=20, measured=False, out=out, **args, **given
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("shares") / "dense").folder


@pytest.fixture(scope="module")
def both(dense: Path) -> Compressed:
    methods = "nvit:macs=0.7,batch_size=20,prune_per_step=32,interval=1", "evit:keep_rate=0.5,blocks=[1]"
    return made(dense.parent / "both", *methods, model=dense, recovery=Recovery(epochs=1, batch_size=20))


def test_the_own_share_is_of_the_model_as_the_method_met_it(both: Compressed, dense: Path) -> None:
    nvit, evit = both.asked
    costs = [count(load(folder), (1, 8, 8)) for folder in (dense, both.folder)]
    assert nvit.share["macs"] == nvit.share["macs_total"] == pytest.approx(0.7, abs=0.02)
    assert nvit.achieved["macs"] == nvit.share["macs"], "evit came after it, and is not its doing"
    assert nvit.achieved["params"] == nvit.share["params"] < 1
    assert evit.share["macs_total"] == pytest.approx(costs[1].macs / costs[0].macs)
    assert evit.share["macs"] == pytest.approx(evit.share["macs_total"] / nvit.share["macs"])
    assert evit.share["params"] == 1 and evit.share["params_total"] == nvit.share["params"]
    assert evit.achieved["patch_tokens"] == [64, 33, 33]


def test_shares_are_kept_shown_and_gone_on_with(both: Compressed, tmp_path: Path) -> None:
    assert json.loads(json.dumps(both.to_json()))["asked"][0]["share"] == both.asked[0].share
    record = read_run(both.folder)
    assert record.asked[1].share == both.asked[1].share
    page = render([record])
    for line in share_in_words(both.asked[1].share):
        assert line in page
    again = made(tmp_path / "again", "tome:r=[4,0,0]", model=both.folder)
    assert again.asked[0].share["macs_total"] == pytest.approx(
        again.asked[0].share["macs"] * both.asked[1].share["macs_total"]
    )


@pytest.mark.parametrize(
    ("share", "lines"),
    [
        (
            {"macs": 0.7, "macs_total": 0.49, "params": 1.0, "params_total": 0.5},
            ["0.7 of the MACs that it met, 0.49 of dense"],
        ),
        ({"params": 1.25}, ["1.25 of the parameters that it met"]),
        ({"macs": "0.7", "macs_total": None}, []),
        ({}, []),
    ],
)
def test_shares_in_words(share: dict[str, Any], lines: list[str]) -> None:
    assert share_in_words(share) == lines
