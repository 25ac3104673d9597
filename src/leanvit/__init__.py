"""leanvit makes vision transformers lean: it builds, trains, compresses, deploys and audits timm ViTs, with evidence.

Public names load on first use, so that `import leanvit` (and the command line) stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it; those of papers are in their cards
    "open_model": "leanvit.anatomy",
    "close_model": "leanvit.anatomy",
    "compress": "leanvit.recipe",
    "reapply": "leanvit.recipe",
    "retune": "leanvit.recipe",
    "save": "leanvit.recipe",
    "load": "leanvit.recipe",
    "methods": "leanvit.recipe",
    "Data": "leanvit.recipe",
    "Root": "leanvit.recipe",
    "compose": "leanvit.recipe",
    "open_dataset": "leanvit.data",
    "Preprocess": "leanvit.data",
    "fit": "leanvit.training",
    "FitConfig": "leanvit.training",
    "train": "leanvit.verbs",
    "predict": "leanvit.verbs",
    "count": "leanvit.measure",
    "compare": "leanvit.measure",
    "LatencyTable": "leanvit.measure",
    "latencies": "leanvit.deploy",
    "export": "leanvit.deploy",
    "load_artefact": "leanvit.deploy",
    "write_report": "leanvit.report",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__all__":
        return [*_HOME, *_of_papers(), "__version__"]
    if not name.startswith("_") and name in _of_papers():
        return getattr(import_module(_of_papers()[name]), name)
    raise AttributeError(f"module 'leanvit' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted([*_HOME, *_of_papers(), "__version__"])


def _of_papers() -> dict[str, str]:
    from leanvit.cards import public_names

    return public_names()
