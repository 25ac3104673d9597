"""The support table: what the generator finds, and that what it calls working works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from backbones.small import SMALL
from leanvit.anatomy import OpenModel
from leanvit.quantize.int8.method import describe
from leanvit.recipe import Root, create, load, save
from leanvit.recipe.registry import shaping_methods
from pages import support
from pages.support import Example, Support, attempt, examples

COMMITTED = Path(__file__).parents[2] / "docs" / "support.md"


@pytest.fixture(scope="module")
def tried() -> list[tuple[Support, OpenModel | None]]:
    return attempts(examples())


def attempts(chosen: Sequence[Example]) -> list[tuple[Support, OpenModel | None]]:
    made = ((example, create(Root(example.name, example.kwargs))) for example in chosen)
    return [attempt(example, slug, dense) for example, dense in made for slug in shaping_methods()]


@pytest.mark.e2e
def test_the_committed_page_is_what_the_generator_gives(tried):
    rows = []
    for example in examples():
        row = [(cell, lean) for cell, lean in tried if cell.name == example.name]
        leans = {cell.slug: lean for cell, lean in row if lean is not None}
        rows += [*(cell for cell, _ in row), support.maps_of(example, None, leans)]
    assert COMMITTED.read_text(encoding="utf-8") == support.page(rows), "run: make pages"


@pytest.mark.e2e
def test_every_cell_that_works_did_something_and_survives_a_save(tried, tmp_path):
    check_cells(tried, tmp_path)


def test_every_method_works_on_the_first_family(tmp_path):
    first = attempts(examples()[:1])
    assert all(cell.works for cell, _ in first)
    check_cells(first, tmp_path)


def test_maps_are_a_column_of_every_family():
    vit, slim = support.OF_TIMM[0], Example("SiT", "sit_large", SMALL["sit_large"])
    found = list(support.cells([vit], ["tome", "sit"]))
    assert found[-1] == Support(vit.family, vit.name, support.MAPS, True, "", ("sit",))
    assert f"| {vit.family} | `{vit.name}` | yes | yes | yes, not after sit |" in support.page(found)
    refused = support.maps_of(slim)
    assert not refused.works and "no feature maps: sit mixes its patches" in refused.reason


def check_cells(found, tmp_path):
    for cell, lean in found:
        if lean is None:
            assert not cell.works and cell.reason
            continue
        x = torch.randn(2, *lean.probe_size(), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            out, state = lean.trace(x)
        if lean.reduces_tokens:
            assert state.tokens[-1] < state.tokens[0] or lean.patch_tokens()[0] < state.num_patches, cell
        if cell.slug == "int8":
            assert {row["bits"] for row in describe(lean)} == {8}, cell
        path = tmp_path / f"{cell.slug}-{cell.name}"
        save(lean, path)
        with torch.no_grad():
            assert torch.equal(load(path)(x), out), cell


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_half_precision_survives_a_save_too(name, tmp_path):
    example = next(e for e in support.OF_TIMM if e.name == name)
    lean = attempt(example, "tome")[1].to(torch.bfloat16)
    x = torch.randn(2, *lean.probe_size(), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save(lean, tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "run")(x), lean(x))


@pytest.mark.e2e
def test_the_table_says_what_works(tried):
    verdict = {(cell.name, cell.slug): cell for cell, _ in tried}
    assert len({cell.family for cell, _ in tried}) == len(examples())
    for example in examples():
        assert verdict[example.name, "int8"].works
        blocks = "(traced)" not in example.family
        assert verdict[example.name, "tome"].works == blocks
        assert blocks or "tokens of patches run through" in verdict[example.name, "tome"].reason
    assert verdict["eva02_base_patch14_224", "evit"].works
    refused = verdict["vit_base_patch16_siglip_224", "evit"]
    assert not refused.works and "class token" in refused.reason


def test_a_family_that_does_not_open_stops_the_table():
    with pytest.raises(Exception, match="Xcit"):
        attempt(Example("XCiT", "xcit_nano_12_p16_224", {"depth": 1, "cls_attn_layers": 1}), "int8")


def test_a_row_is_one_line_of_data():
    cell, _ = support.cells([Example("mine", "vit_tiny_patch16_224", support.OF_TIMM[0].kwargs)], ["tome"])
    assert cell == Support("mine", "vit_tiny_patch16_224", "tome", True)
    assert "| mine | `vit_tiny_patch16_224` | yes |" in support.page([cell])
