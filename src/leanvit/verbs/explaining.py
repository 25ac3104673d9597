"""What one method needs, does to a model and composes with: from its card and its declarations.

Of an architecture: its models, and the recipes that train them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any

from leanvit.cards import import_code
from leanvit.errors import BadInput
from leanvit.kinds import is_method
from leanvit.knobs import field_hints, words
from leanvit.recipe import TRAITS, Card, known_papers, method_class, paper
from leanvit.recipe.compat import cell
from leanvit.recipe.training_methods import is_for_training, shapes
from leanvit.values import write_value

_EXPORT = {"whole": "as one artefact", "segments": "in segments", "none": "not exportable"}


@dataclass(frozen=True)
class Knob:
    """One knob of a method."""

    name: str
    accepts: str  # in words
    default: Any  # JSON value; "required" where there is none
    meaning: str
    example: str  # as it is typed: `blocks=[3,6,9]`; "" where nothing is known


@dataclass(frozen=True)
class Explanation:
    """A method in words; the lists hold sentences ready to read."""

    paper: Card
    knobs: tuple[Knob, ...]
    requires: tuple[str, ...]
    destroys: tuple[str, ...]
    needs_data: bool
    trainable_after: bool
    export: str
    composes: dict[str, str]  # other slug -> how

    def to_json(self) -> dict[str, Any]:
        payload = asdict(self)
        del payload["paper"]
        return {**self.paper.to_json(), **payload}

    @property
    def example(self) -> str:
        """The method as it is typed, with its first knob."""
        first = self.knobs[0].example if self.knobs else ""
        return f"{self.paper.slug}:{first}" if first else self.paper.slug

    def rich(self) -> Iterator[Any]:
        """Parts to print with rich."""
        from rich.table import Table
        from rich.text import Text

        yield from _heading(self.paper)
        table = Table("knob", "default", "meaning, and what is accepted", title="knobs", title_justify="left")
        for knob in self.knobs:
            described = Text(f"{knob.meaning}\n" if knob.meaning else "") + Text(knob.accepts, style="dim")
            table.add_row(Text(knob.name), Text(write_value(knob.default)), described + Text(f"\n{knob.example}"))
        yield table
        yield _facts(self.facts())
        yield Text(f"\nleanvit {self.paper.verb} MODEL --data DATA --with {self.example}")
        if is_for_training(self.paper.slug) and not shapes(method_class(self.paper.slug)):
            yield Text(f"leanvit compress MODEL --data DATA --with METHOD --recover 3 --recover-with {self.example}")

    def facts(self) -> dict[str, str]:
        """What is known of the method, by short headings."""
        facts = {
            "needs": ", ".join([*self.requires, *(["images to learn from"] if self.needs_data else [])]) or "nothing",
            "takes away": ", ".join(self.destroys) or "nothing",
            "training after": "yes" if self.trainable_after else "no",
            "export": self.export,
            "published": self.paper.published,
            "measured": ", ".join(filter(None, (self.paper.measured.text, self.paper.measured.machine))),
            "by": self.paper.measured.command,
        }
        facts |= {f"with {slug}": how for slug, how in self.composes.items()}
        return {name: value for name, value in facts.items() if value}


@dataclass(frozen=True)
class Architecture:
    """An architecture in words."""

    paper: Card
    models: dict[str, str]  # name -> what it is, in a line
    recipes: tuple[str, ...]  # of its folder

    def to_json(self) -> dict[str, Any]:
        payload = asdict(self)
        del payload["paper"]
        return {**self.paper.to_json(), **payload}

    def rich(self) -> Iterator[Any]:
        """Parts to print with rich."""
        from rich.table import Table
        from rich.text import Text

        yield from _heading(self.paper)
        table = Table("model", "what it is", title="models", title_justify="left")
        for name, text in self.models.items():
            table.add_row(Text(name), Text(text))
        yield table
        facts = {"published": self.paper.published, "recipes": ", ".join(self.recipes)}
        yield _facts({what: value for what, value in facts.items() if value})
        yield Text(f"\nleanvit train {next(iter(self.models))} --data DATA --out RUN")


def _heading(row: Card) -> Iterator[Any]:
    from rich.text import Text

    where = ", ".join(filter(None, (row.venue, row.arxiv and f"arXiv {row.arxiv}")))
    yield Text(f"{row.slug}: {row.title}" + (f" ({where})" if where else ""), style="bold")
    yield Text(f"{row.summary}\n")


def _facts(facts: Mapping[str, str]) -> Any:
    """A line for each, with its words in a column."""
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid(padding=(0, 1, 0, 0))
    shown.add_column(style="bold", min_width=14, no_wrap=True)
    for name, value in facts.items():
        shown.add_row(Text(name), Text(value))
    return shown


def explain(slug: str) -> Explanation | Architecture:
    """Everything about one method or architecture. Raises `BadInput` with the nearest names."""
    row = paper(slug)
    return _method(row) if row.is_method else _architecture(row)


def _architecture(row: Card) -> Architecture:
    module = import_code(row.module)
    if missing := [name for name in row.models if not hasattr(module, name)]:
        raise BadInput(f"{row.module} has no {', '.join(missing)}, models that its card names")
    models = {name: _line(getattr(module, name)) for name in row.models}
    return Architecture(row, models, tuple(row.recipes()))


def _line(entry: Any) -> str:
    return (entry.__doc__ or "").strip().split("\n")[0].rstrip(".")


def _method(row: Card) -> Explanation:
    slug, cls = row.slug, method_class(row.slug)
    declared: Any = cls
    return Explanation(
        paper=row,
        knobs=tuple(_knob(field, field_hints(cls)[field.name]) for field in fields(declared) if field.init),
        requires=tuple(TRAITS[t] for t in sorted(declared.requires)),
        destroys=tuple(TRAITS[t] for t in sorted(declared.destroys)),
        needs_data=declared.needs_data,
        trainable_after=declared.trainable_after,
        export=_EXPORT[declared.export],
        composes={
            other: _order(slug, other)
            for other, theirs in known_papers().items()
            if other != slug and is_method({*row.kinds} & {*theirs.kinds})
        },
    )


def _knob(field: Field[Any], hint: Any) -> Knob:
    if field.default is not MISSING:
        default = field.default
    elif field.default_factory is not MISSING:
        default = field.default_factory()
    else:
        default = "required"
    shown = default if field.metadata.get("example") is None else field.metadata["example"]
    example = "" if shown == "required" else f"{field.name}={write_value(shown)}"
    default = list(default) if isinstance(default, tuple) else default
    return Knob(field.name, words(hint), default, field.metadata.get("meaning", ""), example)


def _order(slug: str, other: str) -> str:
    """How two methods combine, in words."""
    before, after = cell(other, slug), cell(slug, other)
    if before.verdict == after.verdict == "yes":
        return "yes, in either order"
    if before.verdict == after.verdict:
        return f"{after.verdict}: {after.reason}"
    if after.verdict == "yes":
        return f"yes, {slug} first ({before.reason})"
    if before.verdict == "yes":
        return f"yes, {other} first ({after.reason})"
    return f"{slug} first: {after.verdict} ({after.reason}); {other} first: {before.verdict} ({before.reason})"
