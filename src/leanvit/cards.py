"""Cards: what is known of each paper before any of its code is imported. Light: no PyTorch, no paper.

A paper is a folder `<family>/<slug>/` with a `card.toml`, data only, beside its `__init__.py`. The folder's name is the
paper's slug, its parent's the family, the place of both the module. Papers are found in leanvit itself and in the roots
that are added (`add_root`), folders of the same make. Every table of papers is a function here, made of the cards:
nothing lists papers but the folders.

The order of papers is that of `FAMILIES`, then by slug.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from annotated_types import MinLen

from leanvit.errors import BadInput, LeanvitError, unknown
from leanvit.kinds import KINDS, is_method
from leanvit.knobs import Choice, check

CARD = "card.toml"
HEADLINE = "headline.txt"  # beside the card: the template of what was measured, with its figures
RECIPES = "recipes"  # folder of a paper: training recipes, NAME.toml
FAMILIES = ("tokens", "prune", "quantize", "exits", "backbones")  # the order of tables; others follow by name
_SLUG = r"[a-z][a-z0-9_]*"
LAYOUTS = ("strided", "patches", "plain")


@dataclass(frozen=True)
class Figure:
    """Where a measured number is: the value of `metric` in the row of a results file that has all values of `row`."""

    file: str  # under benchmarks/results
    metric: str  # path of the value, "top1_percent/mean"
    row: Mapping[str, Any] = field(default_factory=dict)  # path -> value
    table: str = "rows"  # of the file; "": the file's own keys
    of: str = ""  # "mean" of a list or of several rows, "count" of a list
    scale: float = 1  # factor
    over: Mapping[str, Any] = field(default_factory=dict)  # what differs in the figure to divide by
    format: str = ""  # Python's format of the number


@dataclass(frozen=True)
class Measured:
    """What was measured here: `text`, or a `template` in which `{name}` stands for the figure of that name.

    A template is rendered from the results (`tools/pages/headlines.py`) into the file `HEADLINE` of the paper's folder,
    which is its text then: results are not part of the package.
    """

    text: str = ""
    template: str = ""
    command: str = ""  # that made it
    machine: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """Which images the models of a paper take. Sides are in pixels."""

    layout: Annotated[str, Choice(LAYOUTS)] = (
        "strided"  # "strided": tokens are `stride` apart; "patches": of a size to choose; "plain": any ViT's
    )
    stride: int = 0
    least: int = 0  # the least side, a multiple of the stride
    patches: tuple[int, ...] = ()  # sizes to choose from; (): any
    patch: int = 16  # that the models have where their name does not say it
    doubles: bool = False  # of patches: the distance of tokens doubles from stage to stage

    def __post_init__(self) -> None:
        if self.layout == "strided" and (self.stride < 1 or self.least % self.stride):
            raise BadInput(f"stride is {self.stride}, least {self.least}; accepted: 1 or more, and a multiple of it")


@dataclass(frozen=True)
class Knobs:
    """Settings of a method by which tests, tables and pages use it."""

    shown: str = ""  # what `--with SLUG:` shows on its page; "": its defaults
    small: Mapping[str, Any] = field(default_factory=dict)  # quick: few images, few steps
    off: Mapping[str, Any] | None = None  # on the small plain ViT of the tests, these change no bit
    exported: Mapping[str, Any] | None = None  # of its row in the table of runtimes; None: it has none
    cost: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # that set its cost: from, to; (): any
    controls: tuple[str, ...] = ()  # knobs of its controls, as in `--with`
    compared: bool = False  # whether it is compared with others where no method is named


@dataclass(frozen=True)
class Example:
    """A small build of one of a paper's models, for tests and tables."""

    model: str  # timm name
    args: Mapping[str, Any]  # of its constructor, `img_size` among them
    title: str = ""  # of its row in the table of support; "": it has none
    levels: int | None = None  # of features; None: as many as blocks
    exported: bool = True  # False: another example has the same parts, this one need not be exported, too


Kinds = Annotated[tuple[Annotated[str, Choice(KINDS)], ...], MinLen(1)]


