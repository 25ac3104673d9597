"""LGViT as a method: its knobs, and its life of learn and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.rules import Rule, RuleName, check_rule, check_threshold
from leanvit.anatomy.exits.running import ExitPolicy, Exits
from leanvit.cards import paper
from leanvit.data import AnyDataset, keyed
from leanvit.data.augment import PRESETS
from leanvit.data.dataset import Dataset
from leanvit.errors import BadInput, Refused
from leanvit.exits.calibration import Point, chosen, collect_in_units, curve, held_out, replay
from leanvit.exits.cost import dense_macs, exit_macs
from leanvit.exits.lgvit.heads import HeadKind, build_heads, check_model, parse_rows
from leanvit.exits.lgvit.losses import STRATEGIES, Weights
from leanvit.exits.lgvit.training import Stages
from leanvit.knobs import (
    DISTINCT,
    RISING,
    Choice,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Words,
    check,
    check_fields,
    knob,
)
from leanvit.recipe.learning import Data, whole_of
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.training_steps import BATCH, Training, fitting_batch, steps_of_epoch

AMPS = ("fp32", "bf16")
DEFAULTS = {"confidence": 0.865, "entropy": 0.6, "patience": 7, "patient_confident": 0.5}  # published code
SWIN_DEPTH, SWIN_EXITS = 24, (4, 7, 10, 13, 16, 19, 22, 23)  # published, of Swin-B


def last_two_thirds(depth: int) -> tuple[int, ...]:
    """Of the depth, but the end."""
    return tuple(range(max(1, depth // 3), depth))


def as_in_swin(depth: int) -> tuple[int, ...]:
    """The published places, at this depth."""
    layers = sorted({round(layer * depth / SWIN_DEPTH) for layer in SWIN_EXITS})
    return tuple(layer for layer in layers if 0 < layer < depth)


# by whether the model is hierarchical: where exits are by default, and the strides of its global heads
_PUBLISHED = {False: (last_two_thirds, (2, 3)), True: (as_in_swin, (1, 2))}


def default_heads(count: int, *, strides: tuple[int, int] = (2, 3)) -> tuple[str, ...]:
    """Local heads behind the first half, depthwise first; global ones behind the second, finer first (published)."""
    local = 2 if count == 6 else -(-count // 2)  # published: of six, two are local
    deep, coarse = -(-local // 2), (count - local) // 2
    fine = count - local - coarse
    names = [("lph_dw", deep), ("lph_pw", local - deep), (f"gah{strides[0]}", fine), (f"gah{strides[1]}", coarse)]
    return tuple(name for name, times in names for _ in range(times))


@dataclass(frozen=True)
class _Exit:
    layer: Count
    head: HeadKind


@dataclass(frozen=True)
class _Rule:
    rule: RuleName
    thresholds: tuple[float, ...]
    patience: Count


@dataclass(frozen=True)
class _Point:
    threshold: float
    top1: Fraction
    macs: Positive
    mean_layer: float
    shares: tuple[Fraction, ...]


@dataclass(frozen=True)
class _Expected(_Point):
    of: _Rule


@dataclass(frozen=True)
class _HeldOut:
    images: Count
    top1: Fraction


@dataclass(frozen=True)
class _Structure(_Rule):
    exits: tuple[_Exit, ...]
    macs: tuple[Index, ...]
    dense_macs: Index
    held_out: _HeldOut | None = None
    curve: tuple[_Point, ...] | None = None
    expected: _Expected | None = None

    def __post_init__(self) -> None:
        check("layer of exits", [row.layer for row in self.exits], Annotated[tuple[int, ...], DISTINCT])


_Exits = Annotated[
    tuple[Count, ...], RISING, Words("a list of blocks passed before each exit, from 1, each more than the last")
]


@method("lgvit")
@dataclass(frozen=True)
class LGViT:
    """Knobs of the method."""

    exits: _Exits | None = knob(
        None, "blocks passed before each exit; null: the last two thirds but the end", example=(4, 6, 8, 10)
    )
    heads: tuple[HeadKind, ...] | None = knob(
        None, "one an exit; null: the published order", example=("lph_dw", "lph_pw", "gah2", "gah3")
    )
    rule: RuleName = knob("confidence", "when an image leaves")
    threshold: float | tuple[float, ...] | None = knob(
        None, "of the rule, or one an exit; null: the published one", example=0.9
    )
    patience: Count = knob(2, "exits in a row, of patient_confident")
    speedup: Annotated[float, Ge(1)] | None = knob(
        None, "speed-up to reach, dense MACs over mean MACs: the threshold is chosen for it", example=1.5
    )
    points: Annotated[float, Ge(0), Le(100)] | None = knob(
        None, "percentage points of top-1 that may be lost: the threshold is chosen for it", example=1
    )
    held_out: Annotated[float, Ge(0), Le(0.5)] = knob(
        0.1, "share of the training images that thresholds are chosen on; nothing learns from them"
    )
    strategy: Annotated[str, Choice(STRATEGIES)] = knob("alternating_weighted", "of stage 1")
    stage1_epochs: Index = knob(0, "of backbone and heads together; 0: the backbone stays as it is")
    stage1_lr: Positive = knob(5e-5, "of stage 1; falls to 0 on a line")
    epochs: Index | None = knob(
        None, "of the heads alone (stage 2); null: 5, or what 200 steps take, up to 50", example=5
    )
    lr: Positive = knob(5e-4, "of stage 2; falls to 0 on a line")
    batch_size: Annotated[int, Ge(2)] | None = knob(
        None, "images a step; null: 64, fewer where an epoch would not have four steps of them", example=64
    )
    alpha: Fraction = knob(0.3, "weight of the teacher against the labels")
    temperature: Positive = knob(2.0, "of the teacher")
    beta_heterogeneous: NonNegative = knob(0.01, "weight of the last block's tokens against those of heads")
    beta_homogeneous: NonNegative = knob(0.01, "weight of the last head of a sort against the others of it")
    augment: Annotated[str, Choice(PRESETS)] | None = knob("light", "of the images of both stages")
    amp: Annotated[str, Choice(AMPS)] = knob("fp32", "of the forwards")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"full_grid", "float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"maps", "token_blocks"})
    export: ClassVar[str] = "segments"
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    trainable_after: ClassVar[bool] = False
    learns_from: ClassVar[tuple[str, ...]] = ("one",)
    tunable: ClassVar[tuple[str, ...]] = ("threshold", "speedup", "points", "rule", "patience")
    open_knobs: ClassVar[tuple[str, ...]] = ("epochs", "batch_size")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("heads", "threshold"):
            given = getattr(self, name)
            if self.exits is not None and isinstance(given, tuple) and len(given) != len(self.exits):
                raise BadInput(f"{name} names {len(given)} for {len(self.exits)} exits; accepted: one an exit")
        for threshold in self._thresholds():
            check_threshold(self.rule, threshold)
        targets = [name for name in ("threshold", "speedup", "points") if getattr(self, name) is not None]
        if len(targets) > 1:
            raise BadInput(f"lgvit is given {' and '.join(targets)}; accepted: one of threshold, speedup, points")
        if self.held_out == 0 and (self.speedup is not None or self.points is not None):
            raise BadInput(f"{targets[0]} is a target, and held_out is 0; accepted: above 0, to choose a threshold on")
        if self.exits == ():  # nothing is put in
            object.__setattr__(self, "needs_data", False)
            object.__setattr__(self, "trains", False)

    def _thresholds(self) -> tuple[Any, ...]:
        if self.threshold is None:
            return (DEFAULTS[self.rule],)
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    def chosen_for(self, dataset: AnyDataset) -> LGViT:
        """With a batch, and epochs of stage 2, that suit the data, unless they are given."""
        nothing = self.epochs == self.stage1_epochs == 0
        if nothing or None not in (self.epochs, self.batch_size):
            return self
        images = self._learned_from(dataset)
        batch = self.batch_size or fitting_batch(images)
        epochs = max(5, min(50, -(-200 // max(1, images // batch)))) if self.epochs is None else self.epochs
        return replace(self, batch_size=batch, epochs=epochs)

    def trainings(self, dataset: AnyDataset) -> list[Training]:
        """What `learn` trains. Raises `BadInput` where the images do not fill a batch."""
        stages = [("lgvit, backbone and heads", self.stage1_epochs), ("lgvit, heads", self.epochs or 0)]
        return [
            Training(label, epochs, epochs * self._steps_of_epoch(dataset), self.images)
            for label, epochs in stages
            if epochs and self.trains
        ]

    def _steps_of_epoch(self, dataset: AnyDataset) -> int:
        return steps_of_epoch("lgvit", self.images, self._learned_from(dataset))

    @property
    def images(self) -> int:
        """Images a step of the training."""
        return BATCH if self.batch_size is None else self.batch_size

    def _learned_from(self, dataset: AnyDataset) -> int:
        """Images that are not held out for the thresholds."""
        images = len(dataset)
        return images - (max(1, round(self.held_out * images)) if self.held_out else 0)

    # --- the life of a method --------------------------------------------------------

    def check_fits(self, model: OpenModel, data: Data | None) -> None:
        """Raise what `learn` would before its first step."""
        if whole_of(model, data) is not model:
            raise Refused("lgvit puts classifiers into a classifier, which a part of a model of parts is not")
        rows = self.rows(model)
        with torch.random.fork_rng(devices=[]):
            build_heads(model, rows)  # a head may not fit the width
        if not rows or data is None:
            return
        self._stages().check(model, self._parts(data)[0], data)

    def _stages(self) -> Stages:
        return Stages(
            strategy=self.strategy,
            stage1_epochs=self.stage1_epochs,
            stage1_lr=self.stage1_lr,
            epochs=self.epochs or 0,
            lr=self.lr,
            weights=Weights(self.alpha, self.beta_heterogeneous, self.beta_homogeneous, self.temperature),
            images=self.images,
            augment=self.augment,
            amp=self.amp,
        )

    def _parts(self, data: Data) -> tuple[AnyDataset, Dataset | None]:
        """(images to train on, images to choose thresholds on). Raises `BadInput` for data that does not suit."""
        return held_out(data.dataset, self.held_out, data.seed)

    def learn(self, model: OpenModel, data: Data) -> Structure:
        """Put heads in, train them, choose the threshold.

        Returns {"exits": [{"layer", "head"}, ...], "rule", "thresholds", "patience", "macs" (of an image that leaves at
        each exit, and at the end), "dense_macs", "held_out" (images and the end's top-1), "curve"}. The state of
        the training is in `data.out`, where there is one: a killed run goes on from there.

        Raises:
            BadInput: exits beyond the depth, several labels an image, images that cannot be held out.
            Refused: a model without such exits, a target that no threshold meets.
        """
        rows = self.rows(model)
        if not rows:
            return {"exits": [], **Rule(self.rule, (), self.patience).to_json(), "macs": [], "dense_macs": 0}
        train, apart = self._parts(data)
        with keyed.global_rng(data.seed, "lgvit", "heads"):
            _install(model, rows, None, ())
        self.chosen_for(data.dataset)._stages().train(model, train, data)
        macs, dense = exit_macs(model.eval()), dense_macs(model)
        structure: Structure = {
            "exits": [{"layer": layer, "head": kind} for layer, kind in rows],
            "macs": list(macs),
            "dense_macs": dense,
        }
        layers = (*(layer for layer, _ in rows), len(model.blocks))
        thresholds = self._thresholds()
        if apart is not None:
            seen = collect_in_units(model, apart, data)
            points = curve(seen, self.rule, self.patience, layers, macs)
            final = float((seen.final == seen.targets).double().mean())
            if self.speedup is not None or self.points is not None:
                target = {"speedup": self.speedup, "points_lost": self.points}
                thresholds = (chosen(points, dense=dense, final_top1=final, **target).threshold,)
            structure["held_out"] = {"images": len(seen), "top1": final}
            structure["curve"] = [point.to_json() for point in points]
        rule = self._rule(thresholds, len(rows))
        if apart is not None:
            structure["expected"] = {**replay(seen, rule, layers, macs).to_json(), "of": rule.to_json()}
        return {**structure, **rule.to_json()}

    def _rule(self, thresholds: Sequence[Any], exits: int) -> Rule:
        whole = self.rule == "patience"
        values = [int(t) if whole else float(t) for t in thresholds]
        return check_rule(self.rule, values * exits if len(values) == 1 else values, self.patience, exits)

    def rows(self, model: OpenModel) -> list[tuple[int, str]]:
        """(blocks passed, kind of head) of each exit of this model. Raises `BadInput`, `Refused`."""
        check_model(model)
        layers, strides = _PUBLISHED[model.hierarchical]
        exits = layers(len(model.blocks)) if self.exits is None else self.exits
        heads = default_heads(len(exits), strides=strides) if self.heads is None else self.heads
        return parse_rows(exits, heads, len(model.blocks))

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the heads in, unless `learn` has, and set the rule."""
        rows = [(row["layer"], row["head"]) for row in structure["exits"]]
        rule = check_rule(structure["rule"], structure["thresholds"], structure["patience"], len(rows))
        if not rows:
            check_model(model)
            return
        macs = tuple(structure["macs"])
        if len(macs) != len(rows) + 1:
            raise BadInput(f"the plan counts {len(macs)} costs for {len(rows)} exits and the end")
        if model.exits is None:
            _install(model, parse_rows([n for n, _ in rows], [k for _, k in rows], len(model.blocks)), rule, macs)
            return
        there = list(zip(model.exits.layers, (getattr(h, "kind", "") for h in model.exits.heads), strict=True))
        if model.exits.source != "lgvit" or there != rows:
            raise Refused(f"the model has exits of {model.exits.source} already")
        model.exits.policy.rule, model.exits.policy.macs = rule, macs

    def retune(self, model: OpenModel, was: Structure, now: Structure) -> None:
        """Another rule or other thresholds on a model that has these exits: no weight follows from them.

        Raises `Refused` where anything else differs.
        """
        free = ("rule", "thresholds", "patience")
        changed = sorted(k for k in {**was, **now} if k not in free and was.get(k) != now.get(k))
        if changed:
            raise Refused(
                f"lgvit: {', '.join(changed)} cannot be edited, the heads are trained; free: {', '.join(free)}"
            )
        self.shape(model, now)

    def tuned(self, structure: Structure, knobs: Mapping[str, Any]) -> tuple[LGViT, Structure]:
        """This method with other of its tunable knobs, and the structure that follows; no data, no training.

        A target is met on the plan's curve, that of the rule which was held against the held-out images.

        Raises `Refused` for a target without such a curve, or one that no threshold of it meets.
        """
        another_rule = knobs.get("rule", self.rule) != self.rule
        cost = paper("lgvit").knobs.cost
        forgotten = cost if another_rule or knobs.keys() & cost else ()
        new = replace(self, **{**dict.fromkeys(forgotten), **knobs})
        targeted = new.speedup is not None or new.points is not None
        thresholds = (new._on_curve(structure),) if targeted else new._thresholds()
        return new, {**structure, **new._rule(thresholds, len(structure["exits"])).to_json()}

    def _on_curve(self, structure: Structure) -> float:
        """The threshold of the plan's curve that meets the target."""
        seen = structure.get("expected", {}).get("of", {})
        if "curve" not in structure or (seen["rule"], seen["patience"]) != (self.rule, self.patience):
            held = f"rule {seen['rule']}, patience {seen['patience']}" if seen else "no rule (held_out was 0)"
            raise Refused(f"a target needs the curve of its rule, and the plan has that of {held}: give a threshold")
        points = [Point(**{**row, "shares": tuple(row["shares"])}) for row in structure["curve"]]
        target = {"speedup": self.speedup, "points_lost": self.points}
        return chosen(
            points, dense=structure["dense_macs"], final_top1=structure["held_out"]["top1"], **target
        ).threshold

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> LGViT:
        """With this target: the threshold is chosen once the heads are trained."""
        return cls(**knobs, speedup=1 / share)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """Grid and classes: costs were counted and thresholds chosen on them."""
        why = "the heads of its exits were trained for them, its costs and thresholds chosen with them"
        return {"grid": why, "classes": why} if structure["exits"] else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """The rule in use; what it gives on the held-out images, where the plan knows; worst and best case in MACs."""
        if not structure["exits"]:
            return {"exits": []}
        dense, macs = structure["dense_macs"], structure["macs"]
        found: dict[str, Any] = {
            "exits": [row["layer"] for row in structure["exits"]],
            "threshold": _one_or_all(model.exits.policy.rule.thresholds),
            "speedup_first_exit": dense / macs[0],
            "speedup_end": dense / macs[-1],
        }
        point = expected(structure)
        if point is None:
            return found
        return found | {
            "held_out_speedup_macs": dense / point["macs"],
            "held_out_depth_over_mean_exit": len(model.blocks) / point["mean_layer"],
            "held_out_points": 100 * (point["top1"] - structure["held_out"]["top1"]),
        }

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """A target that the threshold in use misses on the held-out images."""
        point = expected(structure)
        if point is None:
            return []
        ratio, lost = structure["dense_macs"] / point["macs"], 100 * (structure["held_out"]["top1"] - point["top1"])
        if self.speedup is not None and ratio < self.speedup * 0.999:
            return [f"speedup {self.speedup:g} was requested, {ratio:.2f} on the held-out images"]
        if self.points is not None and lost > self.points + 1e-6:
            return [f"{self.points:g} points may be lost, {lost:.2f} are on the held-out images"]
        return []


def expected(structure: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the plan's rule gives on the held-out images: as it was found, or, after an edit, the nearest of the curve.

    None where the plan does not know.
    """
    found = structure.get("expected")
    rule = {name: structure[name] for name in ("rule", "thresholds", "patience")}
    if found is None or found["of"] == rule:
        return found
    same = {**found["of"], "thresholds": rule["thresholds"]} == rule
    if not same or len(set(rule["thresholds"])) != 1:
        return None
    return min(structure["curve"], key=lambda row: abs(row["threshold"] - rule["thresholds"][0]))


def _install(model: OpenModel, rows: Sequence[tuple[int, str]], rule: Rule | None, macs: Sequence[int]) -> None:
    model.keep_all_patches()  # local heads stand on the whole grid
    policy = ExitPolicy([layer for layer, _ in rows], len(model.blocks), rule, macs)
    model.exits = Exits(build_heads(model, rows), policy, source="lgvit").train(model.training)


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)
