"""Recovery: the training that follows compression. Its settings, checked before any work, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torch import nn

from leanvit import tasks
from leanvit.data import keyed
from leanvit.errors import BadInput, nearest
from leanvit.knobs import Choice, Count, Fraction, Positive, check_fields
from leanvit.recipe.learning import Data
from leanvit.recipe.protocol import ChecksTeacher, Method
from leanvit.recipe.training_methods import (
    COMPRESS_AGAIN,
    as_rows,
    callbacks_of,
    check_recovery_methods,
    objective_method,
    require_one_objective,
)
from leanvit.recipe.training_steps import BATCH, Training, fitting_batch
from leanvit.training.world import join_world

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset
    from leanvit.tasks import Task
    from leanvit.training import FitConfig, Objective

_OF_DISTILLATION = ("alpha", "temperature", "distillation")
_FROM_ELSEWHERE = {
    "seed": "the seed is that of the whole compression (seed=, --seed)",
    "samples": "a recovery is so many epochs long (epochs=, --recover)",
    "methods": "ways to train are given by themselves (methods=, --recover-with)",
}
_NO_NUMBERS = ("settings", "log", "methods")


def _distillations() -> tuple[str, ...]:
    from leanvit.training.recovery import DISTILLATIONS

    return DISTILLATIONS


@dataclass(frozen=True)
class Recovery:
    """Training after compression: distillation from the root with its original weights, or from another teacher.

    By default once, after the last method that leaves weights to train; `each` does it after every such method. The
    recipe is `training.RECOVERY` with these numbers. Where a method brings the objective, of the compression or of
    `methods`, it takes the place of distillation; `alpha`, `temperature` and `distillation` are then its knobs' to say,
    and refused here.
    """

    epochs: Count = 3
    lr: Positive = 1e-4
    batch_size: Count | None = None  # None: 64, fewer where an epoch would not have four steps of them
    alpha: Fraction = 0.5  # weight of the distillation term, 0 to 1
    temperature: Positive = 2.0  # of soft distillation
    distillation: Annotated[str, Choice(_distillations)] = "soft"  # the teacher's distribution, or its decision
    each: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # any other field of `FitConfig`
    log: str | Path | None = None  # JSON lines of steps and epochs go there; of several recoveries the last
    methods: tuple[Any, ...] = ()  # ways to train without parts of their own: an objective (of one of them), callbacks

    def __post_init__(self) -> None:
        check_recovery_methods(self.methods)
        check_fields(self, "recovery ")
        self.config(seed=0)

    @classmethod
    def of(cls, values: Mapping[str, Any], methods: tuple[Any, ...] = ()) -> Recovery:
        """From one flat table of numbers: its own, and fields of `FitConfig` (those of a published recipe, say)."""
        own = {f.name for f in fields(cls)}.difference(_NO_NUMBERS)
        settings = {name: value for name, value in values.items() if name not in own}
        numbers = {name: value for name, value in values.items() if name in own}
        return cls(**numbers, settings=settings, methods=methods)

    def config(self, *, seed: int) -> FitConfig:
        """The whole recipe. Raises `BadInput` for a setting that there is not, or a value that is not accepted."""
        from leanvit.training import RECOVERY, FitConfig

        own = {f.name for f in fields(self)}
        known = {f.name for f in fields(FitConfig)} - own - _FROM_ELSEWHERE.keys()
        for name in self.settings:
            if name not in known:
                why = _FROM_ELSEWHERE.get(name) or nearest(name, known | own.difference(_NO_NUMBERS))
                raise BadInput(f"recovery has no setting {name!r}: {why}")
        given = {"epochs": self.epochs, "lr": self.lr, "batch_size": self.batch, "seed": seed, **self.settings}
        if "warmup_steps" in self.settings:
            given.setdefault("warmup_epochs", 0.0)
        try:
            return replace(RECOVERY, **given)
        except BadInput as error:
            raise BadInput(f"recovery: {error}") from None

    @property
    def batch(self) -> int:
        """Images a forward: those that are given or chosen, else 64."""
        return BATCH if self.batch_size is None else self.batch_size

    def chosen_for(self, dataset: AnyDataset, was: int | None = None) -> Recovery:
        """With a batch of which the data fills a few, unless one is given.

        was: that of an interrupted compression that is gone on with.
        """
        if self.batch_size is not None:
            return self
        images = len(dataset) // self.config(seed=0).accumulate
        return replace(self, batch_size=was or fitting_batch(images, least=max(2, self._shared_by())))

    def _shared_by(self) -> int:
        """What a batch is a multiple of: the processes share it, in pairs where images are mixed."""
        size = join_world().size
        return size * (2 if size > 1 and self.config(seed=0).mixes else 1)

    def training(self, dataset: AnyDataset) -> Training:
        """Its length on a data set."""
        from leanvit.data import epoch_length

        config = self.config(seed=0)
        steps = epoch_length(dataset, config.repeats) // config.batch_size // config.accumulate
        return Training("recovery", self.epochs, self.epochs * steps, config.batch_size * config.accumulate)

    def numbers(self) -> dict[str, Any]:
        """The flat table that `of` takes."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_NUMBERS}
        return {**own, **self.settings}

    def to_json(self) -> dict[str, Any]:
        """All that decides its result, as JSON data."""
        free = {"workers", "save_every"}  # of FitConfig: they never change a result
        recipe = {name: value for name, value in self.config(seed=0).to_json().items() if name not in free | {"seed"}}
        own = {**self.numbers(), "batch_size": self.batch}
        ways = {"methods": as_rows(self.methods)} if self.methods else {}
        return {**recipe, **{k: v for k, v in own.items() if k not in self.settings}, **ways}


