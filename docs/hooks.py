"""mkdocs hooks: pages that are made from the package, its table of methods and the benchmarks' results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from leanvit.report.docs_pages import method_pages, reference_pages

ROOT = Path(__file__).parents[1]
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
