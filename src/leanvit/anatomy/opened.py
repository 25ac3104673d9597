"""What everything that methods are applied to offers, a whole model or a part of one: an op set, sites, a history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from leanvit.anatomy.arithmetic.ops import TORCH, Ops
from leanvit.anatomy.parts.blocks import Step
from leanvit.anatomy.sparse import set_sparse, sparse_parameters, sparse_tensors

WIDTH = "width"  # a trait that is kept on demand: methods that change the width of the stream ask `kept_traits`


class Opened(nn.Module):
    """A module whose text runs on an op set, so that methods reach its products. `history` is set by the recipe.

    `kept_traits`: what must stay in it for the sake of the model that it is a part of (`anatomy.composite`).
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()  # public attributes that the root must reproduce
    ops: Any  # an `Ops`; one that is an nn.Module is a child
    blocks: Any  # a sequence of `Block`, in the order in which they run; empty where there are none
    exits: Any  # an `Exits`, where images may leave early; else None

    def __init__(self) -> None:
        super().__init__()
        self.ops = TORCH
        self.register_module("exits", None)
        self.history: Any = None
        self.kept_traits: frozenset[str] = frozenset()

    # --- op sets -----------------------------------------------------------------

    @property
    def precision(self) -> str | None:
        """The precision of the op set, where it is not that of the tensors' dtypes."""
        return self.ops.precision

    @property
    def float_weights(self) -> bool:
        """Whether linears are the model's own float weights."""
        return bool(self.ops.float_weights)

    def set_ops(self, ops: Ops) -> None:
        """Install an op set for every later run; one that is a module becomes part of the state dict, as `ops`."""
        del self.ops
        self.ops = ops

    @contextmanager
    def using(self, ops: Ops) -> Iterator[None]:
        """Inside, every run is on this op set."""
        before = self.ops
        self.set_ops(ops)
        try:
            yield
        finally:
            self.set_ops(before)

    # --- what methods and the recipe use -----------------------------------------

    def sites(self) -> dict[str, nn.Module]:
        """Every convolution and linear that the text runs, by site."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("ops.")
        }

    def products(self) -> list[str]:
        """Sites of products of two computed values, where the family knows them before a run."""
        return []

    def steps(self) -> Iterable[Step]:
        """Every step that methods put into the blocks."""
        for block in self.blocks:
            yield from block.steps()

    @property
    def sparse(self) -> tuple[str, ...]:
        """Names of the parameters whose exact zeros are pruned weights, as in `named_parameters()`, sorted.

        A method that zeroes sets them in `shape`: `model.sparse = (*model.sparse, ...)`; raises `BadInput` for a name
        that is none. Training keeps these zeros, counting and storage leave them out. A model of parts has those of its
        parts, with their prefixes.
        """
        return tuple(sparse_parameters(self))

    @sparse.setter
    def sparse(self, names: Iterable[str]) -> None:
        set_sparse(self, names)

    @property
    def whole_weights(self) -> bool:
        """Whether none of its weights were pruned to zeros, those that are kept as integers included."""
        return not sparse_tensors(self)

    def lost_traits(self) -> list[str]:
        """Traits that must be kept and that it does not have."""
        return sorted(self.kept_traits - self.traits() - {WIDTH}) if self.kept_traits else []

    def traits(self) -> frozenset[str]:
        """What it offers to the next method (see `recipe/compat.py`)."""
        has = {"float": self.float_weights, "whole_weights": self.whole_weights}
        return frozenset(name for name, true in has.items() if true)

    @contextmanager
    def whole_depth(self) -> Iterator[None]:
        """Inside, no image leaves early; the heads of exits run nevertheless."""
        policy = None if self.exits is None else self.exits.policy
        rule = getattr(policy, "rule", None)
        try:
            if policy is not None:
                policy.rule = None
            yield
        finally:
            if policy is not None:
                policy.rule = rule

    @contextmanager
    def without_exits(self) -> Iterator[None]:
        """Inside, the model has no exits: what methods before them ask about is the model that they made."""
        exits, self.exits = self.exits, None
        try:
            yield
        finally:
            self.exits = exits

    def make(self) -> dict[str, Any]:
        """Everything that its root must reproduce, except values."""
        made: dict[str, Any] = {k: tuple(v.shape) for k, v in self.state_dict().items()}
        made |= {key: getattr(self, key) for key in self.SETTINGS}
        for name, module in self.named_modules():
            if not list(module.children()) and not name.startswith("ops"):
                made[f"{name} (layer)"] = repr(module)
        for block in self.blocks:
            for attn in block.attentions():
                made[attn.name] = (attn.heads, attn.qk_dim, attn.v_dim, attn.scale)
        return made
