"""The kinds of papers: what each gives, the verb that uses it, the protocol of its class, and the test that holds it.

A card names one or several (`kinds = ["compress", "build"]`); tables list a paper under its first. Light to import.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a kind of paper is."""

    name: str
    gives: str  # in words
    verb: str  # of the command line that uses it
    contract: str  # under tests/contract: checks every paper of this kind
    protocol: str = ""  # "module:class" of what its registered class offers; "": it registers none
    steps: tuple[str, ...] = ()  # of the protocol: the class has one of them at least

    @property
    def is_method(self) -> bool:
        """Whether a class is registered, to be applied to a model."""
        return bool(self.protocol)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "compress",
            "a method that makes a trained model leaner",
            verb="compress",
            contract="test_compress.py",
            protocol="leanvit.recipe.protocol:Method",
            steps=("shape",),
        ),
        Kind(
            "train",
            "a way to train: parts that are trained with the model, an objective, callbacks",
            verb="train",
            contract="test_train.py",
            protocol="leanvit.recipe.protocol:TrainingMethod",
            steps=("shape", "objective", "callbacks"),
        ),
        Kind("build", "models, registered with timm by name", verb="train", contract="test_build.py"),
    )
}


def is_method(kinds: Iterable[str]) -> bool:
    """Whether something of these kinds is applied to a model; else it is an architecture."""
    return any(KINDS[kind].is_method for kind in kinds)


def steps_asked(kinds: Iterable[str]) -> list[tuple[str, ...]]:
    """Of each kind, the steps of which a registered class has one at least."""
    return [KINDS[kind].steps for kind in kinds if KINDS[kind].is_method]
