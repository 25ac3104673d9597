"""Rows of a long benchmark survive the process, and are never mixed with those of other settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from leanvit.errors import BadInput

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from kept_rows import KeptRows


def test_rows_come_back_and_are_found_by_their_columns(tmp_path: Path) -> None:
    first = KeptRows(tmp_path / "rows.json", {"images": 5})
    first.add({"method": "evit", "seed": 0, "top1": 90.5})
    again = KeptRows(tmp_path / "rows.json", {"images": 5})
    assert again.get(method="evit", seed=0) == {"method": "evit", "seed": 0, "top1": 90.5}
    assert again.get(method="evit", seed=1) is None


def test_rows_of_other_settings_or_machines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    KeptRows(path, {"images": 5}).add({"seed": 0})
    with pytest.raises(BadInput, match=r"images was 5 and is 6.*--fresh"):
        KeptRows(path, {"images": 6})
    assert KeptRows(path, {"images": 6}, fresh=True).rows == []
    content = json.loads(path.read_text())
    content["environment"]["cpu"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="CPU was another"):
        KeptRows(path, {"images": 5})


def test_a_part_that_has_not_run_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    KeptRows(path, {"accuracy": None}).add({"part": "speed"})
    KeptRows(path, {"accuracy": "digits"}).add({"part": "accuracy"})
    kept = KeptRows(path, {"accuracy": None})
    assert len(kept.rows) == 2 and kept.content["settings"] == {"accuracy": "digits"}


def test_a_result_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    kept = KeptRows(tmp_path / "rows.json", {})
    with pytest.raises(ValueError):
        kept.add({"top1": float("nan")})
    assert not kept.path.exists()
