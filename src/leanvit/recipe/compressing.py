"""The verb `compress`: apply methods to a model in order, recover by training if requested, keep the history."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.composite import Composite
from leanvit.arguments import require_methods, require_model, require_training_data
from leanvit.data import AnyDataset
from leanvit.data.classes import listed
from leanvit.data.identity import identity
from leanvit.data.matching import for_model, unseen_classes
from leanvit.errors import BadInput, Refused, unknown
from leanvit.recipe import history as histories
from leanvit.recipe.compat import check_order, check_slots, require_known_task
from leanvit.recipe.early_checks import check_fits
from leanvit.recipe.history import History, root_of
from leanvit.recipe.learning import Data
from leanvit.recipe.plan import Plan
from leanvit.recipe.planning import chosen_for, fit_to_data, trainings
from leanvit.recipe.processes import share_from_first
from leanvit.recipe.protocol import (
    Checks,
    Finishes,
    Folds,
    Learns,
    Method,
    Prepares,
    Retunes,
    Structure,
    Tunes,
)
from leanvit.recipe.recovering import (
    Recovery,
    check_needs,
    check_teachers,
    reads_labels,
    recovery_points,
    run_recovery,
)
from leanvit.recipe.registry import knobs_of
from leanvit.recipe.roots import Root
from leanvit.recipe.steps import Steps, fingerprint, saved_about
from leanvit.recipe.structure import check_structure
from leanvit.tasks.task_loss import name_of
from leanvit.training.world import join_world

OnStep = Callable[[str, OpenModel], None]


@dataclass(frozen=True)
class _Stage:
    """One thing that is done to the model: a method, or a recovery (`method` is None)."""

    label: str
    method: Method | None
    done: tuple[Method, ...]  # the methods so far, this one included
    finishes: bool  # temporary parts are taken out at its end: no recovery follows
    part: str  # of a model of parts, the one that the methods are applied to


def compress(
    model: nn.Module,
    methods: Sequence[Method],
    data: Data | None = None,
    *,
    root: Root | None = None,
    recovery: Recovery | None = None,
    teacher: nn.Module | None = None,
    on_step: OnStep | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    part: str = "",
) -> OpenModel:
    """Apply methods to a copy of a model, in order. The model given is left as it was.

    A compression that trains (recovery, or a method that does) or keeps units (`Data.units`) and is given `out` can be
    killed at any moment: called again with `resume=True` its result is bit-identical to that of an uninterrupted run
    (float32 on a CPU). A warning says which targets the result misses (`missed`).

    Under torchrun every process makes the same call, and gets the same model: trainings run on all together, the first
    process writes.

    Args:
        model: a timm model, or an opened one (a loaded run: its history goes on).
        methods: methods such as `EViT(keep_rate=0.7)`; none: the model with its history, ready to save.
        data: training data, for methods that calibrate and for recovery. Its classes are matched with the model's by
            name where the model's outputs have names (`model.classes`); they keep them.
        root: timm name and constructor arguments, where timm did not record them.
        recovery: train after compression.
        teacher: of every training; default: the dense model, with its original weights. Its images are prepared as
            the model's.
        on_step: called with a label and the model: "dense", then each method, then "recovery".
        out: run folder that keeps finished steps and the training under way in `steps/`. Once the model is saved
            there, `recipe.clear_steps(out)` removes them. A compression that keeps no steps writes nothing.
        resume: go on with the compression in `out`.
        part: of a model of parts (`leanvit.recipe.compose`), the one that the methods are applied to; default: its
            main one. A recovery trains the whole.

    Raises:
        Refused: a method does not fit the model or what came before it (before any work starts).
        BadInput: data, recovery or teacher is missing or does not fit; there is nothing to resume, or it is of another
            compression (the difference is named).
        CheckpointError: what is to be resumed is damaged.
        LeanvitError: a step cannot be written (disk full, read-only); the steps before it stay.
        Interrupted: training was stopped by Ctrl-C or SIGTERM, its state saved.
    """
    if resume and out is None:
        raise BadInput("resume=True needs out=, the folder of the run to continue")
    require_methods(methods)
    require_training_data(data)
    if not isinstance(recovery, Recovery | None):
        raise BadInput(f"recovery is {recovery!r}; accepted: a Recovery, as Recovery(epochs=3) of leanvit.recipe")
    world = join_world()
    dense = _with_history(model, root)
    part = chosen_part(dense, part)
    target = histories.part_of(dense, part)
    check_order(target.traits(), methods, kept=target.kept_traits)
    check_slots(target, methods)
    check_needs(methods, data, recovery, dense)
    was = saved_about(Path(out)) if resume and out is not None else None
    methods, recovery = fit_to_data(methods, recovery, getattr(data, "dataset", None), was)
    trainings(methods, recovery, getattr(data, "dataset", None))  # refuses batches that the images do not fill
    _check_teacher(teacher, dense)
    check_teachers(methods, recovery, dense, teacher or dense)
    if isinstance(data, Data):
        data = replace(data, task=data.task_of(dense))
        _require_task(dense, methods, replace(data, teacher=teacher or dense), recovery)
        data = replace(data, dataset=_of_classes(data.dataset, dense, methods, recovery), teacher=teacher or dense)
        says = world.first and dense.classifies and trains(methods, recovery)
        if says and (unseen := unseen_classes(data.dataset)):
            some = f"{len(unseen)} of the {len(data.dataset.classes)} classes of the model ({listed(unseen)})"
            warnings.warn(f"no training image of {some}: what is trained may forget them", stacklevel=2)
    if recovery is not None or any(m.needs_data or m.trains for m in methods):
        from leanvit.training.assemble import require_float32

        require_float32(dense, "learning from data")
    check_fits(target, methods, data.inside(dense, part) if isinstance(data, Data) else data)
    steps = None
    if out is not None and is_resumable(methods, recovery):
        if not isinstance(data, Data):
            raise BadInput(f"data is a {type(data).__name__}; accepted with out=: Data(dataset, preprocess)")
        steps = Steps(Path(out), _about(dense, methods, data, recovery, teacher, part), resume=resume)
    elif resume:
        raise BadInput("resume=True, but nothing here trains: there is no state to go on with; leave it out")
    lean = copy.deepcopy(dense)
    if isinstance(data, Data):
        if not lean.classes and lean.classifies and len(data.dataset.classes) == lean.num_classes:
            lean.classes = tuple(data.dataset.classes)
        if (told := data.task) is not None and told.changes_meaning(lean):
            lean.task = told
        lean.preprocess = lean.preprocess or data.preprocess
    report = on_step or (lambda label, model: None)
    report("dense", lean)
    with steps.gone_if_refused() if steps is not None else nullcontext():
        for number, stage in enumerate(_stages(methods, recovery, part), 1):
            lean = _run_stage(stage, number, lean, dense, data, recovery, steps)
            report(stage.label, lean)
    for slug, miss in missed(lean) if world.first else ():
        warnings.warn(f"{slug} missed its target: {miss}", stacklevel=2)
    return lean.eval()


def trains(methods: Sequence[Method], recovery: Recovery | None) -> bool:
    """Whether a compression trains: then it learns from labels, and may take long."""
    return recovery is not None or any(m.trains for m in methods)


def is_resumable(methods: Sequence[Method], recovery: Recovery | None) -> bool:
    """Whether a compression keeps steps: it trains, or a method keeps units (`Data.units`)."""
    return trains(methods, recovery) or any(m.resumable for m in methods)


def _require_task(dense: OpenModel, methods: Sequence[Method], data: Data, recovery: Recovery | None) -> None:
    """Raise `Refused` or `BadInput`, naming what learns, where its task fits the model or the data not; and for methods
    that know other tasks only."""
    assert data.task is not None
    trained = [m.slug for m in methods if m.trains]
    judging = [*trained, *([] if recovery is None or recovery.methods else ["a recovery"])]
    if judging:
        without = " without a task (Data(task=...))" if data.task.label_kind else ""
        data.task.check(f"{' and '.join(judging)}{without}", model=dense)
    lacks = not set(data.task.reads) <= set(data.dataset.field_names)
    reads = recovery is not None and lacks and reads_labels(dense, data, recovery)
    reading = [*trained, *(["a recovery"] if reads else [])]
    if reading:
        data.task.check(" and ".join(reading), dataset=data.dataset)
    for m in [*methods, *(() if recovery is None else recovery.methods)]:
        require_known_task(m, data.task)


def missed(model: OpenModel) -> list[tuple[str, str]]:
    """(slug, in words) of each target that a model misses beyond its method's tolerance, counted on the model."""
    found = []
    for plan in model.history.plans:
        m = plan.method()
        if plan.finished and isinstance(m, Checks):
            made = histories.part_of(model, plan.part)
            with as_made(made, plan.slug):
                found += [(plan.slug, str(miss)) for miss in m.check(made, dict(plan.structure))]
    return found


