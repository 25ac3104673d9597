"""`leanvit methods`: what there is, and what one method needs, does and was measured to give."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from leanvit.cli import options, output
from leanvit.cli.loading import load_verb

if TYPE_CHECKING:
    from leanvit.cards import Card

NAME = "methods"


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One method: its knobs and needs.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods, or explain one."""
    from leanvit.cards import known_papers

    if name is not None:
        _one(name, as_json)
    elif as_json:
        output.print_json([row.to_json() for row in known_papers().values()])
    else:
        _all(list(known_papers().values()))


def _all(rows: list[Card]) -> None:
    width = max(len(row.slug) for row in rows)
    for kind in dict.fromkeys(row.kinds[0] for row in rows):
        print(f"{kind}")
        for row in (r for r in rows if r.kinds[0] == kind):
            source = f"  [{row.arxiv}]" if row.arxiv else ""
            print(_wrapped(f"  {row.slug:{width}}  ", row.summary + source))
    print("\nMore of one: leanvit methods NAME")


def _wrapped(name: str, text: str) -> str:
    """On a terminal, lines that fit it, with the text in a column; elsewhere one line, for `grep`."""
    if not sys.stdout.isatty():
        return name + text
    columns = max(shutil.get_terminal_size().columns, len(name) + 20)
    return textwrap.fill(name + text, columns, subsequent_indent=" " * len(name), break_on_hyphens=False)


def _one(slug: str, as_json: bool) -> None:
    from leanvit.cards import paper

    row = paper(slug)  # a wrong name shows before anything heavy is imported
    explanation = load_verb("explain")(row.slug)
    if as_json:
        output.print_json(explanation.to_json())
    else:
        output.print_rich(*explanation.rich())
