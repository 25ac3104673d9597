"""Data: datasets with stable keys, preprocessing through timm, keyed randomness, loaders, and fit of model to data.

Public names load on first use, so that importing this package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {  # public name -> module of this package that defines it
    "AnyDataset": "stream",
    "Augment": "augment",
    "BadImage": "decode",
    "Batch": "loading",
    "Boxes": "fields",
    "Clips": "fields",
    "Dataset": "dataset",
    "Depths": "fields",
    "Field": "fields",
    "Loader": "loading",
    "Masks": "fields",
    "Preprocess": "preprocess",
    "Sample": "dataset",
    "Stream": "stream",
    "Texts": "fields",
    "UnreadableImage": "decode",
    "Values": "fields",
    "adapted_kwargs": "fitting",
    "Matched": "classes",
    "check_fits": "fitting",
    "epoch_length": "loading",
    "for_model": "matching",
    "loader": "loading",
    "match_classes": "classes",
    "matched_with": "matching",
    "open_dataset": "sources",
    "require_labels": "dataset",
}
__all__ = [*_HOME, "keyed"]


def __getattr__(name: str) -> Any:
    if name == "keyed":
        return import_module("leanvit.data.keyed")
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit.data' has no attribute {name!r}")
    return getattr(import_module(f"leanvit.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
