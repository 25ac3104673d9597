"""The verb `compress`: apply methods to a model in order, recover by training where asked, keep the history."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leanvit.anatomy import OpenModel, open_model
from leanvit.errors import BadInput, Refused, is_number, is_whole
from leanvit.recipe import history as histories
from leanvit.recipe.compat import check_order
from leanvit.recipe.history import History, Root, root_of
from leanvit.recipe.method import Data, Plan, knobs_of

if TYPE_CHECKING:
    from leanvit.data import Dataset

OnStep = Callable[[str, OpenModel], None]


@dataclass(frozen=True)
class Recovery:
    """Training after compression: soft distillation from the root with its original weights.

    By default once, after the last method that leaves weights to train; `each` does it after every such method.
    """

    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 64
    alpha: float = 0.5  # weight of the distillation term, 0 to 1
    temperature: float = 2.0
    each: bool = False
    out: Path | None = None  # where the resumable training state goes; None: nothing is written
    log: Path | None = None  # JSON lines of steps and epochs go there; of several recoveries the last

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not is_whole(getattr(self, name), least=1):
                raise BadInput(f"recovery {name} is {getattr(self, name)!r}; accepted: a whole number, 1 or more")
        for name in ("lr", "temperature"):
            if not is_number(getattr(self, name), above=0):
                raise BadInput(f"recovery {name} is {getattr(self, name)!r}; accepted: a number above 0")
        if not is_number(self.alpha, least=0, most=1):
            raise BadInput(f"recovery alpha is {self.alpha!r}; accepted: a number from 0 to 1")


def compress(
    model: nn.Module,
    methods: Sequence[Any],
    data: Data | None = None,
    *,
    root: Root | None = None,
    recovery: Recovery | None = None,
    on_step: OnStep | None = None,
) -> OpenModel:
    """Apply methods to a copy of a model, in order. The model given is left as it was.

    Args:
        model: a timm model, or an opened one (a loaded run: its history goes on).
        methods: methods such as `EViT(keep_rate=0.7)`; none: the model with its history, ready to save.
        data: training data, for methods that calibrate and for recovery.
        root: timm name and constructor arguments, where timm did not record them.
        recovery: train after compression.
        on_step: called with a label and the model: "dense", then each method, then "recovery".

    Raises:
        Refused: a method does not fit the model or what came before it (before any work starts).
        BadInput: data or recovery is missing or does not fit.
    """
    dense = _with_history(model, root)
    check_order(dense.traits(), methods)
    check_needs(methods, data, recovery)
    lean = copy.deepcopy(dense)
    report = on_step or (lambda label, model: None)
    report("dense", lean)
    due = _recovery_points(methods, recovery)
    for i, m in enumerate(methods):
        apply(lean, m, replace(data, teacher=dense) if isinstance(data, Data) else data)
        report(m.slug, lean)
        if i in due and recovery is not None and data is not None:
            lean = _recover(lean, dense, methods[: i + 1], data, recovery)
            report("recovery", lean)
    return lean.eval()


def apply(model: OpenModel, m: Any, data: Data | None = None) -> Plan:
    """One method's whole life on a model, in place: prepare, learn, shape, fold. Returns its plan."""
    training = model.training
    if hasattr(m, "prepare"):
        m.prepare(model)
    structure = m.learn(model.eval(), data) if hasattr(m, "learn") else {}
    plan = Plan(m.slug, knobs_of(m), structure)
    _build(model, m, plan)
    model.train(training)
    return plan


@torch.no_grad()
def _build(model: OpenModel, m: Any, plan: Plan) -> None:
    before = dict(model.state_dict()) if hasattr(m, "fold") else {}
    histories.shape(model, plan)
    if hasattr(m, "fold"):
        m.fold(model, dict(plan.structure), before)


def reapply(model: nn.Module, plans: Sequence[Plan], *, root: Root | None = None) -> OpenModel:
    """Apply plans (edited ones too) to a dense root with its own weights: structure and fold, nothing is learned anew.

    Raises:
        Refused: the model is not a root, or a plan's values were learned from data and cannot be redone without it.
    """
    dense = _with_history(model, root)
    if dense.history.plans:
        raise Refused("plans are applied to the root, not to a model that methods were applied to already")
    made = [plan.method() for plan in plans]
    check_order(dense.traits(), made)
    learned = [m.slug for m in made if m.needs_data]
    if learned:
        raise Refused(f"{', '.join(learned)} learns values from data: run compress with it again instead")
    lean = copy.deepcopy(dense)
    for plan, m in zip(plans, made, strict=True):
        _build(lean, m, plan)
    return lean.eval()


def _with_history(model: nn.Module, root: Root | None) -> OpenModel:
    opened = open_model(model)
    if opened.history is None:
        proven = root_of(opened, name=root.name, kwargs=root.kwargs) if root else root_of(opened)
        opened.history = History(proven)
    return opened


def check_needs(methods: Sequence[Any], data: Data | Dataset | None, recovery: Recovery | None) -> None:
    """Raise `BadInput` unless methods and recovery get the images that they need."""
    hungry = [m.slug for m in methods if m.needs_data]
    if hungry and data is None:
        raise BadInput(f"{', '.join(hungry)} calibrates on images: give data")
    if recovery is None:
        return
    if data is None:
        raise BadInput("recovery trains: give data")
    if not any(m.trainable_after for m in methods):
        named = ", ".join(m.slug for m in methods) or "no method"
        raise BadInput(f"recovery: {named} leaves nothing to train")
    images = len(data.dataset if isinstance(data, Data) else data)
    if images < recovery.batch_size:
        raise BadInput(
            f"recovery batch_size is {recovery.batch_size}, and there are {images} training images; accepted: up to "
            f"{images}, or more images (--limit)"
        )


def _recovery_points(methods: Sequence[Any], recovery: Recovery | None) -> set[int]:
    """After which methods recovery runs: the last one that training may follow (or every one)."""
    trainable = []
    for i, m in enumerate(methods):
        if not m.trainable_after:
            break  # what comes later stands on rounded weights
        trainable.append(i)
    if recovery is None or not trainable:
        return set()
    return set(trainable) if recovery.each else {trainable[-1]}


def _recover(lean: OpenModel, dense: OpenModel, done: Sequence[Any], data: Data, recovery: Recovery) -> OpenModel:
    from leanvit.training import RECOVERY, JsonlLog, recover

    config = replace(RECOVERY, epochs=recovery.epochs, lr=recovery.lr, batch_size=recovery.batch_size, seed=data.seed)
    callbacks = [c for m in done if hasattr(m, "callbacks") for c in m.callbacks(lean)]
    callbacks += [JsonlLog(recovery.log)] if recovery.log else []
    result = recover(
        lean,
        dense,
        data.dataset,
        preprocess=data.preprocess,
        config=config,
        alpha=recovery.alpha,
        temperature=recovery.temperature,
        callbacks=callbacks,
        out=recovery.out,
        convert=True,  # whether data and model fit was decided when the dense model was made
    )
    return result.model