def as_made(model: OpenModel, slug: str) -> AbstractContextManager[None]:
    """Inside, a model without the exits that came after a method: its targets are of the network that it made."""
    slugs = [plan.slug for plan in model.history.plans]
    before = model.exits is not None and slugs.index(slug) < slugs.index(model.exits.source)
    return model.without_exits() if before else nullcontext()


def chosen_part(model: OpenModel, part: str) -> str:
    """The part that methods are applied to: the one named, or the main one; "" of a model that is not made of parts.

    Raises `BadInput` for a part that there is not, or that no method can be applied to.
    """
    if not part and isinstance(model, Composite):
        part = model.wiring.main
    histories.part_of(model, part)
    return part


def _stages(methods: Sequence[Method], recovery: Recovery | None, part: str) -> list[_Stage]:
    due = recovery_points(methods, recovery)
    stages = []
    for i, m in enumerate(methods):
        done = tuple(methods[: i + 1])
        stages.append(_Stage(m.slug, m, done, finishes=not any(point >= i for point in due), part=part))
        if i in due:
            stages.append(_Stage("recovery", None, done, finishes=True, part=part))
    return stages


def _run_stage(
    stage: _Stage,
    number: int,
    lean: OpenModel,
    dense: OpenModel,
    data: Any,
    recovery: Recovery | None,
    steps: Steps | None,
) -> OpenModel:
    """The model after a stage: run, gone on with, or loaded where it was done before an interruption."""
    if steps is None:
        here = replace(data, out=None) if stage.method is None else data  # a folder of the user's is for one training
        return _work(stage, lean, here, recovery)
    if steps.is_done(number, stage.label):
        slugs = [*(plan.slug for plan in dense.history.plans), *(m.slug for m in stage.done)]
        device = next(dense.parameters()).device
        return steps.load(number, stage.label, dense.history.root, slugs).to(device)
    steps.begin(number)
    keeps = stage.method is None or stage.method.trains or stage.method.resumable
    with steps.advised(number, stage.label):
        here = replace(data, out=steps.at(number, stage.label), bound_to=steps.digest) if keeps else data
        lean = _work(stage, lean, here, recovery)
    steps.keep(number, stage.label, lean)
    return lean


