"""Architectures in the table of papers: explained and documented as models, and no method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leanvit.cli.main import app
from leanvit.errors import BadInput
from leanvit.recipe import methods, own_methods, papers, parse_with
from pages.docs_pages import method_pages

ROWS = [row for row in papers().values() if not row.is_method]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_an_architecture_is_explained_by_its_models(row) -> None:
    names = row.models
    payload = json.loads(CliRunner().invoke(app, ["methods", row.slug, "--json"]).stdout)
    assert tuple(payload["models"]) == names and all(payload["models"].values()) and payload["slug"] == row.slug
    shown = CliRunner().invoke(app, ["methods", row.slug])
    assert (
        shown.exit_code == 0 and names[0] in shown.output and all(name in shown.output for name in payload["recipes"])
    )
    page = method_pages(Path("nowhere"))[f"methods/{row.slug}.md"]
    assert all(f"`{name}`" in page for name in (*names, *payload["recipes"])) and row.arxiv in page


def test_an_architecture_is_no_method() -> None:
    assert ROWS and all(row.models for row in ROWS)
    assert not {row.slug for row in ROWS} & {*own_methods(), *(row.slug for row in methods())}
    assert set(own_methods()) | {row.slug for row in ROWS} == set(papers())
    with pytest.raises(BadInput, match="dhvt is an architecture, not a method"):
        parse_with("dhvt")
