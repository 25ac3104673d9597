"""Every page that is made, not written: `make pages`, or `python -m pages.make [NAME ...]` for some of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from leanvit import cards
from leanvit.errors import unknown
from leanvit.files import write_atomic
from pages import docs_pages, headlines, performance, readme, references, runtimes, support

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


EXAMPLE = re.compile(r"(<!-- the example, by `make pages` -->\n).*?(<!-- end of the example -->)", re.DOTALL)


def _with_example(text: str, example: str, test: str) -> str:
    """A page with an example in its block."""
    code = (ROOT / "examples" / example).read_text(encoding="utf-8")
    why = f"the file itself, included whole: tests/docs/{test} runs it"
    block = f'<!-- test: skip="{why}" -->\n```python\n{code}```\n'
    return EXAMPLE.sub(lambda found: found[1] + block + found[2], text)


def _renewed(path: str, renewed: Callable[[str], str]) -> dict[str, str]:
    """A page of which a part between markers is made."""
    return {path: renewed((ROOT / path).read_text(encoding="utf-8"))}


# name -> path from the root and text of each page
PAGES: dict[str, Callable[[], dict[str, str]]] = {
    "headlines": lambda: {str(file.relative_to(ROOT)): text for file, text in headlines.headlines().items()},
    "readme": lambda: _renewed("README.md", readme.renewed),
    "methods": lambda: {f"docs/{path}": text for path, text in docs_pages.method_pages(RESULTS).items()},
    "own-method": lambda: _renewed(
        "docs/own-method.md", lambda text: _with_example(text, "head_importance.py", "test_own_method.py")
    ),
    "own-task": lambda: _renewed("docs/own-task.md", lambda text: _with_example(text, "amount.py", "test_own_task.py")),
    "references": lambda: {"docs/references.md": references.page()},
    "performance": lambda: {"docs/performance.md": performance.page(RESULTS)},
    "support": lambda: {"docs/support.md": support.page(list(support.cells()))},
    "runtimes": lambda: _renewed("docs/runtimes.md", lambda text: runtimes.renewed(text, runtimes.cells())),
}


def main() -> None:
    names = sys.argv[1:] or list(PAGES)
    for name in names:
        if name not in PAGES:
            raise unknown("page", name, PAGES)
    for name in names:
        for path, text in PAGES[name]().items():
            (ROOT / path).parent.mkdir(exist_ok=True)
            write_atomic(ROOT / path, text.encode())
        cards.reread()  # headlines are part of them


if __name__ == "__main__":
    main()
