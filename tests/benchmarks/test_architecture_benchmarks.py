"""Benchmarks of architectures run from end to end at their smallest; their claims follow from their rows."""

from __future__ import annotations

from typing import Any


def test_attention_cost_holds_each_claim_beside_what_was_found(smoke: Any) -> None:
    found = smoke("attention_cost")
    rows = {row["attention"]: row for row in found["rows"]}
    assert rows["hilo"]["macs"] < rows["full"]["macs"] == rows["full, unfused"]["macs"]
    assert rows["hilo"]["hilo_is_faster"] == [1, 1, 1]
    for claim in found["claims"]:
        low, median, high = rows[claim["attention"]]["hilo_is_faster"]
        assert claim["found"] == median and claim["quartiles"] == [low, high]
        assert (claim["verdict"] == "reproduced") == (low >= claim["claimed"])
    assert {claim["attention"] for claim in found["claims"]} == {"spatial reduction", "windows 7x7"}
