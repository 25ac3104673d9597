"""Temporary experts by a callback, as expert averaging has them: put in, drawn together, taken out."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Experts(nn.Module):
    """Copies of an MLP that take the tokens in turn; in eval mode their average, as one MLP."""

    def __init__(self, mlp: nn.Module, count: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts])
        if not self.training:
            return outputs.mean(dim=0)
        turns = torch.arange(x.shape[1]) % len(self.experts)
        return outputs[turns, :, torch.arange(x.shape[1])].transpose(0, 1)

    @torch.no_grad()
    def draw_together(self, rate: float) -> None:
        for weights in zip(*(expert.parameters() for expert in self.experts), strict=True):
            mean = sum(weights) / len(weights)
            for weight in weights:
                weight.lerp_(mean, rate)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        mlp = copy.deepcopy(self.experts[0])
        for target, *weights in zip(mlp.parameters(), *(expert.parameters() for expert in self.experts), strict=True):
            target.copy_(sum(weights) / len(weights))
        return mlp


class Averaging(nn.Module):
    """The callback. It counts its steps and draws a number at `prepare`, both in its saved state."""

    steps: torch.Tensor
    drawn: torch.Tensor

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    def prepare(self, model):
        self.drawn.copy_(torch.rand(()))
        for block in model.blocks:
            block.mlp = Experts(block.mlp)

    def after_step(self, run):
        self.steps += 1
        for module in run.model.modules():
            if isinstance(module, Experts):
                module.draw_together(self.rate * min(1.0, float(self.steps) / 10))

    def deploy(self, model):
        for block in model.blocks:
            if isinstance(block.mlp, Experts):
                block.mlp = block.mlp.merged()