def _work(stage: _Stage, lean: OpenModel, data: Any, recovery: Recovery | None) -> OpenModel:
    if stage.method is not None:
        apply(lean, stage.method, data, part=stage.part)
    else:
        assert recovery is not None
        lean = run_recovery(lean, data.teacher, stage.done, data, recovery)
    if stage.finishes:
        histories.finish(lean)
    share_from_first(lean)  # what was calibrated on each process may differ in its last bits
    return lean


def _of_classes(
    dataset: AnyDataset, dense: OpenModel, methods: Sequence[Method], recovery: Recovery | None
) -> AnyDataset:
    """The data set with the model's outputs as its classes; where nothing learns from labels, any images will do."""
    try:
        return for_model(dataset, dense)
    except BadInput:
        if trains(methods, recovery):
            raise
        return dataset


def _check_teacher(teacher: nn.Module | None, dense: OpenModel) -> None:
    if teacher is None:
        return
    if not isinstance(teacher, nn.Module):
        raise BadInput(f"teacher is a {type(teacher).__name__}; accepted: a model, such as load('RUN')")
    taught, own = (tuple(getattr(m, "classes", ())) for m in (teacher, dense))
    if taught and own and taught != own:
        raise BadInput(
            f"teacher knows the classes {listed(taught)}, the model {listed(own)}: give one with the model's "
            "classes, in their order"
        )
    classes = getattr(teacher, "num_classes", None)
    if classes and classes != dense.num_classes:
        raise BadInput(f"teacher has {classes} outputs, the model {dense.num_classes}: give one with equal outputs")


