"""Roots: what a model is built of before any method, as JSON data.

Root           a timm model, or a part registered with `leanvit.anatomy.composite.part`, and its arguments
ForeignRoot    a module of another library that is kept whole, and its configuration
CompositeRoot  a wiring with its arguments, and the roots of its parts
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanvit.anatomy.composite import arguments_of, is_registered, make_wiring, module_of
from leanvit.errors import BadInput, CheckpointError
from leanvit.models.registry import require_model

# Arguments of timm.create_model that load something, or that build another kind of object than the model itself.
FORBIDDEN = frozenset(
    {
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
        "features_only",
        "out_indices",
        "scriptable",
        "exportable",
        "no_jit",
        "hf_hub_id",
        "device",
        "dtype",
    }
)
LIMITS = {"depth": 512, "img_size": 16384, "patch_size": 1024, "embed_dim": 65536, "num_heads": 1024}
LARGEST = 10_000_000
LEAST = {"depth": 1, "img_size": 1, "patch_size": 1, "embed_dim": 1, "num_heads": 1, "in_chans": 1, "num_classes": 0}
LONGEST = 65536  # characters of a foreign configuration
DEEPEST = 8  # models of parts that are parts of models of parts


@dataclass(frozen=True)
class Root:
    """A model that timm can build, `timm.create_model(name, **kwargs)`, or a registered part. All JSON."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.is_part:
            require_model(self.name)
        for key, value in self.kwargs.items():
            _check_argument(key, value)

    @property
    def is_part(self) -> bool:
        """Whether it is a registered part, and no image model."""
        return is_registered("part", self.name)

    def to_json(self) -> dict[str, Any]:
        module = module_of("part", self.name) if self.is_part else ""
        return {"name": self.name, "kwargs": dict(self.kwargs)} | ({"module": module} if module else {})


@dataclass(frozen=True)
class ForeignRoot:
    """A module of another library, `leanvit.anatomy.composite.foreign`: the name of what builds it, and its
    configuration, any JSON."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            text = json.dumps(self.config, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"configuration of {self.name} is not JSON: {error}") from error
        if len(text) > LONGEST:
            raise BadInput(f"configuration of {self.name} has {len(text)} characters; accepted: up to {LONGEST}")
        object.__setattr__(self, "config", json.loads(text))  # as a load will find it
        module_of("foreign", self.name)

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The configuration."""
        return self.config

    def to_json(self) -> dict[str, Any]:
        module = module_of("foreign", self.name)
        return {"foreign": self.name, "config": dict(self.config)} | ({"module": module} if module else {})


@dataclass(frozen=True)
class CompositeRoot:
    """A wiring by name, its arguments, and the roots of its parts by their names. All JSON."""

    wiring: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, AnyRoot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", arguments_of(make_wiring(self.wiring, self.arguments)))
        if self.depth > DEEPEST:
            raise BadInput(f"models of parts lie {self.depth} deep in one another; accepted: up to {DEEPEST}")

    @property
    def depth(self) -> int:
        """1, and that of the deepest part that is a model of parts."""
        return 1 + max((part.depth for part in self.parts.values() if isinstance(part, CompositeRoot)), default=0)

    @property
    def name(self) -> str:
        """In words: `pixel_classifier(backbone=vit_tiny_patch16_224, head=linear)`."""
        return f"{self.wiring}({', '.join(f'{name}={root.name}' for name, root in self.parts.items())})"

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Arguments of the wiring, then of each part: `backbone.img_size`."""
        own = {f"{name}.{key}": value for name, root in self.parts.items() for key, value in root.kwargs.items()}
        return {**self.arguments, **own}

    def to_json(self) -> dict[str, Any]:
        module = module_of("wiring", self.wiring)
        parts = {name: root.to_json() for name, root in self.parts.items()}
        content = {"wiring": self.wiring, "arguments": dict(self.arguments), "parts": parts}
        return content | ({"module": module} if module else {})


AnyRoot = Root | ForeignRoot | CompositeRoot
_VALUES = {"wiring": "arguments", "foreign": "config", "name": "kwargs"}  # kind of root -> the key of its values


def root_from_json(content: Mapping[str, Any], *, depth: int = 0) -> AnyRoot:
    """A root of `to_json`. Nothing is imported for it.

    Raises:
        CheckpointError: other keys or types, or a name that a module registers which was not imported (it is named).
        BadInput: an argument that is not accepted.
    """
    if depth > DEEPEST:
        raise CheckpointError(f"models of parts lie more than {DEEPEST} deep in one another")
    kind = next((kind for kind in _VALUES if kind in content), None)
    if kind is None:
        raise CheckpointError(f"a root has the keys {', '.join(content) or 'none'}; accepted: {', '.join(_VALUES)}")
    values = _VALUES[kind]
    known = {kind, values, "module"} | ({"parts"} if kind == "wiring" else set())
    name, given, parts = content[kind], content.get(values, {}), content.get("parts", {})
    fits = isinstance(name, str) and isinstance(given, dict) and isinstance(parts, dict) and {*content} <= known
    if not fits or not all(isinstance(part, dict) for part in parts.values()):
        raise CheckpointError(f"the root {name!r} has not the keys and types of one: {', '.join(map(str, content))}")
    module = content.get("module")
    if module and not is_registered("part" if kind == "name" else kind, name):
        raise CheckpointError(
            f"{name!r} is not leanvit's, it was registered by the module {module!r}: import that module before "
            f"loading, on the command line with leanvit --import {module!r}"
        )
    if kind == "wiring":
        return CompositeRoot(name, given, {key: root_from_json(part, depth=depth + 1) for key, part in parts.items()})
    return ForeignRoot(name, given) if kind == "foreign" else Root(name, given)


def described(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of a root as JSON, as its `name` and `kwargs` say; nothing of it need be registered here."""
    parts = {str(name): described(part) for name, part in content.get("parts", {}).items()}
    if not parts:
        return str(content.get("name", content.get("foreign", ""))), dict(
            content.get("kwargs", content.get("config", {}))
        )
    own = {f"{name}.{key}": value for name, (_, kwargs) in parts.items() for key, value in kwargs.items()}
    whole = f"{content.get('wiring')}({', '.join(f'{name}={root}' for name, (root, _) in parts.items())})"
    return whole, {**content.get("arguments", {}), **own}


def given(root: AnyRoot) -> str:
    """Its arguments in words."""
    return ", ".join(f"{k}={v}" for k, v in root.kwargs.items()) or "no arguments"


def _check_argument(key: str, value: Any) -> None:
    if key in FORBIDDEN:
        raise BadInput(f"constructor argument {key!r} is not part of a root: it loads or wraps, it does not build")
    flat = [n for v in _several(value) for n in _several(v)]  # lists of lists too: a window (rows, columns) per stage
    if not all(isinstance(v, bool | int | float | str | None) for v in flat):
        raise BadInput(f"constructor argument {key} is {value!r}: a root holds numbers, text and lists of them only")
    limit = LIMITS.get(key, LARGEST)
    too_small = [v for v in flat if isinstance(v, int | float) and not isinstance(v, bool) and v < LEAST.get(key, v)]
    if too_small:
        raise BadInput(f"constructor argument {key} is {value!r}; accepted: {LEAST[key]} or more")
    too_large = [v for v in flat if isinstance(v, int) and not isinstance(v, bool) and v > limit]
    if too_large:
        raise BadInput(f"constructor argument {key} is {value!r}; accepted: up to {limit}")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
