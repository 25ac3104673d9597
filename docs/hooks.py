"""mkdocs hooks: pages that are made from the package, its table of methods and the benchmarks' results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from pages.docs_pages import method_pages, reference_pages  # noqa: E402

PAGES = {**method_pages(ROOT / "benchmarks" / "results"), **reference_pages()}
# Texts of the repository's root, with their links turned round.
TEXTS = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_config(config: Any) -> Any:
    """The made pages take their places in the navigation."""
    for entry in config["nav"]:
        for title, pages in entry.items():
            if title in ("Methods", "Reference"):
                folder = "methods/" if title == "Methods" else "reference/"
                pages[:] = [path for path in PAGES if path.startswith(folder)]
    return config


def on_files(files: Files, config: Any) -> Files:
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text))
    for path, source in TEXTS.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, path, content=text))
    return files
