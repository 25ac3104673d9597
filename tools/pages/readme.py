"""The table of methods in README.md, made from papers.toml: `python -m pages.readme [README.md]` renews it."""

from __future__ import annotations

import sys
from pathlib import Path

from leanvit.errors import BadInput
from leanvit.recipe.papers import Paper, papers

BEGIN = "<!-- methods: made from papers.toml by `python -m pages.readme`; edit there -->"
END = "<!-- end of methods -->"


def table() -> str:
    """The methods as a markdown table."""
    lines = ["| method | what it does | paper | published | measured here |", "|---|---|---|---|---|"]
    lines += [_row(p) for p in papers().values()]
    return "\n".join(lines)


def _row(paper: Paper) -> str:
    ours = _cell(paper.measured) + (f" ({_cell(paper.machine)}; `{_cell(paper.command)}`)" if paper.measured else "")
    cells = (f"`{paper.slug}`", _cell(paper.summary), _source(paper), _cell(paper.published), ours)
    return f"| {' | '.join(cells)} |"


def renewed(text: str) -> str:
    """A README's text with the table between its markers made anew. Raises `BadInput` if a marker is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"the README needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _source(paper: Paper) -> str:
    if not paper.arxiv:
        return _cell(paper.title)
    return f"[{_cell(paper.title)}](https://arxiv.org/abs/{paper.arxiv}){f' ({paper.venue})' if paper.venue else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "–"


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
