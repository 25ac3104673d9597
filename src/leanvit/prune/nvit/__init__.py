"""NViT, arXiv 2110.04869: the method is in `method.py`, its parts beside it."""

from leanvit.prune.nvit.method import NViT

__all__ = ["NViT"]
