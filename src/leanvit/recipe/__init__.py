"""Layer 1: what a method is, how methods are applied, saved, loaded and combined.

Names load on first use: the cards of papers are light, everything else brings PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from leanvit.cards import Card, known_papers, own_methods, paper, papers
from leanvit.recipe.catalogue import Reference, reference, references

_HOME = {
    "register": "registry",
    "make_method": "registry",
    "method_class": "registry",
    "knobs_of": "registry",
    "parse_with": "text",
    "split_with": "text",
    "Data": "learning",
    "Kept": "kept_units",
    "Plan": "plan",
    "Root": "roots",
    "ForeignRoot": "roots",
    "CompositeRoot": "roots",
    "compose": "composites",
    "History": "history",
    "create": "history",
    "root_of": "history",
    "replay": "history",
    "finish": "history",
    "save": "store",
    "load": "store",
    "load_run": "store",
    "Run": "store",
    "compress": "compressing",
    "apply": "compressing",
    "at_macs": "equal_macs",
    "nearest_setting": "equal_macs",
    "check_needs": "recovering",
    "check_teachers": "recovering",
    "missed": "compressing",
    "reapply": "compressing",
    "rebuilt": "rebuilding",
    "retune": "compressing",
    "trains": "compressing",
    "is_resumable": "compressing",
    "Training": "training_steps",
    "fit_to_data": "planning",
    "trainings": "planning",
    "choices": "planning",
    "clear_steps": "steps",
    "Recovery": "recovering",
    "Cell": "compat",
    "compatibility": "compat",
    "check_order": "compat",
    "check_slots": "compat",
    "TRAITS": "compat",
    "Record": "catalogue",
    "Recipe": "recipe_file",
    "load_recipe": "recipe_file",
}
__all__ = [
    "Card",
    "Reference",
    "known_papers",
    "methods",
    "own_methods",
    "paper",
    "papers",
    "reference",
    "references",
    *_HOME,
]


def methods() -> list[Card]:
    """Every method: those with a card in the order of tables, then those registered from modules of a user's own."""
    return [row for row in known_papers().values() if row.is_method]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit.recipe' has no attribute {name!r}")
    return getattr(import_module(f"leanvit.recipe.{_HOME[name]}"), name)
