"""Architectures that timm lacks. Importing this package registers them all with timm."""

from importlib import import_module

from leanvit.builders import MODULES

for _module in MODULES:
    import_module(f"{__name__}.{_module}")
