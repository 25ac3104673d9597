"""NViT as a method: its knobs, and its life of learn and shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import MinLen
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.surgery.norms import statistics
from leanvit.data import AnyDataset
from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, Index, NonNegative, Positive, Share, Words, check_fields, knob
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.prune.nvit.cost import Figure, Macs, Parameters, Seconds, widths_of
from leanvit.prune.nvit.groups import GROUP_SIZES, all_open, clamped
from leanvit.prune.nvit.loop import MEASURED_TOLERANCE, GlobalPruning, Measure, PruningSchedule
from leanvit.prune.nvit.saliency import divisors
from leanvit.prune.nvit.structure import from_text, move_weights, set_widths, structure_of
from leanvit.prune.nvit.target import TOLERANCE, Target, check_reachable, pace
from leanvit.prune.nvit.timing import RUNTIMES, measured_ratio, open_table
from leanvit.prune.nvit.units import KINDS, Layout, layout
from leanvit.recipe.learning import Data, whole_of
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.training_steps import BATCH, Training, steps_for, steps_of_epoch

TARGETS = ("latency", "macs", "params")
NORMS = ("plain", "exact")
AMPS = ("fp32", "bf16")


@dataclass(frozen=True)
class _Kept:
    before: Count
    after: Count
    kept: str

    def __post_init__(self) -> None:
        kept = len(from_text(self.kept, self.before, "it"))
        if kept != self.after:
            raise BadInput(f"after is {self.after}, and kept names {kept} units")


@dataclass(frozen=True)
class _Block:
    head: _Kept | None
    qk: _Kept | None
    v: _Kept | None
    mlp: _Kept | None


@dataclass(frozen=True)
class _Widths:
    embed: Count
    heads: Count
    qk: Count
    v: Count
    mlp: Count


@dataclass(frozen=True)
class _Dense:
    macs: Count
    params: Count
    widths: tuple[_Widths, ...]


@dataclass(frozen=True)
class _Reached:
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    pruning_steps: Index | None = None
    measured: float | None = None
    runtime: str = ""
    table: str = ""
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Structure:
    embed: _Kept | None
    blocks: tuple[_Block, ...]
    emb_norm: Annotated[str, Choice(NORMS)]
    dense: _Dense | None = None
    reached: _Reached | None = None


_Kinds = Annotated[tuple[Annotated[str, Choice(KINDS)], ...], MinLen(1), Words(f"a list of some of {', '.join(KINDS)}")]


@method("nvit")
@dataclass(frozen=True)
class NViT:
    """Knobs of the method: one of `latency`, `macs`, `params`, and how to get there. Groups, eta and loss are the
    paper's by default; its interval is 100 batches of 512 images."""

    latency: Share | None = knob(None, "share of the dense model's that is left, measured", example=0.6)
    macs: Share | None = knob(None, "share of the dense model's that is left", example=0.5)
    params: Share | None = knob(None, "share of the dense model's that is left", example=0.5)
    kinds: _Kinds | None = knob(None, "units that are cut; null: all that the model allows", example=("head", "mlp"))
    embed_group: Count = knob(16, "units in a group, made smaller where a list would not have two groups")
    head_group: Count = knob(2, "likewise")
    qk_group: Count = knob(8, "likewise")
    v_group: Count = knob(8, "likewise")
    mlp_group: Count = knob(16, "likewise")
    eta: NonNegative = knob(5e-4, "what a gain of the whole dense model weighs against saliency")
    emb_norm: Annotated[str, Choice(NORMS)] = knob(
        "plain", "norms over cut channels: plain, or exact: as if the channels were there, at zero"
    )
    runtime: Annotated[str, Choice(RUNTIMES)] = knob("torch", "of latency")
    batch: Count = knob(8, "images a call, of latency")
    table: str | None = knob(
        None, "file of a latency table; null: one is measured", example="runs/dense/latencies.json"
    )
    interval: Count = knob(20, "optimiser steps between pruning steps")
    max_steps: Count | None = knob(
        None,
        "optimiser steps at most: the last pruning step goes all the way; null: 30 passes over the images, but at "
        "least 10 pruning steps and at most 1000 steps",
        example=500,
    )
    prune_per_step: Count | None = knob(None, "groups; null: so that the target is met towards max_steps", example=50)
    lr: Positive = knob(1e-4, "of the training between pruning steps")
    batch_size: Count | None = knob(None, "images a step; null: 64, or as many as there are", example=64)
    weight_decay: NonNegative = knob(0.05, "of the training")
    distillation: NonNegative = knob(1e5, "weight of the divergence from the dense model")
    temperature: Positive = knob(3.0, "of the distillation")
    amp: Annotated[str, Choice(AMPS)] = knob("fp32", "of the forwards; bf16 is quicker where the processor has it")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "token_blocks", "whole_weights"})
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    open_knobs: ClassVar[tuple[str, ...]] = ("max_steps", "batch_size")

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput(f"nvit is given {' and '.join(given) or 'no target'}; accepted: one of {', '.join(TARGETS)}")
        if self.table is not None and self.latency is None:
            raise BadInput(f"table is {self.table!r}, which goes with a target in latency; {self.target[0]} is given")
        if self.max_steps is not None and self.max_steps < self.interval:
            raise BadInput(f"max_steps is {self.max_steps}; accepted: {self.interval} (interval) or more")

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> NViT:
        """With this target: the widths are found while it learns."""
        return cls(**knobs, macs=share)

    @property
    def target(self) -> tuple[str, Any]:
        """The target: its name and its share of the dense model's figure."""
        return next((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None)

    def chosen_for(self, dataset: AnyDataset) -> NViT:
        """With a batch and steps that suit the data, unless they are given; steps are a multiple of the interval."""
        if self.target[1] == 1 or None not in (self.max_steps, self.batch_size):
            return self
        batch = self.batch_size or max(1, min(BATCH, len(dataset)))
        steps = steps_for(len(dataset), batch, passes=30, least=10 * self.interval, most=1000)
        return replace(self, batch_size=batch, max_steps=self.max_steps or steps // self.interval * self.interval)

    def trainings(self, dataset: AnyDataset) -> list[Training]:
        """What `learn` trains. Raises `BadInput` where the images do not fill a batch."""
        if self.target[1] == 1:
            return []
        epoch = steps_of_epoch("nvit", self._images, len(dataset))
        return [Training("nvit", -(-self._steps // epoch), self._steps, self._images, at_most=True)]

    @property
    def _steps(self) -> int:
        assert self.max_steps is not None, "chosen_for(dataset) comes first"
        return self.max_steps

    @property
    def _images(self) -> int:
        return BATCH if self.batch_size is None else self.batch_size

    # --- the life of a method --------------------------------------------------------

    def check_fits(self, model: OpenModel, data: Data | None) -> None:
        """Raise what `learn` would, but for what takes a latency table to know."""
        units = layout(model, self.kinds)
        if self.emb_norm == "exact":
            for block in model.blocks:
                statistics(block.norm1)
        if self.target[1] == 1:
            return
        _check_trainable(model, units)
        if self.latency is None:
            check_reachable(self._target(model, units, None))
        if data is not None:
            data.task_of(whole_of(model, data)).check_distillation("soft")  # from the first pruning step on
            data.steps_per_epoch(model, **self._numbers())

    def learn(self, model: OpenModel, data: Data) -> Structure:
        """Train and prune until the target is met, in place. Returns units kept, figures, widths before.

        The state of the training is in `data.out`, where there is one: a killed run goes on from there.

        Raises:
            BadInput: weights that units are scored by are frozen; a table that does not cover the model's widths.
            Refused: a model that cannot be cut, a kind that it does not allow, or a target that it cannot reach.
        """
        if self.target[1] != 1 and None in (self.max_steps, self.batch_size):
            return self.chosen_for(data.dataset).learn(model, data)
        units = layout(model, self.kinds)
        if self.emb_norm == "exact":
            for block in model.blocks:
                statistics(block.norm1)
        dense = _described(model)
        if self.target[1] == 1:
            return self._structure(units, all_open(units), dense, {})
        _check_trainable(model, units)
        folder = None if data.out is None else Path(data.out)
        table = None
        if self.latency is not None:
            table = open_table(self.table, model, runtime=self.runtime, batch=self.batch, folder=folder)
        target = self._target(model, units, table)
        check_reachable(target)
        pruning = self._train(model, target, data)
        gates = pruning.gates.cpu()
        return self._structure(units, gates, dense, self._figures(target, pruning, gates, table))

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Give the blocks, and the stream, the widths of the structure."""
        set_widths(model, structure)

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """Move in what is left of the weights."""
        move_weights(model, structure, before)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """Nothing: widths go to any grid. The figures that it reached stay those of the model that it cut."""
        return {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """Target, figures counted on the model, widths per block before and after."""
        name, ratio = self.target
        dense, now = structure["dense"], _described(model)
        found = {"target": f"{name} {ratio:g}", **{key: now[key] / dense[key] for key in ("macs", "params")}}
        if "measured" in structure["reached"]:
            found |= {"latency": structure["reached"]["measured"], "runtime": self.runtime}
        return {**found, "widths": _in_words(dense["widths"], now["widths"])}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """The target, in words, where the model misses it."""
        name, ratio = self.target
        if name == "latency":
            measured = structure["reached"].get("measured", ratio)
            off = abs(measured / ratio - 1) > MEASURED_TOLERANCE
            return [f"latency {ratio:g} was requested, {measured:.3f} measured"] if off else []
        reached = _described(model)[name] / structure["dense"][name]
        return [f"{name} {ratio:g} was requested, {reached:.3f} reached"] if reached > ratio * (1 + TOLERANCE) else []

    # --- parts of learn --------------------------------------------------------------

    def _target(self, model: OpenModel, units: Layout, table: Any) -> Target:
        sizes = clamped({kind: getattr(self, f"{kind}_group") for kind in GROUP_SIZES}, units)
        name, ratio = self.target
        if table is not None:
            seconds = Seconds.of(model, table)
            return Target(name, float(ratio), seconds, units, sizes, self.eta, seconds.least(units))
        figure: Figure = Macs.of(model) if name == "macs" else Parameters.of(model)
        return Target(name, float(ratio), figure, units, sizes, self.eta)

    def _numbers(self) -> dict[str, Any]:
        """Of the training."""
        numbers: dict[str, Any] = {"lr": self.lr, "min_lr": 0.0, "schedule": "constant"}
        numbers |= {"weight_decay": self.weight_decay, "batch_size": self._images, "amp": self.amp}
        return numbers | {"save_every": self.interval}

    def _train(self, model: OpenModel, target: Target, data: Data) -> GlobalPruning:
        objective = self._objective(model, target, data)
        data.fit(model, objective, steps=self._steps, callbacks=[objective], **self._numbers())
        return objective

    def _objective(self, model: OpenModel, target: Target, data: Data) -> GlobalPruning:
        per_step = self.prune_per_step or pace(target, self._steps // self.interval)
        measure: Measure | None = None
        if self.latency is not None:
            measure = measured_ratio(
                model, target.units, emb_norm=self.emb_norm, runtime=self.runtime, batch=self.batch, data=data
            )
        return GlobalPruning(
            target,
            PruningSchedule(self.interval, self._steps, per_step, self.distillation, self.temperature),
            teacher=copy.deepcopy(whole_of(model, data)) if data.teacher is None else data.teacher,
            preprocess=data.preprocess,
            task=data.task_of(whole_of(model, data)),
            divisor=divisors(len(model.blocks)),
            measure=measure,
            part=data.part if data.whole is not None else "",
        )

    def _figures(self, target: Target, pruning: GlobalPruning, gates: Tensor, table: Any) -> dict[str, Any]:
        reached: dict[str, Any] = {target.kind: target.reached(gates), "pruning_steps": pruning.pruning_steps}
        if table is None:
            return reached
        measured_with = {"table": getattr(table, "fingerprint", ""), "provenance": getattr(table, "provenance", {})}
        return {**reached, "measured": float(pruning.corrections[1]), "runtime": self.runtime, **measured_with}

    def _structure(self, units: Layout, gates: Tensor, dense: Mapping[str, Any], reached: dict[str, Any]) -> Structure:
        structure = structure_of(units, gates, emb_norm=self.emb_norm)
        return {**structure, "dense": dict(dense), "reached": reached}


def _described(model: OpenModel) -> dict[str, Any]:
    """MACs, parameters and widths, counted on the model."""
    macs = count(model, model.input_size()).macs
    return {"macs": macs, "params": parameters(model), "widths": widths_of(model)}


def _in_words(before: list[dict[str, int]], after: list[dict[str, int]]) -> list[str]:
    """For each block what changed: "embed 192 -> 160, heads 3, qk 64 -> 40, v 64, mlp 768 -> 301"."""

    def changed(key: str, old: int, new: int) -> str:
        return f"{key} {old}" if old == new else f"{key} {old} -> {new}"

    return [", ".join(changed(key, old[key], new[key]) for key in old) for old, new in zip(before, after, strict=True)]


def _check_trainable(model: OpenModel, units: Layout) -> None:
    named = dict(model.named_parameters())
    for u in units.lists:
        scored = {p.tensor for p in units.parts if u.name in p.axes and u.kind in p.scored}
        if not any(named[name].requires_grad for name in scored):
            raise BadInput(
                f"no gradient reaches the units {u.name}: {', '.join(sorted(scored)[:3])} are frozen "
                "(requires_grad is False); thaw them, or leave this kind out of kinds"
            )