@dataclass(frozen=True)
class Card:
    """A paper, read from its folder and its `card.toml`."""

    slug: str
    family: str
    module: str  # that registers its class and its models
    title: str
    summary: str
    kinds: Kinds  # what it gives, the one that tables list it under first
    arxiv: str = ""
    venue: str = ""
    published: str = ""  # the paper's headline
    measured: Measured = field(default_factory=Measured)  # ours
    public: tuple[str, ...] = ()  # names of its module that are offered as `leanvit.NAME`
    models: tuple[str, ...] = ()  # names that its module registers with timm
    builders: tuple[
        str, ...
    ] = ()  # names of wirings, parts and foreign modules that it registers (`anatomy.composite`)
    input: Input | None = None
    knobs: Knobs = field(default_factory=Knobs)
    example: tuple[Example, ...] = ()
    folder: Path | None = None  # None: registered from a module of a user's own

    @property
    def is_method(self) -> bool:
        """Whether it is applied to a model; else it is an architecture."""
        return is_method(self.kinds)

    @property
    def verb(self) -> str:
        """The command that uses it, of the kind that it is listed under."""
        return KINDS[self.kinds[0]].verb

    @property
    def package(self) -> str:
        """What to import so that the paper is known; "" for leanvit's own."""
        if self.folder is None:
            return self.module
        package = self.module.removesuffix(f".{self.family}.{self.slug}")
        return "" if package == "leanvit" else package

    def recipes(self) -> dict[str, Path]:
        """Training recipes of the paper: name -> file."""
        found = [] if self.folder is None else sorted((self.folder / RECIPES).glob("*.toml"))
        return {path.stem: path for path in found}

    def to_json(self) -> dict[str, Any]:
        """One flat row."""
        flat = ("slug", "title", "kinds", "family", "module", "summary", "arxiv", "venue", "published")
        ours = {"measured": self.measured.text, "command": self.measured.command, "machine": self.measured.machine}
        row = {"kind": self.kinds[0], **{name: getattr(self, name) for name in flat}, **ours}
        return {**row, "public": self.public, "models": self.models}


# --- tables ---------------------------------------------------------------------------------------------------------


def papers() -> dict[str, Card]:
    """The papers of leanvit and of the roots that were added, by slug, in the order of tables."""
    return _papers(tuple(_roots))


def known_papers() -> dict[str, Card]:
    """All papers: those with a card, then the methods that modules of a user's own registered."""
    return {**papers(), **_registered}


def paper(slug: str) -> Card:
    """One paper. Raises `BadInput` with the nearest names."""
    known = known_papers()
    if slug not in known:
        raise unknown("method", slug, known)
    return known[slug]


def own_methods() -> list[str]:
    """The slugs of the papers with a card that are applied to a model."""
    return [slug for slug, card in papers().items() if card.is_method]


def models() -> dict[str, Card]:
    """timm name -> the paper that registers it."""
    return {name: card for card in papers().values() for name in card.models}


def builders() -> dict[str, Card]:
    """Name of a wiring, part or foreign module -> the paper that registers it."""
    return {name: card for card in papers().values() for name in card.builders}


def public_names() -> dict[str, str]:
    """Name that is offered as `leanvit.NAME` -> the module that has it."""
    return {name: card.module for card in papers().values() for name in card.public}


def recipes() -> dict[str, Path]:
    """Training recipes of all papers: name -> file."""
    return {name: path for card in papers().values() for name, path in card.recipes().items()}


def input_of(cls: type) -> Input | None:
    """The input constraints of the paper with this model class, or one of its parts; None if no card has them."""
    for kind in cls.__mro__:
        for card in papers().values():
            if card.input is not None and f"{kind.__module__}.".startswith(f"{card.module}."):
                return card.input
    return None


# --- roots and registered methods -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Root:
    folder: Path
    package: str


_roots: list[_Root] = [_Root(Path(__file__).parent, "leanvit")]
_registered: dict[str, Card] = {}


def add_root(folder: str | Path, package: str | None = None) -> list[Card]:
    """Add a folder of papers, `<family>/<slug>/card.toml` each: they are then known like leanvit's own.

    Args:
        folder: of the families. It is imported as a package; its parent goes on the path where it is not there yet.
        package: its dotted name, default the folder's own.

    Raises:
        BadInput: no folder, one without cards, a card that is damaged, or a slug, model or public name that is taken.
    """
    root = _Root(Path(folder).resolve(), package or Path(folder).resolve().name)
    if root in _roots:
        return list(_cards(root))
    if not root.folder.is_dir():
        raise BadInput(f"{folder} is no folder; accepted: one that holds <family>/<slug>/{CARD}")
    added = list(_cards(root))
    if not added:
        raise BadInput(f"{folder} holds no papers; accepted: a folder that holds <family>/<slug>/{CARD}")
    _papers((*_roots, root))
    _make_importable(root)
    _roots.append(root)
    return added


def remove_root(folder: str | Path) -> None:
    """Forget the papers of a folder that was added. Raises `BadInput` for any other."""
    for root in _roots[1:]:
        if root.folder == Path(folder).resolve():
            _roots.remove(root)
            return
    raise BadInput(f"{folder} was not added; accepted: {', '.join(str(root.folder) for root in _roots[1:]) or 'none'}")


