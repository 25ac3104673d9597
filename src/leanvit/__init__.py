"""leanvit makes vision transformers lean: it builds, trains, compresses, deploys and audits timm ViTs, with evidence.

Public names load on first use, so that `import leanvit` (and the command line) stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it
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
    "EViT": "leanvit.tokens.evit",
    "ToMe": "leanvit.tokens.tome",
    "DiffRate": "leanvit.tokens.diffrate",
    "SiT": "leanvit.tokens.sit",
    "STViT": "leanvit.tokens.stvit",
    "NViT": "leanvit.prune.nvit",
    "GmmMask": "leanvit.backbones.gmm_mask",
    "Int8": "leanvit.quantize.int8",
    "LGViT": "leanvit.exits.lgvit",
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
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
