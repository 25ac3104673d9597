"""LGViT as a method: its knobs, and its life of learn and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator

from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.rules import Rule, check_rule, check_threshold
from leanvit.anatomy.exits.running import Exits, Leaving
from leanvit.data import AnyDataset, Augment, keyed
from leanvit.data.dataset import Dataset
from leanvit.errors import BadInput, Refused, is_number, is_whole, unknown
from leanvit.exits.calibration import Point, chosen, collect, curve, held_out, replay
from leanvit.exits.cost import dense_macs, exit_macs
from leanvit.exits.lgvit.heads import build_heads, check_kind, check_model, parse_rows
from leanvit.exits.lgvit.losses import STRATEGIES, Weights
from leanvit.exits.lgvit.training import Stages
from leanvit.recipe.course import BATCH, Training, fitting_batch, steps_of_epoch
from leanvit.recipe.learning import Data
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import Count, Index, Share, StructureModel, distinct

AMPS = ("fp32", "bf16")
DEFAULTS = {"confidence": 0.865, "entropy": 0.6, "patience": 7, "patient_confident": 0.5}  # published code
SWIN_DEPTH, SWIN_EXITS = 24, (4, 7, 10, 13, 16, 19, 22, 23)  # published, of Swin-B


def last_two_thirds(depth: int) -> tuple[int, ...]:
    """Of the depth, but the end."""
    return tuple(range(max(1, depth // 3), depth))


def as_in_swin(depth: int) -> tuple[int, ...]:
    """The published places, at this depth."""
    places = sorted({round(layer * depth / SWIN_DEPTH) for layer in SWIN_EXITS})
    return tuple(layer for layer in places if 0 < layer < depth)


# by whether the model is hierarchical: where exits are by default, and the strides of its global heads
_PUBLISHED = {False: (last_two_thirds, (2, 3)), True: (as_in_swin, (1, 2))}


def default_heads(count: int, *, strides: tuple[int, int] = (2, 3)) -> tuple[str, ...]:
    """Local heads behind the first half, depthwise first; global ones behind the second, finer first (published)."""
    local = 2 if count == 6 else -(-count // 2)  # published: of six, two are local
    deep, coarse = -(-local // 2), (count - local) // 2
    fine = count - local - coarse
    names = [("lph_dw", deep), ("lph_pw", local - deep), (f"gah{strides[0]}", fine), (f"gah{strides[1]}", coarse)]
    return tuple(name for name, times in names for _ in range(times))


class _Exit(StructureModel):
    layer: Index
    head: str


class _Rule(StructureModel):
    rule: str
    thresholds: list[float]
    patience: int


class _Point(StructureModel):
    threshold: float
    top1: Share
    macs: Annotated[float, Field(gt=0)]
    mean_layer: float
    shares: list[Share]


class _Expected(_Point):
    of: _Rule


class _HeldOut(StructureModel):
    images: Count
    top1: Share


class _Structure(_Rule):
    exits: list[_Exit]
    macs: list[Index]
    dense_macs: Index
    held_out: _HeldOut | None = None
    curve: list[_Point] | None = None
    expected: _Expected | None = None

    @field_validator("exits")
    @classmethod
    def _each_once(cls, exits: list[_Exit]) -> list[_Exit]:
        distinct([row.layer for row in exits], "the exit behind block")
        return exits


@method("lgvit")
@dataclass(frozen=True)
class LGViT:
    """Knobs of the method."""

    exits: tuple[int, ...] | None = None  # blocks passed before each exit; None: the last two thirds but the end
    heads: tuple[str, ...] | None = None  # one an exit: lph_dw, lph_pw, gah<stride>, linear; None: the published order
    rule: str = "confidence"  # confidence, entropy, patience, patient_confident
    threshold: float | tuple[float, ...] | None = None  # of the rule, or one an exit; None: the published one
    patience: int = 2  # exits in a row, of patient_confident
    speedup: float | None = None  # asked for, in MACs: the threshold is chosen for it
    points: float | None = None  # of top-1 that may be lost: the threshold is chosen for it
    held_out: float = 0.1  # share of the training images that thresholds are chosen on; nothing learns from them
    strategy: str = "alternating_weighted"  # of stage 1; also normal, weighted, alternating
    stage1_epochs: int = 0  # of backbone and heads together; 0: the backbone stays as it is
    stage1_lr: float = 5e-5
    epochs: int | None = None  # of the heads alone (stage 2); None: 5, or what 200 steps take, up to 50
    lr: float = 5e-4  # of stage 2; both fall to 0 on a line
    batch_size: int | None = None  # None: 64, fewer where an epoch would not have four steps of them
    alpha: float = 0.3  # weight of the teacher against the labels, 0 to 1
    temperature: float = 2.0  # of the teacher
    beta_heterogeneous: float = 0.01  # weight of the last block's tokens against those of heads
    beta_homogeneous: float = 0.01  # weight of the last head of a sort against the others of it
    augment: str | None = "light"  # of the images of both stages: light, randaug or none
    amp: str = "fp32"  # of the forwards: fp32 or bf16

    structure_model: ClassVar[type[StructureModel]] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"full_grid", "float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"token_blocks"})
    export: ClassVar[str] = "segments"
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    trainable_after: ClassVar[bool] = False
    dials: ClassVar[tuple[str, ...]] = ("threshold", "speedup", "points")
    tunable: ClassVar[tuple[str, ...]] = ("threshold", "speedup", "points", "rule", "patience")
    open_knobs: ClassVar[tuple[str, ...]] = ("epochs", "batch_size")

    def __post_init__(self) -> None:
        if isinstance(self.heads, str):  # as it is typed: heads=[lph_dw,gah2]
            object.__setattr__(self, "heads", tuple(k.strip() for k in self.heads.strip("[]").split(",")))
        for name in ("exits", "heads", "threshold"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_layout()
        self._check_rule()
        for name, least in (("stage1_epochs", 0), ("epochs", 0), ("batch_size", 2)):
            if name in self.open_knobs and getattr(self, name) is None:
                continue
            if not is_whole(getattr(self, name), least=least):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: a whole number, {least} or more")
        for name in ("stage1_lr", "lr", "temperature"):
            if not is_number(getattr(self, name), above=0):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: a number above 0")
        for name in ("beta_heterogeneous", "beta_homogeneous"):
            if not is_number(getattr(self, name), least=0):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: a number, 0 or more")
        if not is_number(self.alpha, least=0, most=1):
            raise BadInput(f"alpha is {self.alpha!r}; accepted: a number from 0 to 1")
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", str(self.strategy), STRATEGIES)
        if self.amp not in AMPS:
            raise unknown("amp", str(self.amp), AMPS)
        Augment.of(self.augment)
        if self.exits == ():  # nothing is put in
            object.__setattr__(self, "needs_data", False)
            object.__setattr__(self, "trains", False)

    def _check_layout(self) -> None:
        if self.exits is not None:
            if not isinstance(self.exits, tuple) or not all(is_whole(n, least=1) for n in self.exits):
                raise BadInput(f"exits is {self.exits!r}; accepted: blocks passed before each exit, from 1")
            if list(self.exits) != sorted(set(self.exits)):
                raise BadInput(f"exits is {self.exits!r}; accepted: each more than the last")
        if self.heads is None:
            return
        if not isinstance(self.heads, tuple):
            raise BadInput(f"heads is {self.heads!r}; accepted: one an exit, such as [lph_dw, gah2]")
        for kind in self.heads:
            check_kind(kind)
        if self.exits is not None and len(self.exits) != len(self.heads):
            raise BadInput(f"heads names {len(self.heads)} for {len(self.exits)} exits; accepted: one an exit")

    def _check_rule(self) -> None:
        targets = [name for name in ("threshold", "speedup", "points") if getattr(self, name) is not None]
        if len(targets) > 1:
            raise BadInput(f"lgvit is given {' and '.join(targets)}; accepted: one of threshold, speedup, points")
        check_rule(self.rule, (), self.patience, 0)
        for threshold in self._thresholds():
            check_threshold(self.rule, threshold)
        if isinstance(self.threshold, tuple) and self.exits is not None and len(self.threshold) != len(self.exits):
            raise BadInput(f"threshold names {len(self.threshold)} for {len(self.exits)} exits; accepted: one an exit")
        if self.speedup is not None and not is_number(self.speedup, least=1):
            raise BadInput(f"speedup is {self.speedup!r}; accepted: 1 or more (dense MACs over mean MACs)")
        if self.points is not None and not is_number(self.points, least=0, most=100):
            raise BadInput(f"points is {self.points!r}; accepted: 0 to 100 (percentage points of top-1)")
        if not is_number(self.held_out, least=0, most=0.5):
            raise BadInput(f"held_out is {self.held_out!r}; accepted: 0 to 0.5 (of the training images)")
        if self.held_out == 0 and (self.speedup is not None or self.points is not None):
            raise BadInput(f"{targets[0]} is a target, and held_out is 0; accepted: above 0, to choose a threshold on")

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
        if data.dataset.multi_label:
            raise BadInput("lgvit's rules are about one class an image, but the data is multi-label")
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
            seen = collect(model, apart, data.preprocess, batch_size=data.batch_size)
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
        places, strides = _PUBLISHED[model.hierarchical]
        exits = places(len(model.blocks)) if self.exits is None else self.exits
        heads = default_heads(len(exits), strides=strides) if self.heads is None else self.heads
        return parse_rows(exits, heads, len(model.blocks))

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the heads in, unless `learn` has, and set the rule."""
        rows = [(_whole(row["layer"]), check_kind(row["head"])) for row in structure["exits"]]
        rule = check_rule(structure["rule"], structure["thresholds"], structure["patience"], len(rows))
        if not rows:
            check_model(model)
            return
        macs = tuple(_whole(n) for n in structure["macs"])
        if len(macs) != len(rows) + 1:
            raise BadInput(f"the plan counts {len(macs)} costs for {len(rows)} exits and the end")
        if model.exits is None:
            _install(model, parse_rows([n for n, _ in rows], [k for _, k in rows], len(model.blocks)), rule, macs)
            return
        there = list(zip(model.exits.layers, (getattr(h, "kind", "") for h in model.exits.heads), strict=True))
        if model.exits.source != "lgvit" or there != rows:
            raise Refused(f"the model has exits of {model.exits.source} already")
        model.exits.leaving.rule, model.exits.leaving.macs = rule, macs

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
        forgotten = self.dials if another_rule or set(knobs) & set(self.dials) else ()
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

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """The rule in use; what it gives on the held-out images, where the plan knows; worst and best case in MACs."""
        if not structure["exits"]:
            return {"exits": []}
        dense, macs = structure["dense_macs"], structure["macs"]
        found: dict[str, Any] = {
            "exits": [row["layer"] for row in structure["exits"]],
            "threshold": _one_or_all(model.exits.leaving.rule.thresholds),
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
            return [f"speedup {self.speedup:g} was asked for, {ratio:.2f} on the held-out images"]
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
    leaving = Leaving([layer for layer, _ in rows], len(model.blocks), rule, macs)
    model.exits = Exits(build_heads(model, rows), leaving, source="lgvit").train(model.training)


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


def _whole(value: Any) -> int:
    if not is_whole(value, least=0):
        raise BadInput(f"the plan holds {value!r} where a whole number belongs")
    return int(value)