def _about(
    dense: OpenModel,
    methods: Sequence[Method],
    data: Any,
    recovery: Recovery | None,
    teacher: nn.Module | None,
    part: str,
) -> dict[str, Any]:
    """What must be equal for a compression to be resumed (JSON)."""
    return {
        **({"part": part} if part else {}),
        **({"task": name_of(data.task)} if not data.task.label_kind else {}),
        "model": dense.history.root.to_json(),
        "plans": [plan.to_json() for plan in dense.history.plans],
        "weights": fingerprint(dense),
        "methods": [{"slug": m.slug, **knobs_of(m)} for m in methods],
        "data": identity(data.dataset),
        "preprocess": data.preprocess.fingerprint(),
        "seed": data.seed,
        "batch_size": data.batch_size,
        "recovery": None if recovery is None else recovery.to_json(),
        "teacher": None if teacher is None else fingerprint(teacher),
    }


def apply(model: OpenModel, m: Method, data: Data | None = None, *, part: str = "") -> Plan:
    """One method on a model, or a part of it, in place: prepare, learn, shape, fold. Returns its plan.

    The plan of a method with temporary parts is unfinished: `recipe.finish(model)` ends its life.
    """
    if isinstance(data, Data):
        m = chosen_for(m, data.dataset, {})
        data = data.inside(model, part)
        require_known_task(m, data.task_of(model))
    training, target = model.training, histories.part_of(model, part)
    model.eval()
    if isinstance(m, Prepares):
        m.prepare(target)
    structure = _learned(m, target, data) if isinstance(m, Learns) else {}
    plan = Plan(m.slug, knobs_of(m), structure, finished=not isinstance(m, Finishes), part=part)
    _build(model, m, plan)
    model.train(training)
    return plan


def _learned(m: Any, model: OpenModel, data: Data | None) -> Structure:
    """What a method learns; of several processes, which all learn, what the first one found."""
    world = join_world()
    with nullcontext() if m.trains else world.together():  # a training ends on all processes by itself
        structure: Structure = m.learn(model, data)
    return world.from_first(lambda: structure)


@torch.no_grad()
def _build(model: OpenModel, m: Method, plan: Plan) -> None:
    target = histories.part_of(model, plan.part)
    before = dict(target.state_dict()) if isinstance(m, Folds) else {}
    histories.shape(model, plan)
    if isinstance(m, Folds):
        m.fold(target, dict(plan.structure), before)
    if isinstance(model, Composite):
        model.wiring.check(model.parts)