def reread() -> None:
    """Drop cached cards: they are read again on next use, after files of papers changed."""
    _papers.cache_clear()
    _cards.cache_clear()


def import_code(module: str) -> ModuleType:
    """Import a module of papers. Raises `BadInput`, with the reason, for one from outside of leanvit that fails."""
    try:
        return import_module(module)
    except LeanvitError:
        raise
    except Exception as error:
        if module.startswith("leanvit."):
            raise
        raise BadInput(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


def has_cards(folder: str | Path) -> bool:
    """Whether a folder holds papers."""
    return any(Path(folder).glob(f"*/*/{CARD}"))


def add_registered(card: Card) -> None:
    """A method of a module of a user's own. Raises `BadInput` if the slug is malformed or another module's."""
    _check_slug(card.slug)
    owner = known_papers().get(card.slug)
    if owner is not None and owner.module != card.module:
        raise BadInput(f"slug {card.slug!r} belongs to the method of {owner.module}: give {card.module}'s another")
    _registered[card.slug] = card


def _check_slug(slug: str) -> None:
    if not re.fullmatch(_SLUG, slug):
        raise BadInput(f"slug is {slug!r}; accepted: lower-case letters, digits and _, a letter first")


def _make_importable(root: _Root) -> None:
    found = _spec(root.package)
    if found is None and len(root.folder.parents) > (depth := root.package.count(".")):
        sys.path.insert(0, str(root.folder.parents[depth]))
        if (found := _spec(root.package)) is None:
            sys.path.pop(0)
    places = [] if found is None else [Path(place).resolve() for place in found.submodule_search_locations or ()]
    if root.folder not in places:
        raise BadInput(
            f"{root.folder} cannot be imported as {root.package!r}: no module has this name, or another one has"
        )


def _spec(package: str) -> ModuleSpec | None:
    try:
        return find_spec(package)
    except (ImportError, ValueError):
        return None


@cache
def _papers(roots: tuple[_Root, ...]) -> dict[str, Card]:
    found = [card for root in roots for card in _cards(root)]
    for what in ("slug", "models", "builders", "public"):
        _require_different(what, found)
    return {card.slug: card for card in sorted(found, key=_place)}


def _place(card: Card) -> tuple[int, str, str]:
    known = card.family in FAMILIES
    return FAMILIES.index(card.family) if known else len(FAMILIES), card.family, card.slug


def _require_different(what: str, found: list[Card]) -> None:
    taken: dict[str, Card] = {}
    for card in found:
        value = getattr(card, what)
        for name in [value] if isinstance(value, str) else value:
            other = taken.setdefault(name, card)
            if other is not card:
                raise BadInput(f"{_file(card)}: {what} {name!r} is that of {_file(other)}, too")


def _file(card: Card) -> str:
    return str(CARD if card.folder is None else card.folder / CARD)


# --- reading --------------------------------------------------------------------------------------------------------


@cache
def _cards(root: _Root) -> tuple[Card, ...]:
    return tuple(read_card(path, root.package) for path in sorted(root.folder.glob(f"*/*/{CARD}")))


def read_card(path: Path, package: str) -> Card:
    """A card by its file, `<family>/<slug>/card.toml` of a package. Raises `BadInput` that names the file."""
    family, slug = path.parts[-3:-1]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        _check_slug(slug)
        place = {"slug": slug, "family": family, "module": f"{package}.{family}.{slug}", "folder": path.parent}
        for key in place.keys() & content.keys():
            raise BadInput(f"unknown key {key!r}: it follows from where the card is")
        card: Card = check("", {**place, **content}, Card)
        _check_card(card)
        if card.measured.template and (headline := path.with_name(HEADLINE)).is_file():
            measured = replace(card.measured, text=headline.read_text(encoding="utf-8").strip())
            card = replace(card, measured=measured)
    except (OSError, ValueError) as error:  # not TOML, not UTF-8; `BadInput` is a `ValueError`
        raise BadInput(f"{path}: {error}") from error
    return card


def _check_card(card: Card) -> None:
    if ("build" in card.kinds) != bool(card.models):
        raise BadInput("kinds has 'build' where models are named, and only there")
    if {*re.findall(r"\{(\w+)\}", card.measured.template)} != {*card.measured.figures}:
        raise BadInput("measured.template names other figures in braces than measured.figures has")
    if card.measured.text and card.measured.template:
        raise BadInput("measured has text and template; accepted: one of them")
    for example in card.example:
        if example.model not in card.models:
            raise BadInput(f"example.model is {example.model!r}; accepted: {', '.join(card.models) or 'no model'}")
