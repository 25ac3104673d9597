"""Architectures that timm lacks. Importing this package registers them all with timm."""

from importlib import import_module

from leanvit.models.registry import HOMES

for _module in HOMES.values():
    import_module(_module)
