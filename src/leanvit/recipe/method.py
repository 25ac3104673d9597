"""What a method is: knobs in a frozen dataclass, a life of prepare / learn / shape / fold / finish, and declarations.

    @method("evit")
    @dataclass(frozen=True)
    class EViT:
        keep_rate: float = 0.7
        requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float"})
        destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
        def learn(self, model, data): ...   # -> structure: JSON, shapes and what a person edits
        def shape(self, model, structure): ...

Steps other than `shape` are optional; a method has the ones that its paper needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from leanvit.errors import BadInput, nearest
from leanvit.recipe.papers import Paper, add_paper, paper, papers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset, Preprocess

Structure = dict[str, Any]


class Method(Protocol):
    """The declarations that every method carries (as class variables) and the one step that none can miss.

    Optional steps: `prepare(model)`, `learn(model, data) -> Structure`, `fold(model, structure, before)`,
    `finish(model, structure)`.

    `before` is the model's state dict as it was before `shape` (after `learn`): what a method that cuts or merges
    weights takes them from.

    A method with `finish` leaves temporary parts in the model (gates, experts, adapters) that train on in the recovery;
    `prepare` puts them in, with the output unchanged bit for bit, and `finish` moves their values into what stays and
    takes them out. Until then its plan is unfinished: a load runs `prepare` again before `shape`, so `prepare` follows
    from the model's structure and the knobs alone.

    `structure_model`, a class variable, is a pydantic model of its structure (`recipe.structure`): a plan with other
    keys or kinds of values is refused before anything is built.

    Also optional: `check_fits(model, data)`, called before any work, of this method or of another: raises `Refused` or
    `BadInput` where `learn` would before its first step (methods that learn nothing from data are applied to a copy
    instead); `callbacks(model) -> list` (for the recovery that follows), `achieved(model) -> dict` (asked against
    achieved), `check(model, structure) -> list[str]` (in words, each target that the model to be saved misses beyond
    the method's tolerance), `places(model) -> Iterable[int]` (the blocks whose `slot` it fills, from its knobs alone:
    then two methods that clash are refused before any work), and the class method `at_macs(model, share, knobs) ->
    Method` with the class variable `dials`: the method whose dials, knobs that set its cost, are chosen so that this
    share of the model's MACs is left (see `recipe.nearest_setting`). `retune(model, was, now)` sets what an edited
    structure says on a model that was made already, where no weight follows from it (`Refused` for any other edit);
    with `tuned(structure, knobs) -> (Method, Structure)` and the class variable `tunable`, those knobs, a user changes
    them in a finished model (`recipe.retune`).

    A method that trains says its course before it begins: `trainings(dataset) -> list[Training]` (`recipe.course`).
    A knob whose default follows from the data is None until then: the class variable `open_knobs` names it, and
    `chosen_for(dataset) -> Method` sets it. `compress` asks for both; the plan records what was chosen.

    A method that learns by a loss of its own brings the recovery's: `objective(model, data, config) -> Objective |
    None` (`leanvit.training`), asked for once before each recovery that follows it, with the lean model, `data.teacher`
    and the recovery's `FitConfig`; it takes the place of the recovery's distillation (alpha, temperature, distillation,
    which are then refused), and None leaves that in place. Its own parameters are trained along and never part of the
    model. Two methods that both bring one are refused before any work; `check_teacher(model, teacher)` may refuse then,
    too.
    """

    slug: ClassVar[str]
    requires: ClassVar[frozenset[str]]  # traits that the model must have (anatomy: OpenModel.traits)
    destroys: ClassVar[frozenset[str]]  # traits that it no longer has afterwards
    slot: ClassVar[str]  # block slot that the method fills ("" for none): one method a slot and block
    blends: ClassVar[
        bool
    ]  # whether its steps mix all tokens (`Step.blends`): others take tokens before its first place
    export: ClassVar[str]  # "whole", "segments" or "none"
    needs_data: ClassVar[bool]
    trains: ClassVar[bool]  # whether `learn` trains, with resumable state in `data.out`
    trainable_after: ClassVar[bool]  # whether a recovery by training may follow

    def shape(self, model: OpenModel, structure: Structure) -> None: ...


_DEFAULTS: dict[str, Any] = {
    "requires": frozenset(),
    "destroys": frozenset(),
    "slot": "",
    "blends": False,
    "export": "whole",
    "needs_data": False,
    "trains": False,
    "trainable_after": True,
}
_REGISTRY: dict[str, type] = {}


def method(slug: str) -> Callable[[type], type]:
    """Class decorator: register a method under the slug of its row in `papers.toml`."""

    def register(cls: type) -> type:
        _check_shape(cls)
        cls.slug = slug  # type: ignore[attr-defined]
        for key, value in _DEFAULTS.items():
            if not hasattr(cls, key):
                setattr(cls, key, value)
        _REGISTRY[slug] = cls
        return cls

    return register


def _check_shape(cls: type) -> None:
    if not callable(getattr(cls, "shape", None)):
        raise TypeError(f"{cls.__name__} has no shape(model, structure)")


def register(slug: str, *, title: str, summary: str, **more: str) -> Callable[[type], type]:
    """Class decorator: register a method that is not part of leanvit, from a module of your own.

    Afterwards it is a method like any other: `leanvit methods`, `--with SLUG`, recipe files, compatibility. A run that
    was made with it names this module, and loads in a process that has imported it.

    Args:
        slug: lower-case letters, digits and `_`; not one that is taken.
        title: of the paper, or of the idea.
        summary: what it does, in half a sentence.
        more: other columns of `Paper`: arxiv, venue, kind (default "compress"), family (default "outside"), ...

    Raises:
        BadInput: the slug is malformed, or belongs to another module's method; a column that `Paper` does not have.
        TypeError: the class has no `shape`.
    """
    columns = {f.name for f in fields(Paper)} - {"slug", "title", "summary", "module"}
    for name in more:
        if name not in columns:
            raise BadInput(f"register has no column {name!r}: {nearest(name, columns)}")

    def decorate(cls: type) -> type:
        row = {"kind": "compress", "family": "outside", **more}
        _check_shape(cls)
        add_paper(Paper(slug=slug, title=title, summary=summary, module=cls.__module__, **row))
        return method(slug)(cls)

    return decorate


def outside_module(slug: str) -> str:
    """The module that registered a method from outside; "" for leanvit's own."""
    return "" if slug in papers() else paper(slug).module


def method_class(slug: str) -> type:
    """The class behind a slug, imported when first asked for. Raises `BadInput` for any other, with the nearest."""
    row = paper(slug)
    if not row.is_method:
        raise BadInput(
            f"{slug} is an architecture, not a method: its models are built by name (leanvit methods {slug})"
        )
    if slug not in _REGISTRY:
        import_module(row.module)
    return _REGISTRY[slug]


def make_method(slug: str, knobs: Mapping[str, Any]) -> Any:
    """A method from its slug and its knobs as JSON values. Raises `BadInput` naming an unknown knob or a bad value."""
    known = check_knobs(slug, knobs)
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in knobs]
    if missing:
        raise BadInput(f"method {slug!r} needs {', '.join(missing)}")
    return method_class(slug)(**frozen(knobs))


def check_knobs(slug: str, names: Iterable[str]) -> dict[str, Field[Any]]:
    """The knobs of a method, by name. Raises `BadInput` for a name that is none of them."""
    known = {f.name: f for f in fields(method_class(slug)) if f.init}
    for name in names:
        if name not in known:
            raise BadInput(f"method {slug!r} has no knob {name!r}: {nearest(name, known)}")
    return known


def frozen(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs as a method holds them: lists are tuples."""
    return {name: _frozen(value) for name, value in knobs.items()}


def knobs_of(m: Any) -> dict[str, Any]:
    """A method's knobs as JSON values."""
    return {f.name: _thawed(getattr(m, f.name)) for f in fields(m) if f.init}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return [_thawed(v) for v in value] if isinstance(value, tuple | list) else value


def parse_with(text: str) -> Any:
    """A method from command-line text: `evit`, `evit:keep_rate=0.7,blocks=[3,6,9],fuse=false`.

    Values are JSON; what is not JSON is taken as text. Raises `BadInput`.
    """
    return make_method(*split_with(text))


def split_with(text: str) -> tuple[str, dict[str, Any]]:
    """(slug, knobs) of such a text. Raises `BadInput`."""
    slug, _, rest = text.partition(":")
    knobs: dict[str, Any] = {}
    for part in _split_outside_brackets(rest):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"{text!r}: {part!r} is not knob=value")
        if name.strip() in knobs:
            raise BadInput(f"{text!r}: {name.strip()} is given twice")
        knobs[name.strip()] = _json_or_text(value.strip())
    return slug.strip(), knobs


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p for p in [*parts, current] if p.strip()]


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        return value


@dataclass(frozen=True)
class Plan:
    """What one method decided: JSON only. `structure` builds shapes; values live in the state dict."""

    slug: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True  # False: what `prepare` put in for a while is still in the model

    def method(self) -> Any:
        return make_method(self.slug, self.knobs)

    def to_json(self) -> dict[str, Any]:
        told = {"slug": self.slug, "knobs": dict(self.knobs), "structure": dict(self.structure)}
        return told if self.finished else {**told, "finished": False}


@dataclass(frozen=True)
class Data:
    """What a method may look at while it learns: the training split and how images are prepared."""

    dataset: AnyDataset
    preprocess: Preprocess
    seed: int = 0
    batch_size: int = 32
    teacher: nn.Module | None = None  # the dense root with its original weights, or the user's; `compress` gives it
    out: Path | None = None  # where a method that trains keeps its resumable state; None: nowhere
    callbacks: tuple[object, ...] = ()  # of the training that a method does (progress); see `leanvit.training`

    @property
    def resume(self) -> bool:
        """Whether `out` holds the state of an interrupted `fit`: `fit(out=data.out, resume=data.resume)` goes on."""
        from leanvit.training.checkpoint import STATE

        return self.out is not None and (self.out / STATE).is_file()

    def images(self, count: int) -> Iterator[Tensor]:
        """Batches of `count` training images in all, drawn by the seed, prepared as for evaluation."""
        from leanvit.data import loader

        left = count
        batches = loader(
            self.dataset, self.preprocess, batch_size=self.batch_size, seed=self.seed, train=True, augment=None
        )
        for batch in batches:
            yield batch.images[:left]
            left -= len(batch.images)
            if left <= 0:
                return
