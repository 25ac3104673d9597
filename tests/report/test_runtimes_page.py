"""docs/runtimes.md says what exporting finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanvit.deploy import RUNTIMES
from leanvit.errors import BadInput
from pages import runtimes
from pages.runtimes import Cell

PAGE = Path(__file__).parents[2] / "docs" / "runtimes.md"


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return runtimes.cells()


@pytest.mark.e2e
@pytest.mark.extra("onnxruntime", of="onnx")
def test_the_page_is_current(cells: list[Cell]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert runtimes.renewed(text, cells) == text, "run: make pages"


@pytest.mark.e2e
@pytest.mark.extra("onnxruntime", of="onnx")
def test_every_method_reaches_every_outlet(cells: list[Cell]) -> None:
    assert {(c.model, c.runtime) for c in cells} == {(m, o) for m in runtimes.rows() for o in RUNTIMES}
    assert not [c for c in cells if c.refused]


@pytest.mark.e2e
@pytest.mark.extra("onnxruntime", of="onnx")
def test_float_models_are_equal_and_rounded_ones_agree(cells: list[Cell]) -> None:
    for cell in cells:
        simulated = "int8" not in cell.model or cell.runtime == "torch"
        assert cell.max_error <= runtimes.EQUAL if simulated else cell.agreement >= runtimes.AGREE, cell


@pytest.mark.e2e
@pytest.mark.extra("onnxruntime", of="onnx")
def test_int8_is_called_what_it_is(cells: list[Cell]) -> None:
    for cell in cells:
        rounded = "int8" in cell.model
        assert cell.precision == ("f32" if not rounded else "int8 simulated" if cell.runtime == "torch" else "int8")
        assert (cell.integers is not None) == (rounded and cell.runtime != "torch")
    by_name = {c.model: c.integers for c in cells if c.runtime == "onnx" and c.integers}
    assert by_name["int8"] == (8, 8)  # patches, qkv, q·k, weights·v, proj, fc1, fc2, head
    assert by_name["evit + int8"][0] == by_name["tome + int8"][0] == 8  # what the methods add stays float


def test_a_refusal_is_shown_and_a_page_without_markers_is_refused() -> None:
    refused = Cell("dense", "onnx", "", float("inf"), 0.0, None, "torch.export cannot follow")
    made = [refused, Cell("dense", "torch", "f32", 0.0, 1.0, None)]
    assert "| dense | refused: torch.export cannot follow | f32, equal |" in runtimes.table(made)
    with pytest.raises(BadInput, match="needs the lines"):
        runtimes.renewed("# Runtimes\n", made)
