"""The stream of LGViT runs from end to end at its smallest; its verdict follows from its figures."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.mark.slow
def test_the_stream_holds_its_claim_beside_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    out = tmp_path / "lgvit_stream.json"
    monkeypatch.setattr(sys, "argv", ["lgvit_stream.py", "--smoke", "--out", str(out)])
    import_module("lgvit_stream").main()
    found = json.loads(out.read_text())
    assert found["measured_over_counted"] == pytest.approx(found["measured_speedup"] / found["counted_speedup"])
    assert (found["verdict"] == "reproduced") == (abs(found["measured_over_counted"] - 1) <= 0.15)
    assert sum(found["left_after_block"].values()) == pytest.approx(1) and found["images"] == 40
    assert found["thresholds"] and found["knobs"]["points"] == 2
