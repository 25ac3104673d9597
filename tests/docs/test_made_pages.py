"""Pages that are made from the package and the results are as they would be made now."""

from __future__ import annotations

import pytest

from pages import make


@pytest.mark.parametrize("name", ["readme", "methods", "own-method", "references", "performance"])
def test_the_page_is_current(name: str) -> None:
    for path, text in make.PAGES[name]().items():
        assert (make.ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run make pages"


def test_no_page_of_a_method_is_left_over() -> None:
    committed = {f"docs/methods/{path.name}" for path in (make.ROOT / "docs" / "methods").iterdir()}
    assert committed == make.PAGES["methods"]().keys()
