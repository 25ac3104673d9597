"""Pages that are made from the package and the results are as they would be made now."""

from __future__ import annotations

import pytest

from pages import make, readme


@pytest.mark.parametrize("name", ["readme", "methods", "own-method"])
def test_the_page_is_current(name: str) -> None:
    for path, text in make.PAGES[name]().items():
        assert (make.ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run make pages"


def test_no_page_of_a_method_is_left_over() -> None:
    committed = {f"docs/methods/{path.name}" for path in (make.ROOT / "docs" / "methods").iterdir()}
    assert committed == make.PAGES["methods"]().keys()


def test_the_figure_of_the_home_page_is_the_measured_one() -> None:
    home = (make.ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    measured = next(row.measured for row in readme.rows() if row.slug == "tome")
    assert "1.69 times as fast in PyTorch at 0.59 of the MACs" in " ".join(home.split())
    assert "(0.59 of the MACs): 1.69x in PyTorch" in measured
