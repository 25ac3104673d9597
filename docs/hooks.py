"""mkdocs hooks: the reference of the public names, and texts of the repository's root as pages."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from pages.docs_pages import reference_pages  # noqa: E402

PAGES = reference_pages()
_FIRST = ("index.md", "README.md")
TEXTS = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_config(config: Any) -> Any:
    """Methods, internals and the reference get their entries in the navigation, an index first."""
    docs = ROOT / "docs"
    found = {name: [f"{name}/{p.name}" for p in (docs / name).glob("*.md")] for name in ("methods", "internals")}
    found["reference"] = list(PAGES)
    for entry in config["nav"]:
        for title, pages in entry.items():
            if title.lower() in found:
                pages[:] = sorted(found[title.lower()], key=lambda path: (not path.endswith(_FIRST), path))
    return config


def on_files(files: Files, config: Any) -> Files:
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text))
    for path, source in TEXTS.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to texts of the root, as GitHub resolves them, lead to their pages."""
    up = "../" * len(PurePosixPath(page.file.src_uri).parents)
    for path, source in TEXTS.items():
        markdown = markdown.replace(f"]({up}{source}", f"]({up[3:]}{path}")
    return markdown
