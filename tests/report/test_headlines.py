"""What cards say was measured is what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from leanvit.cards import Figure, papers
from leanvit.errors import BadInput
from pages.headlines import headlines, rendered

CONTENT = {
    "columns": {"speedup": {"heading": "speed", "each": ["median", "q25", "q75"]}},
    "settings": {"images": [3000, 750]},
    "rows": [
        {"method": "a", "seed": 0, "top1": 70.25, "speedup": [1.5, 1.4, 1.6], "ms": 10.0},
        {"method": "a", "seed": 1, "top1": 71.75, "speedup": [1.7, 1.6, 1.8], "ms": 12.0},
        {"method": "dense", "seed": 0, "top1": 75.0, "ms": 15.0},
    ],
    "trends": [{"claim": "a above b", "points": [-1.0, 0.5, 2.0]}],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "one.json").write_text(json.dumps(CONTENT))
    return tmp_path


def test_every_headline_is_rendered_from_the_results() -> None:
    for file, text in headlines().items():
        assert file.read_text(encoding="utf-8") == text, "run: make pages"


def test_no_measured_figure_is_typed_by_hand() -> None:
    """What is left in the templates are conditions: sizes, counts, names."""
    typed = re.compile(r"\d+\.\d+ ?(x|%|points)|\d+x\b(?!\d)|of the MACs")
    for card in papers().values():
        found = [m for m in typed.finditer(card.measured.template) if m[0] != "of the MACs"]
        assert not found and not card.measured.text.count("{"), f"{card.slug}: {found}"
        assert bool(card.measured.text) == bool(card.measured.template), card.slug


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ({"row": {"method": "dense"}, "metric": "top1", "format": ".1f"}, "75.0"),
        ({"row": {"method": "a"}, "metric": "top1", "of": "mean", "format": ".2f"}, "71.00"),
        ({"row": {"method": "a"}, "metric": "top1", "of": "count"}, "2"),
        ({"row": {"method": "a", "seed": 1}, "metric": "speedup/q75"}, "1.8"),
        ({"table": "", "metric": "settings/images/0", "format": ","}, "3,000"),
        ({"table": "trends", "row": {"claim": "a above b"}, "metric": "points", "format": "+.1f"}, "-1.0, +0.5, +2.0"),
        ({"row": {"method": "dense"}, "metric": "top1", "scale": -1, "format": ".0f"}, "-75"),
        ({"row": {"method": "dense"}, "metric": "ms", "over": {"row": {"method": "a", "seed": 0}}}, "1.5"),
    ],
)
def test_figures_are_found(results: Path, figure: dict[str, Any], text: str) -> None:
    assert rendered("it is {x}", {"x": Figure(**{"file": "one.json", **figure})}, results) == f"it is {text}"


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"row": {"method": "a"}, "metric": "top1"}, "2 rows match"),
        ({"row": {"method": "b"}, "metric": "top1"}, "0 rows match"),
        ({"row": {"method": "dense"}, "metric": "speed"}, "no number is there"),
        ({"row": {"method": "dense"}, "metric": "method"}, "no number is there"),
        ({"file": "two.json", "metric": "top1"}, "two.json"),
    ],
)
def test_a_reference_to_nothing_is_refused_by_name(results: Path, figure: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=f"figure x = .*{said}"):
        rendered("{x}", {"x": Figure(**{"file": "one.json", **figure})}, results)