def check_needs(
    methods: Sequence[Method], data: Data | AnyDataset | None, recovery: Recovery | None, model: OpenModel | None = None
) -> None:
    """Raise `BadInput` unless methods and recovery get the images that they need."""
    hungry = [m.slug for m in methods if m.needs_data or m.trains]
    if hungry and data is None:
        raise BadInput(f"{', '.join(hungry)} calibrates on images: give data")
    if recovery is None:
        return
    if data is None:
        raise BadInput("recovery trains: give data")
    if not any(m.trainable_after for m in methods):
        named = ", ".join(m.slug for m in methods) or "no method"
        raise BadInput(f"recovery: {named} leaves nothing to train")
    check_objectives(methods, recovery)
    dataset: Any = getattr(data, "dataset", data)
    _check_dataset(recovery, dataset, tasks.of(model, dataset, getattr(data, "task", None)))


def check_objectives(methods: Sequence[Method], recovery: Recovery) -> None:
    """Raise unless at most one method brings the objective of the recovery, its own ways to train counted, and no
    number goes with another one.

    Raises:
        Refused: two methods bring one (both are named).
        BadInput: alpha, temperature or distillation is given for an objective that is a method's.
    """
    require_one_objective(methods, "the recovery", COMPRESS_AGAIN)
    require_one_objective([*methods, *recovery.methods], "the recovery", "leave the way to train out")
    bringing = objective_method([*methods, *recovery.methods])
    if bringing is None:
        return
    usual = {f.name: f.default for f in fields(Recovery)}
    for name in _OF_DISTILLATION:
        if getattr(recovery, name) != usual[name]:
            raise BadInput(
                f"recovery {name} is {getattr(recovery, name)!r}, but {bringing.slug} brings the objective of the "
                f"recovery: leave it out, and use the knobs of {bringing.slug}"
            )


def check_teachers(methods: Sequence[Method], recovery: Recovery | None, model: OpenModel, teacher: nn.Module) -> None:
    """Raise `Refused` unless the methods of a compression and the recovery's own can learn from the teacher in it."""
    for m in () if recovery is None else (*methods, *recovery.methods):
        if isinstance(m, ChecksTeacher):
            m.check_teacher(model, teacher)


