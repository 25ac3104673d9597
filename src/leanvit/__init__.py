"""leanvit makes vision transformers lean: it builds, trains, compresses, deploys and audits timm ViTs, with evidence.

Public names load on first use, so that `import leanvit` (and the command line) stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it
    "open_model": "leanvit.anatomy",
    "close_model": "leanvit.anatomy",
    "compress": "leanvit.recipe",
    "reapply": "leanvit.recipe",
    "save": "leanvit.recipe",
    "load": "leanvit.recipe",
    "methods": "leanvit.recipe",
    "EViT": "leanvit.compress.tokens.evit",
    "ToMe": "leanvit.compress.tokens.tome",
    "Int8": "leanvit.compress.quantize.int8",
    "open_dataset": "leanvit.data",
    "Preprocess": "leanvit.data",
    "fit": "leanvit.training",
    "FitConfig": "leanvit.training",
    "count": "leanvit.measure",
    "compare": "leanvit.measure",
    "export": "leanvit.deploy",
    "load_artefact": "leanvit.deploy",
    "report": "leanvit.report",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Room(ModuleType):
    """A room that shares its name with a verb, like `leanvit.compress`: calling the room is the verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _House(ModuleType):
    """Python binds a subpackage to its parent when it is imported, and so would hide the verb of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _House
