"""Runs that earlier code saved load as they did then: see `make.py` beside this file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from leanvit.cards import papers
from leanvit.recipe import load_run, own_methods
from saved.make import FOLDER, RUNS, described

MAKE = "add a row to RUNS and run `python tests/saved/make.py`"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.zip")))
def test_a_saved_run_loads_as_it_did(name: str, tmp_path: Path) -> None:
    """History, names, preprocessing and every tensor bit for bit, logits up to how a CPU sums; twice the same."""
    shutil.unpack_archive(FOLDER / f"{name}.zip", tmp_path)
    want = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    got = described(load_run(tmp_path))
    assert described(load_run(tmp_path)) == got
    logits = (torch.tensor(side.pop("logits"), dtype=torch.float64) for side in (got, want))
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)
    assert json.loads(json.dumps(got)) == want


def test_every_row_is_saved() -> None:
    files = {f"{name}.{kind}" for name in RUNS for kind in ("zip", "json")}
    assert {path.name for path in FOLDER.iterdir()} == files, MAKE


def test_every_method_is_among_them_unrounded() -> None:
    there = {slug for row in RUNS.values() if not row.stored_as for slug in row.methods}
    assert not (missing := set(own_methods()) - there), f"{MAKE}, of {sorted(missing)}"


def test_every_architecture_of_ours_is_among_them() -> None:
    there = {row.name for row in RUNS.values()}
    missing = [card.slug for card in papers().values() if card.models and not there & {*card.models}]
    assert not missing, f"{MAKE}, of {missing}"
