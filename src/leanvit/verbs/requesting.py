"""A training as it was requested: a recipe, what was given over it, and the model, data and objective they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from leanvit.data import AnyDataset, Preprocess, keyed
from leanvit.data.preprocess import own_settings
from leanvit.errors import BadInput, LeanvitError, Refused
from leanvit.models.registry import require_model
from leanvit.recipe import Data, History, Root, compress
from leanvit.recipe.protocol import BringsObjective, ChecksTeacher
from leanvit.recipe.registry import method_class
from leanvit.recipe.text import as_text
from leanvit.recipe.training_methods import (
    as_rows,
    check_training_methods,
    given_by,
    is_for_training,
    objective_method,
    shapes,
)
from leanvit.recipe.training_steps import fitting_batch
from leanvit.tasks import Task
from leanvit.training import Distill, FitConfig, Objective, TrainRecipe, as_seen_by, load_train_recipe
from leanvit.training.train_recipe import merged
from leanvit.training.world import join_world
from leanvit.verbs.models import Loaded, Log, load_model, silent
from leanvit.verbs.sources import has_source
from leanvit.verbs.weights import load_weights


@dataclass(frozen=True)
class TrainingRequest:
    """A training before any work: names and numbers only."""

    model: str | Path
    config: FitConfig
    model_args: Mapping[str, Any]
    pretrained: bool
    weights: str | Path | None
    distill: Distill | None
    teacher_weights: str | Path | None = None
    recipe: TrainRecipe | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what was given over the recipe
    preprocess_settings: Mapping[str, Any] = field(default_factory=dict)  # own mean, std, ... of a timm name
    methods: tuple[Any, ...] = ()  # ways to train

    @property
    def convert(self) -> bool:
        """Whether the recipe itself lets preprocessing enlarge images, for its own model."""
        return self.recipe is not None and self.recipe.convert and self.recipe.trains(self.model)

    def record(self) -> dict[str, Any]:
        """For the run's record (JSON): the recipe's name and what was given over it, and the teacher."""
        record: dict[str, Any] = {}
        if self.recipe is not None:
            record["recipe"] = {
                "name": self.recipe.name,
                "title": self.recipe.title,
                "target": None if self.recipe.target is None else self.recipe.target.model_dump(),
                "overrides": dict(self.overrides),
            }
        if self.distill is not None:
            record["distill"] = asdict(self.distill)
        if self.methods:
            record["methods"] = as_rows(self.methods)
        return record


def training_request(
    name: str | Path | None,
    *,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    distill: str | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    methods: Sequence[Any] = (),
    log: Log = silent,
) -> TrainingRequest:
    """Put a recipe and what was given over it together; what was given wins. Arguments as of `train`.

    Raises:
        BadInput: a recipe, a setting or a method that is not accepted, or a model or teacher that nobody named.
        Refused: two methods that each bring the objective.
    """
    check_training_methods(methods)
    own_preprocessing = own_settings(mean, std, crop_pct, interpolation)
    found = None if recipe is None else load_train_recipe(recipe, name)
    given = {**({} if seed is None else {"seed": seed}), **(settings or {})}
    if name is None and (found is None or found.model is None):
        needs = "" if found is None else f": recipe {found.name} trains on from {_start_text(found.starts_from)}"
        raise BadInput(f"give a MODEL (a timm name or a run folder), or a recipe that names one{needs}")
    own_model = found is not None and found.model is not None and (name is None or found.trains(name))
    other = found is not None and name not in (None, found.model)
    if teacher is not None and distill is None and objective_method(methods) is not None:
        distill = "method"
    taught = _distill(None if found is None else found.distill, teacher, distill, alpha, temperature)
    if teacher_weights is not None and taught is None:
        raise BadInput("teacher_weights are of a teacher: give one too (--teacher, --distill)")
    _check_loss_is_replaced(methods, taught, given)
    for remark in () if found is None else found.remarks:
        log(f"recipe {found.name if found else ''}: {remark}")
    if found is not None and found.model is not None and not own_model:
        log(f"recipe {found.name}: {name} is trained instead of {found.model}, without its constructor arguments")
    args = {**(found.model_args if found is not None and own_model else {}), **(model_args or {})}
    overrides = {**given, **({"model": str(name)} if other else {}), **dict(model_args or {})}
    return TrainingRequest(
        model=name if name is not None else (found.model if found else None) or "",
        config=FitConfig(**merged({} if found is None else found.fit, given)),
        model_args=args,
        pretrained=(pretrained or (own_model and found is not None and found.pretrained)) and weights is None,
        weights=weights,
        distill=taught,
        teacher_weights=teacher_weights,
        recipe=found,
        overrides=overrides,
        preprocess_settings=own_preprocessing,
        methods=tuple(methods),
    )


def _check_loss_is_replaced(methods: Sequence[Any], taught: Distill | None, given: Mapping[str, Any]) -> None:
    """Raise `BadInput` for what is of a loss that a method's objective takes the place of."""
    bringing = objective_method(methods)
    if bringing is None:
        return
    instead = (
        f"{bringing.slug} brings the objective of the training: leave it out, and use the knobs of {bringing.slug}"
    )
    if taught is not None and taught.kind != "method":
        raise BadInput(f"distill is {taught.kind!r} (--distill, or the recipe's), but {instead}")
    if given.get("label_smoothing"):
        raise BadInput(f"label_smoothing is {given['label_smoothing']!r}, but {instead}")


