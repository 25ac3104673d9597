"""Iterative pruning inside `fit`: an objective that scores units after each step and closes the worst ones.

It is its own callback. All that it decides from is in its buffers, which are saved with the run: a killed run resumes
with the same gates, averages and counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.data import Batch, Preprocess
from leanvit.data.fields import LABEL
from leanvit.prune.nvit.groups import all_open, due
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.saliency import scores, smoothed
from leanvit.prune.nvit.target import Target, pruning_step, reach
from leanvit.tasks import Task
from leanvit.training import Loss, Objective, Run

MEASURED_TOLERANCE = 0.05  # of a measured latency against its target
ROUNDS = 3  # of measuring and correcting the prediction at the end
Measure = Callable[[Tensor], float]  # gates -> measured seconds of the cut model over the dense one's


@dataclass(frozen=True)
class PruningSchedule:
    """How pruning goes: optimiser steps between pruning steps and in all, groups a step, the loss."""

    interval: int
    max_steps: int
    per_step: int
    distillation: float
    temperature: float


class GlobalPruning(Objective):
    """Task loss first; from the first pruning step on also the divergence from the dense teacher, in eval mode.

    L = task + w KL(softmax(Z_t / T) || softmax(Z_s / T)), the divergence averaged over images and classes as published
    (arXiv 2110.04869, official code: w = 1e5, T = 3), on the mean of both heads where there are two.
    """

    gates: Tensor  # (total,) bool
    sums: Tensor  # (total,) scores since the last pruning step
    average: Tensor  # (total,) across pruning steps
    counters: Tensor  # (3,) int64: batches since the last pruning step, pruning steps, 1 once the target is met
    corrections: Tensor  # (2,) float32: measured over predicted latency, last measured ratio (0: not yet)

    def __init__(
        self,
        target: Target,
        schedule: PruningSchedule,
        *,
        teacher: nn.Module,
        preprocess: Preprocess,
        task: Task,
        divisor: Mapping[str, float],
        measure: Measure | None = None,
        part: str = "",
    ) -> None:
        """`task`: what outputs mean. `part`: what is pruned of the model that is trained, where it is a part of it."""
        super().__init__()
        self.task, self.part = task, part
        self.needs_labels = LABEL in task.reads
        self.target, self.schedule, self.divisor, self.measure = target, schedule, dict(divisor), measure
        self.base = task.objective()
        self.teaching: Any = task.distillation(teacher, preprocess=preprocess, temperature=schedule.temperature)
        total = target.units.total
        self.register_buffer("gates", all_open(target.units))
        self.register_buffer("sums", torch.zeros(total))
        self.register_buffer("average", torch.zeros(total))
        self.register_buffer("counters", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("corrections", torch.tensor([1.0, 0.0]))

    def extra_repr(self) -> str:
        """What a run to resume must have alike."""
        t = self.target
        return f"{t.kind}={t.ratio}, eta={t.eta}, groups={t.sizes}, units={t.units.dims()}, {self.schedule}"

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        self.teaching.bind(model, preprocess)

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        return self.task.terms(batch)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        outputs = self.task.run(model, batch.images, **context)
        task = self.task.loss(outputs, batch)
        if not self.pruning_steps:
            return Loss(task)
        apart = self.divergence(outputs, self.teaching.ask_teacher(batch.images), batch)
        return Loss(task + self.schedule.distillation * apart, {"task": task.detach(), "divergence": apart.detach()})

    def divergence(self, outputs: Any, taught: Any, batch: Batch) -> Tensor:
        """KL at temperature T, averaged over images and classes; no factor T²."""
        temperature = self.schedule.temperature
        apart = self.task.divergence(outputs, taught, batch, temperature=temperature) / temperature**2
        return apart / spread if (spread := self.task.spread(outputs)) > 1 else apart

    @property
    def pruning_steps(self) -> int:
        return int(self.counters[1])

    @property
    def done(self) -> bool:
        return bool(self.counters[2])

    # --- as a callback ---------------------------------------------------------------

    def before_forward(self, run: Run) -> None:
        """From the first pruning step on the student stays in eval mode (published: no drop path)."""
        if self.pruning_steps:
            run.model.eval()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Score (updated weights x gradient of the batch just used), keep closed units closed, prune when due."""
        pruned = run.model.get_submodule(self.part)
        weights = dict(pruned.named_parameters())
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        new = scores(self.target.units, weights, gradients, self._divisor(run))
        self.sums += new.to(self.sums)
        self.counters[0] += 1
        if self.counters[0] >= self.schedule.interval or run.step >= self.schedule.max_steps:
            self._prune(run)
        close_units(self.target.units, {**dict(pruned.named_buffers()), **weights}, self.gates)
        if self.done:
            run.stop()

    def _divisor(self, run: Run) -> dict[str, float]:
        """Gradients were clipped by a factor: sums are divided by it, so that scores are of the loss itself."""
        return {kind: value * run.grad_factor for kind, value in self.divisor.items()}

    def _prune(self, run: Run) -> None:
        steps = self.pruning_steps
        new = self.sums / self.counters[0] * self.gates
        self.average.copy_(smoothed(self.average, new, steps))
        last = run.step + self.schedule.interval > self.schedule.max_steps
        count = self.target.units.total if last else due(steps, self.schedule.per_step, self.target.units.total)
        gates, met = pruning_step(self.target, self.average, self.gates.cpu(), count, self._goal)
        if self.measure is not None:
            gates, met = self._measured(gates, met)
        self.gates.copy_(gates)
        self.counters[2] = int(met or last)
        self.counters[1] += 1
        self.counters[0] = 0
        self.sums.zero_()

    # --- measured latency ------------------------------------------------------------

    @property
    def _goal(self) -> float:
        """The predicted ratio to reach, so that the measured one is what was asked for."""
        return self.target.ratio / float(self.corrections[0])

    def _measured(self, gates: Tensor, met: bool) -> tuple[Tensor, bool]:
        """Hold the prediction against the clock: once half-way, and at the end until the target is met."""
        half_way = self.target.reached(gates) < (1 + self._goal) / 2
        if not met:
            if half_way and not self.corrections[1]:
                self._correct(gates)
            return gates, False
        for left in reversed(range(ROUNDS)):
            off = self._correct(gates) / self.target.ratio - 1
            if abs(off) <= MEASURED_TOLERANCE or not left:
                break
            start = self.gates.cpu()
            gates = reach(self.target, self.target.lowered(self.average, start), start, self._goal)
        return gates, True

    def _correct(self, gates: Tensor) -> float:
        """Measure the cut model; returns its ratio."""
        assert self.measure is not None
        ratio = self.measure(gates)
        self.corrections.copy_(torch.tensor([ratio / self.target.reached(gates), ratio]))
        return ratio
