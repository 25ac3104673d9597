"""Models made of named parts: a backbone with a head, two towers, two networks with stitches between them.

A *wiring* says how parts are connected. It is a frozen dataclass of plain arguments, registered under a name, and holds
no tensor: whatever has weights is a part.

    @wiring("pixel_classifier")
    @dataclass(frozen=True)
    class PixelClassifier(Wiring):
        keeps = {"backbone": frozenset({"maps", "width"})}
        def run(self, model, images, **context):
            maps, state = model.backbone.trace_maps(images, **context)
            return model.head(maps[-1]), state

A part is an opened model (built by its timm name), an `OpenPart` of one's own with an op set (a head, a neck, stitches:
int8 reaches its products), or a *foreign* module, which is kept whole and which no method is applied to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, ClassVar, TypeVar

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.opened import Opened
from leanvit.anatomy.state import State
from leanvit.cards import builders, import_code
from leanvit.errors import BadInput, Refused, unknown
from leanvit.knobs import check_fields
from leanvit.values import as_lists, as_tuples

C = TypeVar("C", bound=type)
Foreign = Callable[..., nn.Module]


class OpenPart(Opened):
    """A part of one's own: its constructor takes plain arguments, its forward runs its products on `self.ops`.

    Sites are named by their place in it: `self.ops.linear("proj", self.proj, x)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: Any = ()


class Wiring:
    """How the parts of a composite are connected; its fields, annotated like knobs, are its arguments."""

    name: ClassVar[str]  # set by `wiring`
    main: ClassVar[str] = "backbone"  # the part that images enter, and that methods are applied to where none is named
    required: ClassVar[tuple[str, ...]] = ()  # other parts that it cannot be without
    keeps: ClassVar[Mapping[str, frozenset[str]]] = {}  # part -> traits of it that methods may not take away
    classifies: ClassVar[bool] = True  # whether outputs are logits of classes of images, (B, classes)

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_fields(self, f"{type(self).__name__}.")

    def check(self, parts: Mapping[str, nn.Module]) -> None:
        """Raise `BadInput` or `Refused` for parts that do not fit together. Asked before anything runs."""

    def run(self, model: Composite, images: Any, **context: Any) -> tuple[Any, State]:
        """One forward of the whole: (outputs, the final state of the main part)."""
        raise TypeError(f"{type(self).__name__} does not define run(model, images, **context)")

    def outputs(self, parts: Mapping[str, nn.Module]) -> int:
        """How many classes the outputs tell apart, of images or (`classifies` is False) of pixels; 0: none."""
        return 0


class Composite(OpenModel):
    """An opened model of named parts, which are its children: `model.backbone`, state-dict keys `backbone.*`.

    Steps, blocks, grid and input size are those of the main part. `history` holds one root and one list of plans, each
    naming its part; the history of a part is that of the part by itself.
    """

    family = "composite"

    def __init__(self, wired: Wiring, parts: Mapping[str, nn.Module]) -> None:
        """Raises `BadInput` for names of parts that cannot be, a main part that is missing, or one module as two parts;
        what `check` raises."""
        _check_parts(wired, parts)
        classes = _classes_of(wired, parts)
        main: Any = parts[wired.main]
        attributes = {"num_prefix_tokens": main.num_prefix_tokens, "grad_checkpointing": False}
        super().__init__(attributes=attributes, source=None)
        self.wiring = wired
        self.part_names = tuple(parts)
        for name, part in parts.items():
            if not name.isidentifier() or hasattr(Composite, name) or name in {*vars(self), *self._modules, *_TAKEN}:
                raise BadInput(f"part {name!r}: accepted: a Python name that is no attribute of a model")
            self.add_module(name, part)
            if isinstance(part, Opened):
                part.kept_traits = frozenset(wired.keeps.get(name, ()))
                if lost := part.lost_traits():
                    raise Refused(f"wiring {wired.name} needs of its part {name!r} what it does not have: {lost[0]}")
        self.num_classes = classes
        self.tells_classes = wired.classifies and classes > 0

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts by name, in their order."""
        return {name: self._modules[name] for name in self.part_names}  # type: ignore[misc]

    @property
    def opened_parts(self) -> dict[str, Opened]:
        """Those that methods can be applied to: all but foreign ones."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Opened)}

    @property
    def main_part(self) -> OpenModel:
        """The part that images enter."""
        part = self._modules[self.wiring.main]
        assert isinstance(part, OpenModel)  # as `_check_parts` saw to
        return part

    # --- running -----------------------------------------------------------------

    def trace(self, images: Any, **context: Any) -> tuple[Any, State]:
        """Outputs, as the wiring gives them, and the state of the main part."""
        return self.wiring.run(self, images, **context)

    def start(self, images: Any, **context: Any) -> State:
        return self.main_part.start(images, **context)

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        return self.main_part.embed(images, state)

    def run(self, x: Any, state: State, start: int = 0, stop: int | None = None) -> tuple[Any, State]:
        return self.main_part.run(x, state, start, stop)

    def classify(self, x: Any, state: State) -> tuple[Any, State]:
        raise Refused(f"the outputs of a model of parts come of its wiring ({self.wiring.name}): call the model itself")

    def trace_maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[tuple[Any, ...], State]:
        return self.main_part.trace_maps(images, indices, norm=norm, **context)

    def map_refusal(self) -> str:
        return self.main_part.map_refusal()

    def _map_levels(self) -> list[tuple[int, tuple[int, int]]]:
        return self.main_part._map_levels()

    def _taken_maps(self, indices: int | Sequence[int] | None) -> list[int]:
        return self.main_part._taken_maps(indices)

    @contextmanager
    def whole_depth(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.opened_parts.values():
                stack.enter_context(part.whole_depth())
            yield

    # --- of the main part, or of all ---------------------------------------------

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        return self.main_part.blocks

    @property
    def precision(self) -> str | None:
        """The first that a part's op set has."""
        found = (part.precision for part in self.opened_parts.values())
        return next((precision for precision in found if precision is not None), None)

    @property
    def float_weights(self) -> bool:
        """Whether those of all parts are."""
        return all(part.float_weights for part in self.opened_parts.values())

    def sites(self) -> dict[str, nn.Module]:
        """Of all opened parts: `PART.SITE`."""
        parts = self.opened_parts.items()
        return {f"{name}.{site}": module for name, part in parts for site, module in part.sites().items()}

    def products(self) -> list[str]:
        return [f"{name}.{site}" for name, part in self.opened_parts.items() for site in part.products()]

    def traits(self) -> frozenset[str]:
        return self.main_part.traits()

    def grid(self) -> tuple[int, int]:
        return self.main_part.grid()

    def patches(self) -> int:
        return self.main_part.patches()

    def patch_tokens(self) -> list[int]:
        return self.main_part.patch_tokens()

    def input_size(self) -> tuple[int, int, int]:
        return self.main_part.input_size()

    def probe_size(self) -> tuple[int, int, int]:
        return self.main_part.probe_size()

    @property
    def pretrained_cfg(self) -> Any:
        return getattr(self.main_part, "pretrained_cfg", None)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for part in self.parts.values():
            if callable(switch := getattr(part, "set_grad_checkpointing", None)):
                switch(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers leave undecayed, of all parts."""
        asked = ((name, getattr(part, "no_weight_decay", None)) for name, part in self.parts.items())
        return {f"{name}.{key}" for name, ask in asked if callable(ask) for key in ask()}

    def lr_scales(self) -> dict[str, float]:
        """Factors on the learning rate by parameter, of all parts."""
        asked = ((name, getattr(part, "lr_scales", None)) for name, part in self.parts.items())
        return {f"{name}.{key}": factor for name, ask in asked if callable(ask) for key, factor in ask().items()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """timm's matcher of layers, as a function of a parameter's name: the main part's layers, then all the rest.

        Raises `BadInput` where the main part states none.
        """
        main = f"{self.wiring.main}."
        named = ((name.removeprefix(main),) * 2 for name, _ in self.named_parameters() if name.startswith(main))
        rest = ("", "")  # a name that no pattern matches
        layers = group_with_matcher(chain(named, [rest]), self.main_part.group_matcher(coarse), reverse=True)
        return lambda name: layers[name.removeprefix(main) if name.startswith(main) else ""]

    def layer_ids(self) -> dict[str, int]:
        """Layers by parameter, as the main part states them; all other parts belong to the top.

        Raises `BadInput` where the main part states none.
        """
        states = getattr(self.main_part, "layer_ids", None)
        if states is None:
            raise BadInput(f"the part {self.wiring.main!r} does not state its layers (layer_ids())")
        return {f"{self.wiring.main}.{name}": layer for name, layer in states().items()}

    def make(self) -> dict[str, Any]:
        own = {"wiring": (self.wiring.name, repr(self.wiring))}
        return own | {f"{n}.{k}": v for n, part in self.opened_parts.items() for k, v in part.make().items()}


_TAKEN = ("num_classes", "family")  # attributes that a composite gets later


def _check_parts(wired: Wiring, parts: Mapping[str, nn.Module]) -> None:
    if not isinstance(wired, Wiring):
        raise BadInput(f"wired is a {type(wired).__name__}; accepted: a Wiring, as registered with @wiring")
    if not isinstance(parts.get(wired.main), OpenModel):
        named = ", ".join(parts) or "none"
        raise BadInput(f"wiring {wired.name} needs an opened model as its part {wired.main!r}; parts given: {named}")
    missing = [name for name in wired.required if name not in parts]
    if missing:
        raise BadInput(f"wiring {wired.name} needs the part {missing[0]!r}; parts given: {', '.join(parts)}")
    names: dict[int, str] = {}
    for name, part in parts.items():
        if (other := names.setdefault(id(part), name)) != name:
            raise BadInput(f"parts {other!r} and {name!r} are one module: give it once, a wiring may run it twice")


def _classes_of(wired: Wiring, parts: Mapping[str, nn.Module]) -> int:
    """How many classes the outputs tell apart, after `check`. Raises `BadInput` where either stumbles over a part."""
    try:
        wired.check(parts)
        return wired.outputs(parts)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        given = ", ".join(f"{name} ({type(part).__name__})" for name, part in parts.items())
        raise BadInput(f"wiring {wired.name} does not take the parts {given}: {_reason(error)}") from error


# --- registered by name ---------------------------------------------------------------------------------------------

_wirings: dict[str, type[Wiring]] = {}
_parts: dict[str, type[OpenPart]] = {}
_foreign: dict[str, Foreign] = {}
_TABLES: dict[str, Mapping[str, Any]] = {"wiring": _wirings, "part": _parts, "foreign": _foreign}


def wiring(name: str) -> Callable[[C], C]:
    """Class decorator: register a `Wiring` by name, so that a run that has it can be loaded."""

    def register(cls: C) -> C:
        cls.name = name  # type: ignore[attr-defined]
        return _register(_wirings, name, cls)

    return register


def part(name: str) -> Callable[[C], C]:
    """Class decorator: register an `OpenPart` by name: a root `Root(name, kwargs)` builds it."""
    return lambda cls: _register(_parts, name, cls)


def foreign(name: str) -> Callable[[Foreign], Foreign]:
    """Decorator of `build(**config) -> nn.Module`: register a module of another library that is kept whole.

    It is built on the CPU, with its buffers, also where the rest of a model is built without values.
    """
    return lambda build: _register(_foreign, name, build)


def _register(table: dict[str, Any], name: str, made: Any) -> Any:
    known = table.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (made.__module__, made.__qualname__):
        raise BadInput(f"{name!r} is registered by {known.__module__} already: give another name")
    if not name.isidentifier():
        raise BadInput(f"name is {name!r}; accepted: a Python name")
    table[name] = made
    return made


def make_wiring(name: str, arguments: Mapping[str, Any]) -> Wiring:
    """A registered wiring. Raises `BadInput` for an unknown name, argument or value."""
    cls: Any = _known(_wirings, name, "wiring")
    accepted = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    for key in arguments:
        if key not in accepted:
            raise unknown(f"argument of the wiring {name}", key, accepted)
    try:
        made: Wiring = cls(**{key: as_tuples(value) for key, value in arguments.items()})
    except TypeError as error:
        raise BadInput(f"wiring {name}: {error}") from error
    return made


def arguments_of(wired: Wiring) -> dict[str, Any]:
    """The arguments of a wiring as JSON values."""
    named: Any = wired
    return {f.name: as_lists(getattr(wired, f.name)) for f in fields(named)} if is_dataclass(wired) else {}


def make_part(name: str, kwargs: Mapping[str, Any], *, device: str = "cpu") -> OpenPart:
    """A registered part with fresh weights. Raises `BadInput` for arguments that it does not take."""
    cls = _known(_parts, name, "part")
    try:
        with torch.device(device):
            made: OpenPart = cls(**{key: as_tuples(value) for key, value in kwargs.items()})
    except Exception as error:  # whatever its constructor raises for arguments of a file
        raise BadInput(f"part {name} cannot be built with {dict(kwargs)}: {_reason(error)}") from error
    return made


def make_foreign(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A registered foreign module, on the CPU. Raises `BadInput` where its library does not take the configuration."""
    build = _known(_foreign, name, "foreign part")
    try:
        with torch.device("cpu"):
            made: nn.Module = build(**config)
    except Exception as error:  # whatever another library raises
        raise BadInput(f"foreign part {name} cannot be built of its configuration: {_reason(error)}") from error
    if not isinstance(made, nn.Module):
        raise BadInput(f"foreign part {name} is built as a {type(made).__name__}; accepted: an nn.Module")
    return made


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def is_registered(kind: str, name: str) -> bool:
    """Whether there is a "wiring", "part" or "foreign" of this name."""
    return _known(_TABLES[kind], name, "") is not None


def module_of(kind: str, name: str) -> str:
    """The module that registered a name as "wiring", "part" or "foreign"; "" for one of leanvit's own."""
    module: str = _known(_TABLES[kind], name, kind).__module__
    return "" if name in builders() or module.startswith("leanvit.") else module


def _known(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """What is registered; a paper that brings it is imported on first use. `kind` "": None where there is none."""
    if name not in table and name in builders():
        import_code(builders()[name].module)
    if name not in table and kind:
        raise unknown(kind, name, [*table, *builders()])
    return table.get(name)
