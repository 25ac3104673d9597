"""Pages of the documentation that are made, not written: one a method, and the reference of the public names.

`make pages` writes those of the methods into docs/methods/; the reference needs mkdocstrings, and `docs/hooks.py` puts
it into the site when that is built.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from leanvit.cards import Card, known_papers, papers
from leanvit.recipe.compat import cell
from leanvit.recipe.registry import shaping_methods
from leanvit.verbs.explaining import Architecture, Explanation, explain

# Packages whose names are documented, with what they are for.
PACKAGES = {
    "leanvit": "the verbs",
    "leanvit.recipe": "methods, runs and recipes",
    "leanvit.data": "data sets, preprocessing, loaders",
    "leanvit.measure": "cost, speed, energy, accuracy",
    "leanvit.training": "the one training loop",
    "leanvit.deploy": "artefacts of other runtimes",
    "leanvit.anatomy": "the opened model",
    "leanvit.verbs": "the command line as Python calls",
}
_RATIOS = ("ratio_vs_dense_same_runtime", "speedup_same_runtime")


def method_pages(results: Path) -> dict[str, str]:
    """Path in the docs -> markdown: `methods/index.md` and one page a paper.

    `results` is the folder of the benchmarks' JSON files; every measured figure names the file that it comes from.
    """
    pages = {f"methods/{slug}.md": "\n".join(_page(explain(slug), results)) for slug in papers()}
    return {"methods/index.md": "\n".join(_index()), **pages}


def reference_pages() -> dict[str, str]:
    """Path in the docs -> markdown of mkdocstrings, a page for each of `PACKAGES`."""
    return {
        f"reference/{dotted}.md": "\n".join(_reference_page(dotted, purpose)) for dotted, purpose in PACKAGES.items()
    }


# --- a method -------------------------------------------------------------------------------------------------------


def _index() -> Iterator[str]:
    yield "# Methods\n"
    yield "Every method is a published one, and all stand on one [anatomy](../concepts.md). In the terminal: "
    yield "`leanvit methods`.\n"
    yield from markdown_table(
        ("method", "what it does", "paper"),
        [(f"[`{p.slug}`]({p.slug}.md)", p.summary, p.title) for p in papers().values()],
    )
    yield "\n## What composes\n"
    yield "Whether the method of the column may follow that of the row on one model, from what each declares.\n"
    slugs = shaping_methods()
    rows = [(f"`{a}`", *(cell(a, b).verdict for b in slugs)) for a in slugs]
    yield from markdown_table(("first", *(f"then `{slug}`" for slug in slugs)), rows)


def _page(explanation: Explanation | Architecture, results: Path) -> Iterator[str]:
    row = explanation.paper
    yield f"# {row.slug}\n"
    link = f" ([arXiv {row.arxiv}](https://arxiv.org/abs/{row.arxiv}))" if row.arxiv else ""
    yield f"**{row.title}**{', ' + row.venue if row.venue else ''}{link}: {row.summary}.\n"
    yield from (
        _architecture(explanation, results) if isinstance(explanation, Architecture) else _method(explanation, results)
    )


def _architecture(explanation: Architecture, results: Path) -> Iterator[str]:
    row, first = explanation.paper, next(iter(explanation.models))
    yield "```python\nimport timm\n\nimport leanvit.backbones  # registers the names\n"
    yield f'model = timm.create_model("{first}", num_classes=10)\n```\n'
    for name in explanation.recipes[:1]:
        yield f"{_smaller(row)}```bash\nleanvit train --recipe {name} --dry-run\n```\n"
    yield _text(import_module(row.module).__doc__)
    yield "\n## Models\n"
    yield from markdown_table(
        ("model", "what it is"), [(f"`{name}`", text) for name, text in explanation.models.items()]
    )
    yield "Which methods run on them: [support](../support.md).\n"
    if explanation.recipes:
        yield f"Training recipes: {', '.join(f'`{name}`' for name in explanation.recipes)}.\n"
    yield "\n## Figures\n"
    yield from _claims(row)
    yield from _measured(row.slug, results)


def _method(explanation: Explanation, results: Path) -> Iterator[str]:
    row = explanation.paper
    yield from _usage(explanation)
    yield _text(import_module(row.module).__doc__)
    yield "\n## Knobs\n"
    yield from markdown_table(
        ("knob", "default", "meaning", "accepted", "example"),
        [
            (f"`{k.name}`", f"`{json.dumps(k.default)}`", _text(k.meaning), _text(k.accepts), f"`{k.example}`")
            for k in explanation.knobs
        ],
    )
    if row.models:
        yield "\n## Models\n"
        yield f"Built with it from the start, by name: {', '.join(f'`{name}`' for name in row.models)}.\n"
    elsewhere = {*_ELSEWHERE, *(f"with {slug}" for slug in known_papers().keys() - papers().keys())}
    yield "\n## What it requires and changes\n"
    yield from markdown_table(
        ("question", "answer"), [(name, text) for name, text in explanation.facts().items() if name not in elsewhere]
    )
    yield "\n## Figures\n"
    yield from _claims(row)
    yield from _measured(row.slug, results)


def _smaller(card: Card) -> str:
    """How the test of a page's commands builds an architecture: as deep as its first small example."""
    given = card.example[0].args if card.example else {}
    return "".join(f"<!-- test: model-arg={_knobs({k: given[k]})} -->\n" for k in ("depth", "depths") if k in given)