def with_fitting_batch(request: TrainingRequest, dataset: AnyDataset, *, was: int | None, log: Log) -> TrainingRequest:
    """With a default batch size of which the data fills a few: a power of two, at most a quarter of the images.

    Nothing changes where a batch size is given, by the recipe too, or where an epoch has four steps of the default.

    was: the batch size of an interrupted training that is gone on with; it stays.
    """
    config = request.config
    if "batch_size" in request.overrides or (request.recipe is not None and "batch_size" in request.recipe.fit):
        return request
    least = join_world().size * (2 if config.mixes else 1)
    batch = was or fitting_batch(len(dataset) // config.accumulate, default=config.batch_size, least=max(2, least))
    if batch == config.batch_size or batch % least:
        return request
    log(f"batch size {batch}, chosen for {len(dataset):,} training images (--batch-size sets it)")
    lr: dict[str, Any] = {} if config.lr_base is None else {"lr": None}
    return replace(request, config=replace(config, batch_size=batch, **lr))


def start_model(request: TrainingRequest, *, adapt_to: AnyDataset | None, log: Log) -> Loaded:
    """Build or load the model that is trained. Raises `BadInput` or `Refused` for one that is not the recipe's."""
    start = load_model(
        request.model,
        model_args=request.model_args,
        pretrained=request.pretrained,
        weights=request.weights,
        adapt_to=adapt_to,
        preprocess_settings=request.preprocess_settings,
        rebuilds=True,
        seed=request.config.seed,
        log=log,
    )
    wanted = None if request.recipe is None else request.recipe.starts_from
    applied = [plan.slug for plan in start.model.history.plans]
    if wanted not in (None, "run") and wanted not in applied:
        raise BadInput(
            f"recipe {request.recipe.name if request.recipe else ''} trains on from {_start_text(wanted)}, but "
            f"{request.model} is {start.name}: give such a run (leanvit compress MODEL --with {wanted})"
        )
    if wanted == "run" and start.folder is None:
        raise BadInput(
            f"recipe {request.recipe.name if request.recipe else ''} starts from a run, not from a timm name: give a "
            f"run folder (leanvit train {request.model} makes one)"
        )
    if wanted not in applied and not all(is_for_training(slug) or _only_zeroes(slug) for slug in applied):
        raise Refused(
            f"{start.folder} is not dense ({start.name}): train makes dense models; use compress --recover to train "
            "a lean one, or a recipe that starts from it (leanvit recipes)"
        )
    if "float" not in start.model.traits():
        raise Refused(f"{start.folder} is quantized ({start.name}): rounded weights cannot be trained on")
    if adapt_to is not None:
        start = _with_classes_of(adapt_to, start, request.config.seed, log)
    if request.distill is not None:
        request.distill.check_student(start.model)
    return start


def _only_zeroes(slug: str) -> bool:
    """Whether a method prunes weights to zeros and builds nothing: a training keeps them."""
    return method_class(slug).destroys == {"whole_weights"}  # type: ignore[attr-defined]


def _with_classes_of(dataset: AnyDataset, start: Loaded, seed: int, log: Log) -> Loaded:
    """A run with a fresh classifier where the data has other classes than it; anything else as it is."""
    model: Any = start.model
    classes, known = tuple(dataset.classes), model.num_classes
    same = sorted(start.classes) == sorted(classes) if start.classes else known == len(classes)
    if start.folder is None or same or not dataset.labelled:
        return start
    history = model.history
    if history is None or history.plans:
        raise Refused(
            f"{start.folder} is not dense ({start.name}), and {dataset.spec!r} has other classes: adapt gives dense "
            "runs a new classifier; train one on this data, then compress it"
        )
    with keyed.global_rng(seed, "classifier"):
        model.reset_classifier(len(classes))
    model.classes = classes
    root = history.root
    model.history = History(Root(root.name, {**root.kwargs, "num_classes": len(classes)}))
    which = start.name if start.reference else start.folder
    log(f"adapted {which} to {dataset.spec}: a new classifier, {len(classes)} classes (it had {known})")
    return replace(start, classes=classes)


def with_methods(request: TrainingRequest, start: Loaded, dataset: AnyDataset, *, log: Log) -> Loaded:
    """With the methods that have `shape` applied to the model, and kept in its history; each method is said."""
    for m in request.methods:
        log(f"trains with {as_text(m)} ({given_by(m)})")
    shaping = [m for m in request.methods if shapes(m)]
    if not shaping:
        return start
    data = Data(dataset, start.preprocess, seed=request.config.seed)
    return replace(start, model=compress(start.model, shaping, data))


def objective(
    request: TrainingRequest, start: Loaded, dataset: AnyDataset, task: Task, *, log: Log
) -> tuple[Objective | None, FitConfig]:
    """The objective (None: the default one) and the config that goes with it. Raises `BadInput` for a wrong teacher."""
    bringing = objective_method(request.methods)
    if request.distill is None:
        brought = None if bringing is None else _of_way(bringing, request, start, None, dataset, task)
        return brought, replace(request.config, label_smoothing=0.0) if brought is not None else request.config
    if request.distill.teacher is None:
        raise BadInput(f"distill is {request.distill.kind!r}, but there is no teacher: give one (--teacher MODEL)")
    teacher, own = _teacher(request.distill.teacher, request.teacher_weights, dataset, log)
    if request.distill.kind == "method":
        config = replace(request.config, label_smoothing=0.0)
        if bringing is None:
            return _of_method(request, start, teacher, own, dataset, task), config
        _check_same_images(own, start)
        return _of_way(bringing, request, start, teacher, dataset, task), config
    teacher, bridged = as_seen_by(teacher, own=own, student=start.preprocess)
    log(f"teacher: {request.distill.teacher}" + (f"; it sees the student's images {bridged}" if bridged else ""))
    made = request.distill.objective(
        teacher,
        start.preprocess,
        label_smoothing=request.config.label_smoothing,
        task=task,
    )
    return made, replace(request.config, label_smoothing=0.0)


def _of_way(
    way: Any, request: TrainingRequest, start: Loaded, teacher: nn.Module | None, dataset: AnyDataset, task: Task
) -> Objective | None:
    """What a way to train minimises. Raises `BadInput` where it has none, and a teacher is given."""
    if teacher is not None and isinstance(way, ChecksTeacher):
        way.check_teacher(start.model, teacher)
    data = Data(dataset, start.preprocess, seed=request.config.seed, teacher=teacher, task=task)
    with keyed.global_rng(request.config.seed, "objective"):  # of its own parameters
        made: Objective | None = way.objective(start.model, data, request.config)
    if made is None and teacher is not None:
        raise BadInput(f"a teacher is given, and {way.slug} has no objective with these knobs: give --distill soft")
    return made


def _check_same_images(own: Preprocess, start: Loaded) -> None:
    if own.fingerprint() != start.preprocess.fingerprint():
        raise BadInput(
            f"distill is 'method': the teacher takes images made by {own}, the model by {start.preprocess}: "
            "give a teacher with the model's preprocessing, or --distill soft"
        )


def _of_method(
    request: TrainingRequest, start: Loaded, teacher: nn.Module, own: Preprocess, dataset: AnyDataset, task: Task
) -> Objective:
    """What the method of a run learns by. Raises `BadInput` where none brings it, or the teacher sees other images."""
    bring = {plan.slug: m for plan in start.model.history.plans if isinstance(m := plan.method(), BringsObjective)}
    if len(bring) != 1:
        named = ", ".join(bring) or "none"
        raise BadInput(
            f"distill is 'method': of the methods of {start.name}, {named} bring an objective; needed: one. "
            "Give --distill soft or hard"
        )
    _check_same_images(own, start)
    data = Data(dataset, start.preprocess, seed=request.config.seed, teacher=teacher, task=task)
    ((slug, method),) = bring.items()
    made = method.objective(start.model, data, request.config)
    if made is None:
        raise BadInput(f"distill is 'method', and {slug} has no objective with these knobs: give soft or hard")
    return made


def _distill(
    own: Distill | None,
    teacher: str | Path | None,
    kind: str | None,
    alpha: float | None,
    temperature: float | None,
) -> Distill | None:
    given: dict[str, Any] = {
        "teacher": None if teacher is None else str(teacher),
        "kind": kind,
        "alpha": alpha,
        "temperature": temperature,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return own
    if own is not None:
        return replace(own, **given)
    if "kind" not in given:
        raise BadInput(
            f"{', '.join(given)} is of distillation: give distill too (--distill soft, hard, token or method)"
        )
    return Distill(**given)


def _start_text(starts_from: str | None) -> str:
    return "a dense run" if starts_from in (None, "run") else f"a run of {starts_from}"


def _teacher(spec: str, weights: str | Path | None, dataset: AnyDataset, log: Log) -> tuple[nn.Module, Preprocess]:
    """A run folder, or a timm name with its pretrained weights or `weights`, and what it was trained with."""
    if Path(spec).is_dir() or "/" in spec or has_source(spec):
        loaded = load_model(spec, weights=weights, log=log)
        if loaded.classes and list(loaded.classes) != list(dataset.classes):
            raise BadInput(
                f"teacher {spec} knows other classes than {dataset.spec!r}, or in another order: "
                "give one trained on this data"
            )
        return loaded.model, loaded.preprocess
    require_model(spec, kind="teacher")
    Root(spec)
    try:
        with keyed.global_rng(0, "teacher"):
            fresh: dict[str, Any] = {} if weights is None else {"num_classes": len(dataset.classes)}
            teacher = timm.create_model(spec, pretrained=weights is None, **fresh)
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LeanvitError(f"the weights of teacher {spec} cannot be had ({reason}): give --teacher-weights") from error
    if weights is not None:
        load_weights(teacher, Path(weights), name=spec, option="--teacher-weights", log=log)
    return teacher.eval(), Preprocess.of(teacher)
