"""The documentation as a site: built without a warning, its generated pages in it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shown(page: Path) -> str:
    """What a reader sees of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_page_of_own_methods_shows_the_example(site: Path) -> None:
    text = " ".join(shown(site / "own-method" / "index.html").split())
    assert " ".join((ROOT / "examples" / "head_importance.py").read_text(encoding="utf-8").split()) in text


def test_the_reference_shows_docstrings(site: Path) -> None:
    text = shown(site / "reference" / "leanvit.data" / "index.html")
    assert "open_dataset" in text and "loader" in text and ":::" not in text


def test_texts_of_the_root_are_pages_and_are_linked_as_such(site: Path) -> None:
    assert "Unreleased" in shown(site / "changelog" / "index.html")
    assert 'href="../contributing/"' in (site / "own-method" / "index.html").read_text(encoding="utf-8")


def test_every_committed_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs").with_suffix("")
        parts = path.parts[:-1] if path.name in ("index", "README") else path.parts
        assert f'href="{"/".join(parts) or "."}{"/" if parts else ""}"' in home, page
