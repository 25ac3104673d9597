"""Token slimming: few tokens, each a learned weighted mean of all patch tokens (SiT, arXiv 2111.12624, section 3.2).

One text for the step that the method puts into opened models and for models that are built with it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.parts.blocks import Step
from leanvit.anatomy.parts.tokens import moved_owner
from leanvit.anatomy.state import State
from leanvit.errors import Refused


class TokenSlimming(Step):
    """Token slimming module (TSM): n patch tokens in, `slots` tokens out, prefix tokens past it.

    Weights come of the normed tokens, (B, n, slots) = fc2(GELU(fc1(norm(x)))), times a learned scalar, through a
    softmax over the n tokens; the slots are the weighted means of the tokens themselves, not of the normed ones.

    It takes any n and always gives `slots` tokens, also more than n. A slot has no position in the grid.

    Args:
        name: path of the module in its model: sites are named by it.
        width: channels of a token.
        hidden: width between the two linears.
    """

    reduces: ClassVar[bool] = True
    blends: ClassVar[bool] = True
    source: ClassVar[str] = "sit"

    def __init__(self, name: str, *, width: int, slots: int, hidden: int) -> None:
        super().__init__()
        self.name, self.slots = name, slots
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, slots)
        self.scale = nn.Parameter(torch.ones(1, 1, 1))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Published initial values: linears from a normal of width 0.02 cut at +-2, biases 0, scale 1.

        `generator` is of the CPU; None: the global one.
        """
        self.norm.reset_parameters()
        self.scale.fill_(1.0)
        for linear in (self.fc1, self.fc2):
            reset_linear(linear, generator)

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        """(B, prefix + n, C) -> (B, prefix + slots, C)."""
        if state.positional:
            raise Refused(
                f"{self.name}: slots have no position in the grid, but blocks behind them read where tokens are"
            )
        tokens = state.ops.shape(x)[1]
        x, weights = self.slim(state.ops, x, state.num_prefix)
        state = state.tapped(f"{self.name}.weights", weights).with_(size=None)  # slots count alike in a mean
        if not state.trace:
            return x, state
        owner = moved_owner(state.owners(*_like(weights)), _heaviest(weights, tokens, state.num_prefix))
        return x, state.with_(owner=owner).tapped(f"{self.name}.owner", owner)

    def slim(self, ops: Ops, x: Any, prefix: int) -> tuple[Any, Any]:
        """The tokens behind it, and the weights (B, slots, n), whose rows sum to 1."""
        at = self.name
        patches = ops.rearrange(f"{at}.patches", x, lambda t: t[:, prefix:]) if prefix else x
        hidden = ops.linear(f"{at}.fc1", self.fc1, ops.norm(f"{at}.norm", self.norm, patches))
        scores = ops.linear(f"{at}.fc2", self.fc2, ops.act(f"{at}.act", self.act, hidden))  # (B, n, slots)
        scores = ops.mul(f"{at}.scaled", scores, self.scale)
        weights = ops.softmax(f"{at}.softmax", ops.rearrange(f"{at}.turn", scores, lambda t: t.transpose(1, 2)))
        slots = ops.mix(f"{at}.mix", patches, lambda t: weights @ t)
        if not prefix:
            return slots, weights
        front = ops.rearrange(f"{at}.prefix", x, lambda t: t[:, :prefix])
        return ops.cat(f"{at}.cat", [front, slots]), weights


def reset_linear(linear: nn.Linear, generator: torch.Generator | None = None) -> None:
    """Weight from a normal of width 0.02 cut at +-2, drawn on the CPU, and bias 0, in place."""
    drawn = torch.empty(linear.weight.shape)
    nn.init.trunc_normal_(drawn, std=0.02, generator=generator)
    linear.weight.copy_(drawn)
    nn.init.zeros_(linear.bias)


def _heaviest(weights: Tensor, tokens: int, prefix: int) -> Tensor:
    """(B, tokens) int64: the slot that weighs each token most. Every slot holds a share of every patch: this is a map
    to look at, no more."""
    front = torch.arange(prefix, device=weights.device).expand(weights.shape[0], -1)
    indices = torch.cat([front, prefix + weights.argmax(dim=1)], dim=1)
    assert indices.shape[1] == tokens
    return indices


def _like(weights: Tensor) -> tuple[int, torch.device]:
    return weights.shape[0], weights.device
