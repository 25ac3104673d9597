"""The page of figures: current, and what the results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pages.performance import SECTIONS, page, table_lines

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CONTENT: dict[str, Any] = {
    "title": "Nets",
    "about": "On {settings[images]:,} images.",
    "columns": {
        "name": {"heading": "net"},
        "model": {"heading": "model", "show": "code"},
        "params": {"heading": "parameters", "unit": "M", "form": ".2f", "scale": 1e-6},
        "top1": {"heading": "top-1", "unit": "%", "form": ".2f"},
        "low first": {"heading": "faster by", "form": ".2f", "each": ["q25", "median", "q75"]},
        "ends": {"heading": "quartiles", "form": ".1f", "each": ["q25", "", "q75"]},
        "turns": {"heading": "images/s", "form": ".1f", "show": "median"},
        "after block *": {"heading": "block *", "form": ".1f"},
        "speed/torch": {"heading": "PyTorch", "form": ".2f"},
        "holds": {"heading": "holds"},
        "figures": {"heading": "means", "form": ".1f"},
        "models": {"heading": "models", "show": "count"},
        "nothing": {"heading": "nothing"},
    },
    "settings": {"images": 3000, "threads": 1},
    "environment": {"cpu": "a CPU", "threads": 2},
    "commands": ["python benchmarks/it.py", "python benchmarks/it.py --again"],
    "rows": [
        {"model": "a", "part": 1, "params": 4_260_000, "low first": [0.9, 1.1, 1.3], "ends": [0.9, 1.1, 1.3]},
        {"model": "b", "part": 1, "params": 540_000, "turns": [90.0, 80.0, 85.0], "speed": {"torch": 1.345}},
        {"model": "c|d", "part": 2, "holds": False, "figures": {"a": 71, "b": 75.25}, "models": [{}, {}], "top1": None},
    ],
    "summary": {
        "one": {"top1": {"mean": 75.0, "min": 74.0, "max": 76.0, "seeds": 2}, "after block 2": 1.0},
        "two": {"top1": {"mean": 70.0, "min": 70.0, "max": 70.0, "seeds": 1}, "after block 3": 2.0},
        "other": {"points": 1.0},
    },
    "tables": [
        {"rows": "rows", "columns": ["model", "params", "low first", "ends", "turns", "speed/torch", "nothing"]}
        | {"where": {"part": 1}, "caption": "Of {settings[images]}"},
        {"rows": "rows", "columns": ["model", "holds", "figures", "models", "top1"], "where": {"part": 2}},
        {"rows": "summary", "columns": ["name", "top1", "after block *"]},
        {"rows": "rows", "columns": ["model"], "where": {"part": 3}, "caption": "There are none"},
    ],
}


def test_the_committed_page_is_current() -> None:
    committed = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert committed == page(RESULTS), "run: make pages"


def test_compressed_models_come_first_and_every_section_shows_figures() -> None:
    assert next(iter(SECTIONS)) == "Compressed models"
    for name in (name for names in SECTIONS.values() for name in names):
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for table in content["tables"]:
            lines = list(table_lines(content, table))
            assert len(lines) > 3, f"{name}: a table without rows"
            assert set(table["columns"]) <= content["columns"].keys()


def test_a_result_shows_what_its_columns_say(tmp_path: Path) -> None:
    (tmp_path / "nets.json").write_text(json.dumps(CONTENT))
    text = page(tmp_path, {"Section": ["nets"]})
    for line in (
        "## Section",
        "### Nets",
        "On 3,000 images.",
        "Of 3000:",
        "| model | parameters, M | faster by | quartiles | images/s | PyTorch |",
        "| `a` | 4.26 | 1.10 (0.90 … 1.30) | 0.9 … 1.3 |  |  |",
        "| `b` | 0.54 |  |  | 85.0 | 1.34 |",
        r"| model | `c\|d` |",
        "| holds | no |",
        "| means | a 71.0, b 75.2 |",
        "| models | 2 |",
        "| net | top-1, % | block 2 | block 3 |",
        "| one | 75.00 (74.00 … 76.00) | 1.0 |  |",
        "| two | 70.00 |  | 2.0 |",
        "Measured on a CPU with 1 thread of torch, by",
        "`python benchmarks/it.py`, `python benchmarks/it.py --again`: `benchmarks/results/nets.json`.",
    ):
        assert line in text.split("\n"), line
    assert not [left for left in ("nothing |", "| other", "There are none") if left in text]


def test_a_result_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nets\.json"):
        page(tmp_path, {"Section": ["nets"]})