def _check_dataset(recovery: Recovery, dataset: Any, task: Task) -> None:
    from leanvit.training.recovery import check_distillation

    config = recovery.config(seed=0)
    images = len(dataset)
    batch = recovery.chosen_for(dataset).batch
    if images < batch:
        raise BadInput(
            f"recovery batch_size is {batch}, and there are {images} training images; accepted: up to {images} "
            f"(--recover-batch {images}, Recovery(batch_size={images})), or more images (--limit)"
        )
    if batch % (by := recovery._shared_by()):
        raise BadInput(
            f"recovery batch_size is {batch}, which {join_world().size} processes share; accepted: a multiple of {by} "
            "(--recover-batch)"
        )
    if images < batch * config.accumulate:
        raise BadInput(
            f"recovery takes {config.accumulate} batches of {batch} a step (accumulate), and there are {images} "
            f"training images; accepted: up to {images} a step (--recover-set accumulate=N, --recover-batch N)"
        )
    check_distillation(recovery.distillation, task)
    if config.mixes and not task.mixes:
        raise BadInput(f"recovery mixes images (mixup, cutmix), but the data is {task.words}: set both to 0")


def recovery_points(methods: Sequence[Method], recovery: Recovery | None) -> set[int]:
    """After which methods recovery runs: the last one that training may follow (or every one)."""
    trainable = []
    for i, m in enumerate(methods):
        if not m.trainable_after:
            break  # what comes later stands on rounded weights
        trainable.append(i)
    if recovery is None or not trainable:
        return set()
    return set(trainable) if recovery.each else {trainable[-1]}


def run_recovery(
    lean: OpenModel, teacher: nn.Module, done: Sequence[Method], data: Data, recovery: Recovery
) -> OpenModel:
    """Train a lean model in place, with the callbacks of the methods that it stands on and of the recovery's own, and
    the objective of the one that brings it; goes on where `data.out` holds a state."""
    from leanvit.training import JsonlLog, recover

    callbacks = [*callbacks_of([*done, *recovery.methods], lean), *data.callbacks]
    callbacks += [JsonlLog(recovery.log)] if recovery.log else []
    config = recovery.config(seed=data.seed)
    result = recover(
        lean,
        teacher,
        data.dataset,
        preprocess=data.preprocess,
        config=config,
        alpha=recovery.alpha,
        temperature=recovery.temperature,
        distillation=recovery.distillation,
        objective=_objective(lean, done, replace(data, teacher=teacher), recovery),
        callbacks=callbacks,
        out=data.out,
        resume=data.resume,
        convert=True,  # whether data and model fit was decided when the dense model was made
        task=data.task,
    )
    if result.ema is not None:
        lean.load_state_dict(result.ema.state_dict())
    return lean


def reads_labels(model: OpenModel, data: Data, recovery: Recovery) -> bool:
    """Whether a recovery reads what its task reads: where a way to train brings the objective, as that says."""
    way = objective_method(recovery.methods)
    if way is None:
        return True
    return _brought(way, model, data, recovery.config(seed=data.seed)).needs_labels


def _brought(way: Any, model: OpenModel, data: Data, config: FitConfig) -> Objective:
    with keyed.global_rng(data.seed, "objective"):  # of its own parameters, as in `train`
        brought: Objective = way.objective(model, data, config)
    return brought


def _objective(lean: OpenModel, done: Sequence[Method], data: Data, recovery: Recovery) -> Objective | None:
    """What the recovery minimises; None: the distillation of the task."""
    config = recovery.config(seed=data.seed)
    if (way := objective_method(recovery.methods)) is not None:
        return _brought(way, lean, data, config)
    if (bringing := objective_method(done)) is not None:
        made: Objective | None = bringing.objective(lean, data, config)
        return made
    return None
