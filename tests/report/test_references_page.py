"""The page of the references: current, and what the records say."""

from __future__ import annotations

from pathlib import Path

from leanvit.recipe import Reference, references
from pages.references import NONE, page
from record_example import record

COMMITTED = Path(__file__).parents[2] / "docs" / "references.md"


def test_the_committed_page_is_current() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == page(), "run: make pages"
    assert (NONE in page()) == (not references())


def test_a_record_makes_a_row_and_a_section(tmp_path: Path) -> None:
    (tmp_path / "leanvit.json").write_bytes(b"0" * 2_500_000)
    text = page([Reference("digits_vit", tmp_path, record())])
    assert "| `leanvit/digits_vit` | digits | top-1 91.36 % | 2.69 M | 7 M | 2.5 MB |" in text
    assert (
        "| before rounding to float16 | top-1 91.64 % (95 %: 88.31 … 94.09); 99.72 % of the answers are alike |" in text
    )
    assert "| trained | 3 epochs, 1.5 h on another CPU |" in text and "| recipes | `digits_vit` |" in text
    assert "\n    leanvit train vit_tiny_patch16_224 --data digits\n" in text
    assert "leanvit export leanvit/digits_vit" in text and NONE not in text
    exact = page([Reference("x", tmp_path, record(stored_as="", presets=()))])
    assert "before rounding" not in exact and "| recipes | none: the options below |" in exact
