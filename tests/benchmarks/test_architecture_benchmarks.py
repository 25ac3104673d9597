"""Benchmarks of architectures run from end to end at their smallest; their claims follow from their rows."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


def test_attention_cost_holds_each_claim_beside_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    out = tmp_path / "attention_cost.json"
    monkeypatch.setattr(sys, "argv", ["attention_cost.py", "--smoke", "--out", str(out)])
    import_module("attention_cost").main()
    found = json.loads(out.read_text())
    rows = {row["attention"]: row for row in found["rows"]}
    assert rows["hilo"]["macs"] < rows["full"]["macs"] == rows["full, unfused"]["macs"]
    assert rows["hilo"]["hilo_is_faster"] == [1, 1, 1]
    for claim in found["claims"]:
        low, median, high = rows[claim["attention"]]["hilo_is_faster"]
        assert claim["found"] == median and claim["quartiles"] == [low, high]
        assert (claim["verdict"] == "reproduced") == (low >= claim["claimed"])
    assert {claim["attention"] for claim in found["claims"]} == {"spatial reduction", "windows 7x7"}
