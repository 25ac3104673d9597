"""Widths before and after: read from models that their plans build, drawn, and as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from browsing import browsing, find_chromium

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.surgery.block_widths import BlockWidths, block_widths
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width, set_mlp_width
from leanvit.recipe import History, Plan, Root, compress, create, register, save
from leanvit.recipe.registry import make_method
from leanvit.report.page import render
from leanvit.report.values import shown
from leanvit.report.widths import rows
from leanvit.runs.record import RunRecord, read_run
from leanvit.runs.saving import TargetRow
from leanvit.runs.widths import Widths, read_widths
from zoo import build, build_swin

ROOT = Root(
    "vit_tiny_patch16_224",
    {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "in_chans": 1, "num_classes": 2},
)


@register("test_narrow", title="Narrow", summary="takes a head and half of an MLP away, of one block")
@dataclass(frozen=True)
class Narrow:
    block: int = 1
    embed: int = 0

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        block = model.blocks[self.block]
        set_attention_widths(block.attn, heads=2, qk_dim=4)
        set_mlp_width(block.mlp, 40)
        if self.embed:
            set_embed_width(model, self.embed)


def _widths(depth: int = 12) -> Widths:
    root = tuple(BlockWidths(f"blocks.{i}", 192, 3, 64, 64, 768) for i in range(depth))
    lean = [BlockWidths(b.name, 128, 1 + i % 3, 64 - 4 * (i % 7), 64, 700 - 51 * i) for i, b in enumerate(root)]
    return Widths(root, tuple(lean))


def test_widths_are_those_of_the_modules() -> None:
    model = create(ROOT)
    assert block_widths(model)[0] == BlockWidths("blocks.0", 24, 3, 8, 8, 96)
    found = read_widths(History(ROOT, (Plan("test_narrow", {"embed": 16}),)))
    assert found is not None and found.changed == ("embed", "heads", "qk", "mlp")
    assert found.lean[1] == BlockWidths("blocks.1", 16, 2, 4, 8, 40)
    assert found.lean[2] == BlockWidths("blocks.2", 16, 3, 8, 8, 96)
    assert rows(found)[1].cells == ((24, 16), (3, 2), (8, 4), (8, 8), (96, 40))


def test_what_a_method_put_into_a_slot_is_not_the_blocks_width() -> None:
    root = create(Root("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}))
    lean = compress(root, [make_method("sit", {})])
    assert any(list(block.steps()) for block in lean.blocks)
    assert block_widths(lean) == block_widths(root)


def test_every_family_has_widths() -> None:
    """Windows in stages, several attentions, attention and MLP in one projection, q, k and v apart."""
    for name, embed, heads, mlp in (
        ("swin_tiny_patch4_window7_224", 12, 2, 48),
        ("vit_small_patch16_18x2_224", 24, 6, 192),
        ("vit_base_patch16_xp_224", 24, 3, 96),
        ("eva02_base_patch14_224", 48, 3, 128),
    ):
        model = open_model(build_swin(name) if "swin" in name else build(name))
        found = block_widths(model)
        assert len(found) == len(model.blocks)
        assert (found[0].embed, found[0].heads, found[0].mlp) == (embed, heads, mlp), name
        assert found[0].qk == found[0].v == embed // (3 if "swin" not in name else 2), name


def test_a_run_is_read_from_its_plans_and_one_without_changes_has_no_section(tmp_path: Path) -> None:
    model = create(ROOT).eval()
    save(compress(model, [Narrow(block=2)]), tmp_path / "narrow")
    save(compress(model, []), tmp_path / "dense")
    narrow, dense = read_run(tmp_path / "narrow"), read_run(tmp_path / "dense")
    assert narrow.widths is not None and [b.mlp for b in narrow.widths.lean] == [96, 96, 40]
    assert dense.widths is None
    page = render([narrow])
    assert '<section id="widths">' in page and "96 → <b>40</b>" in page and "As in the root: embedding" in page
    assert '<section id="widths">' not in render([dense])


def test_fewer_blocks_than_the_root_are_said(record: RunRecord) -> None:
    root = _widths(4).root
    page = render([replace(record, widths=Widths(root, root[:3]))])
    assert "3 blocks, the root has 4" in page and "768 → <b>gone</b>" in page


def test_long_values_stay_short() -> None:
    assert shown([196, 196, 138, 97]) == "196 ×2, 138, 97"
    assert shown({"heads": [3] * 12, "macs": 0.123456}) == "heads (3 ×12), macs 0.1235"
    assert shown(list(range(500))).endswith(" …") and len(shown(list(range(500)))) <= 160
    assert (shown([]), shown(True), shown(None), shown("all")) == ("none", "True", "None", "all")


@pytest.mark.parametrize("width", [400, 1400])
def test_the_section_fits_and_is_drawn_in_both_themes(record: RunRecord, tmp_path: Path, width: int) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (looked for chromium, chromium-browser, google-chrome)")
    asked = TargetRow("nvit", {"macs": 0.5}, {"heads": list(range(40)), "mlp": [700, 649] * 30})
    page_file = tmp_path / "page.html"
    page_file.write_text(render([replace(record, widths=_widths(), asked=(asked,))]), encoding="utf-8")
    with browsing(program, tmp_path / "profile") as browser:
        page = browser.open(page_file.as_uri(), width=width)
        bars = "document.querySelectorAll('#widths .plot .barlayer .point').length"
        assert page.run(bars) == 4 * 2 * 12, "two bars a block in each of four kinds"
        colours = "[...document.querySelectorAll('#widths .barlayer .trace:last-child path')].map(p => p.style.fill)"
        light = page.run(colours)
        page.click("#theme")
        assert page.run(colours) != light
        page.run("document.querySelector('#widths details').open = true")
        assert page.run("document.querySelectorAll('#widths tbody tr').length") == 12
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.complaints() == []
