"""Architectures that timm lacks. Importing this package registers all models of papers with timm."""

from importlib import import_module

from leanvit.cards import models

for _module in dict.fromkeys(card.module for card in models().values()):
    import_module(_module)