def reapply(model: nn.Module, plans: Sequence[Plan], *, root: Root | None = None) -> OpenModel:
    """Apply plans (edited ones too) to a dense root with its own weights: structure and fold, nothing is learned anew.

    On a model that has these plans already, what no weight follows from (thresholds) is set anew: `retune`.

    Raises:
        Refused: the model is not a root, or a plan's values were learned from data and cannot be redone without it.
    """
    dense = _with_history(model, root)
    if dense.history.plans and _retunable(dense.history.plans, plans):
        return _retuned(dense, plans)
    if dense.history.plans:
        raise Refused("plans are applied to the root, not to a model that methods were applied to already")
    unfinished = [plan.slug for plan in plans if not plan.finished]
    if unfinished:
        raise Refused(f"{', '.join(unfinished)} is unfinished: plans are applied again once their compression ended")
    made = [plan.method() for plan in plans]
    for part in dict.fromkeys(plan.part for plan in plans):
        target = histories.part_of(dense, part)
        own = [m for m, plan in zip(made, plans, strict=True) if plan.part == part]
        check_order(target.traits(), own, kept=target.kept_traits)
    learned = [m.slug for m in made if m.needs_data]
    if learned:
        raise Refused(f"{', '.join(learned)} learns values from data: run compress with it again instead")
    lean = copy.deepcopy(dense)
    for plan, m in zip(plans, made, strict=True):
        _build(lean, m, plan)
    return lean.eval()


def retune(model: OpenModel, slug: str, knobs: Mapping[str, Any]) -> OpenModel:
    """A copy in which a method has other knobs, of those that no weight follows from (thresholds of exits).

    Nothing is learned, and no data is needed. Method and plan of the copy say the new knobs.

    Raises:
        BadInput: a method that is not in the model's history, a knob that is not tunable, or not accepted.
        Refused: a method without such knobs, a target that cannot be met.
    """
    require_model(model)
    plans = list(model.history.plans) if getattr(model, "history", None) else []
    if not plans:
        raise BadInput(f"{slug} is not a method of this model: it is dense; accepted: one that was compressed")
    if slug not in [plan.slug for plan in plans]:
        raise unknown("method of this model", slug, [plan.slug for plan in plans])
    at = max(i for i, plan in enumerate(plans) if plan.slug == slug)
    was, m = plans[at], plans[at].method()
    tunable = m.tunable
    if not isinstance(m, Tunes):
        raise Refused(f"{slug} has no knob that a finished model can change: compress its root anew")
    for name in knobs:
        if name not in tunable:
            raise unknown(f"tunable knob of {slug}", name, tunable)
    if not knobs:
        raise BadInput(f"{slug} is given no knob; accepted: {', '.join(tunable)}")
    new, structure = m.tuned(dict(was.structure), knobs)
    lean = copy.deepcopy(model)
    new.retune(histories.part_of(lean, was.part), dict(was.structure), structure)
    plans[at] = replace(was, knobs=knobs_of(new), structure=structure)
    histories.note(lean, plans)
    return lean.eval()


def _retunable(was: Sequence[Plan], now: Sequence[Plan]) -> bool:
    """Whether plans differ only in structures of methods that can set them anew."""
    if [(p.part, p.slug, dict(p.knobs)) for p in was] != [(p.part, p.slug, dict(p.knobs)) for p in now]:
        return False
    changed = [a for a, b in zip(was, now, strict=True) if dict(a.structure) != dict(b.structure)]
    return bool(changed) and all(isinstance(plan.method(), Retunes) for plan in changed)


def _retuned(model: OpenModel, plans: Sequence[Plan]) -> OpenModel:
    lean = copy.deepcopy(model)
    for was, now in zip(model.history.plans, plans, strict=True):
        m = now.method()
        if dict(was.structure) != dict(now.structure) and isinstance(m, Retunes):
            check_structure(m, now.structure)
            m.retune(histories.part_of(lean, now.part), dict(was.structure), dict(now.structure))
    histories.note(lean, plans)
    return lean.eval()


def _with_history(model: nn.Module, root: Root | None) -> OpenModel:
    opened = open_model(model)
    if opened.history is None:
        proven = root_of(opened, name=root.name, kwargs=root.kwargs) if root else root_of(opened)
        opened.history = History(proven)
    return opened