def _usage(explanation: Explanation) -> Iterator[str]:
    """The command that uses it. The test of a page's commands runs it with the small knobs of the card, an epoch."""
    row = explanation.paper
    with_ = f"{row.slug}:{row.knobs.shown}" if row.knobs.shown else row.slug
    smaller = [f"with={row.slug}:{_knobs(row.knobs.small)}"] if row.knobs.shown else []
    smaller += ["epochs=1"] if row.verb == "train" else []
    marker = f"<!-- test: {' '.join(smaller)} -->\n" if smaller else ""
    yield f"{marker}```bash\nleanvit {row.verb} runs/dense --data photos/ --with {with_} --out runs/{row.slug}\n```\n"


def _knobs(values: Mapping[str, Any]) -> str:
    """As the command line takes them."""
    return ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in values.items())


_ELSEWHERE = ("published", "measured", "by")  # facts that have a section of their own


def _claims(row: Card) -> Iterator[str]:
    """The paper's headline, and ours with its machine and command."""
    yield f"**Published**: {row.published or 'none'}.\n"
    ours = row.measured
    if ours.text:
        commands = " and ".join(f"`{command.strip()}`" for command in ours.command.split(";"))
        yield f"**Measured here**: {ours.text}. On {ours.machine}, by {commands}.\n"


def _measured(slug: str, results: Path) -> Iterator[str]:
    """What the benchmarks found for a method, file by file."""
    for file in sorted(results.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [r for r in _rows(content) if slug in r["method"].split(" + ")]
        if not rows:
            continue
        machine = content.get("environment") or content.get("comparison", {}).get("environment", {})
        cpu, threads = machine.get("cpu", "an unnamed CPU"), machine.get("threads", "?")
        yield f"\nRows of `benchmarks/results/{file.name}`: `{content['command']}` on {cpu}, {threads} threads, model"
        yield f"`{content['model']}`.\n"
        yield from markdown_table(
            ("methods", "runtime", "precision", "batch", "speed, × dense in the same runtime", "top-1 change, points"),
            [_figures(r) for r in rows],
        )


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = content.get("rows", [])
    return [r for r in rows if isinstance(r, dict) and "method" in r and any(key in r for key in _RATIOS)]


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = next((row[key] for key in _RATIOS if row.get(key) is not None), None)
    change, interval = row.get("change_points"), row.get("change_interval")
    return (
        row["method"],
        row["runtime"],
        row["precision"],
        str(row["batch"]),
        "" if ratio is None else f"{ratio:.2f}",
        "" if change is None or interval is None else f"{change:+.2f} ({interval[0]:+.2f} … {interval[1]:+.2f})",
    )


# --- the reference --------------------------------------------------------------------------------------------------


def _reference_page(dotted: str, purpose: str) -> Iterator[str]:
    yield f"# `{dotted}`: {purpose}\n"
    package = import_module(dotted)
    for name in sorted(package.__all__, key=str.lower):
        home = _home(package, name)
        other = _documented_in(dotted, name) if home is not None else None
        if other is not None:
            yield f"- `{name}`: see [`{other}.{name}`]({other}.md#{home}.{name})\n"
        elif home is not None:
            yield f"::: {home}.{name}\n"


def _documented_in(dotted: str, name: str) -> str | None:
    """The page of a package below that documents a name of `leanvit`: each name has one place in the reference."""
    if dotted != "leanvit":
        return None
    value = getattr(import_module(dotted), name)
    below = (other for other in PACKAGES if other != dotted and name in import_module(other).__all__)
    return next((other for other in below if getattr(import_module(other), name) is value), None)


def _home(package: Any, name: str) -> str | None:
    """The module that defines a public name; None for what is no class, function or documented value of leanvit."""
    value = getattr(package, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__module__
    return None


# --- markdown -------------------------------------------------------------------------------------------------------


def _text(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").replace("<", "&lt;")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Lines of a table, and an empty one behind it."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""
