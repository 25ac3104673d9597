"""Models that leanvit builds itself: registered with timm by the module that has them, when one is first named."""

from __future__ import annotations

from importlib import import_module

import timm

from leanvit.errors import unknown

BUILDERS = {"revit_tiny": "leanvit.backbones.revit", "revit_small": "leanvit.backbones.revit"}  # name -> module


def require_model(name: str, *, kind: str = "timm model") -> None:
    """Raise `BadInput`, with the nearest names, unless timm or leanvit can build a model of this name."""
    base = name.split(".")[0]
    if base in BUILDERS:
        import_module(BUILDERS[base])
    if not timm.is_model(base):
        raise unknown(kind, name, {*timm.list_models(), *BUILDERS})
