"""Putting the steps and score terms of methods into a model that is open."""

from __future__ import annotations

from leanvit.anatomy.arithmetic.score import Term
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.parts.blocks import SLOTS, Step
from leanvit.errors import Refused, unknown


def insert_step(model: OpenModel, block: int, slot: str, step: Step, *, first: bool = False) -> None:
    """Put a step into a slot of a block, behind those that are there, in the model's mode (training or not).

    Args:
        block: its number, from 0. slot: one of `SLOTS`.
        first: before the steps that are there.

    Raises:
        BadInput: the model has no such block, or blocks no such slot.
        Refused: the slot holds a step of the same method.
    """
    if slot not in SLOTS:
        raise unknown("slot", slot, SLOTS)
    found = model.block(block)
    steps = getattr(found, slot)
    if step.source and any(other.source == step.source for other in steps):
        raise Refused(f"{found.name} already reduces tokens by {step.source}: give it other blocks")
    steps.insert(0 if first else len(steps), step.train(model.training))


def add_term(model: OpenModel, term: Term) -> None:
    """Let a score term act in every attention of the blocks, after those that are there; one that is there moves."""
    for block in model.blocks:
        for attn in block.attentions():
            attn.terms = (*(other for other in attn.terms if other is not term), term)
