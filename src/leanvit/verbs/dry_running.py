"""`train --dry-run`: a training built whole and run for one step, to report what it will take. Writes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from leanvit import tasks
from leanvit.data import Batch, Dataset, epoch_length, keyed, loader
from leanvit.errors import BadInput
from leanvit.measure import count, environment
from leanvit.recipe.text import as_text
from leanvit.recipe.training_methods import given_by
from leanvit.recipe.training_steps import counted
from leanvit.tasks import Task, read_task
from leanvit.training import lr_at
from leanvit.training.assemble import assemble, bytes_needed, release
from leanvit.training.callbacks import Run
from leanvit.training.locked import into_training, is_locked
from leanvit.training.step import mixed
from leanvit.training.train_recipe import MeantFor
from leanvit.training.validating import autocast
from leanvit.verbs.fitting import require_fit, with_classes_of
from leanvit.verbs.models import Log, row_name, silent
from leanvit.verbs.progress import duration
from leanvit.verbs.requesting import TrainingRequest, objective, start_model, training_request, with_methods
from leanvit.verbs.training import Ready, prepare, steering

if TYPE_CHECKING:
    from rich.table import Table

SECONDS = 10.0  # spent on timing steps
_GROWTH = 4
_TRIES = 3


@dataclass(frozen=True)
class DryRun:
    """What a training will be and take. Times are estimates from `timed_images` images on this machine."""

    model: str
    recipe: str | None
    data: str
    stand_in: bool  # whether the images were made up, as no data was given
    target: Mapping[str, Any] | None
    teacher: str | None
    methods: tuple[str, ...]  # ways to train
    parameters: int
    trained_parameters: int
    macs: int  # of one image
    images: int  # in the training split
    epoch_images: int  # that an epoch takes, views counted
    batch_size: int
    accumulate: int
    effective_batch: int
    lr: float
    lr_text: str
    first_lr: float
    min_lr: float
    epochs: int
    steps_per_epoch: int
    steps: int
    disk_bytes: int
    loss: float  # of the first images
    timed_images: int
    seconds_per_step: float
    seconds: float  # of all steps; validation not counted
    device: str
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        """Everything as a rich table of two columns."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="dry run: nothing was written", show_header=False)
        for row in self._rows():
            table.add_row(*(Text(text) for text in row))
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self.recipe:
            yield "recipe", self.recipe
            yield "target", _target_text(self.target)
        given = ", ".join(f"{name}={value}" for name, value in self.overrides.items())
        yield "given over it" if self.recipe else "given", given or "–"
        yield "model", self.model
        if self.teacher:
            yield "teacher", self.teacher
        for text in self.methods:
            yield "trains with", text
        frozen = self.parameters - self.trained_parameters
        yield "parameters", f"{self.parameters:,}" + (f" ({frozen:,} of them frozen)" if frozen else "")
        yield "MACs an image", f"{self.macs / 1e9:.3f} G"
        made_up = " (made up: no --data)" if self.stand_in else ""
        yield "training images", f"{self.images:,} of {self.data}{made_up}; {self.epoch_images:,} an epoch"
        yield "global batch", f"{self.batch_size} images a forward"
        yield "effective batch", f"{self.effective_batch} images a step, in {self.accumulate} x {self.batch_size}"
        yield "learning rate", f"{self.lr_text}; from {self.first_lr:.3g}, to {self.min_lr:.3g}"
        whole = self.steps == self.epochs * self.steps_per_epoch
        epochs = f"{counted(self.epochs, 'epoch')} x {self.steps_per_epoch:,} = {self.steps:,}"
        yield "steps", epochs if whole else f"{self.steps:,}, an epoch has {self.steps_per_epoch:,}"
        yield "disk needed", f"{self.disk_bytes / 1e6:,.0f} MB"
        yield "loss at the start", f"{self.loss:.4f}"
        yield "seconds a step", f"{self.seconds_per_step:.3g} ({self.timed_images} images timed, {self.device})"
        yield "time estimate", f"{duration(self.seconds)}, validation not counted"


def dry_run(
    name: str | Path | None,
    data: str | None = None,
    *,
    adapt: bool = False,
    convert: bool = False,
    class_names: str = "by-name",
    task: Task | str | None = None,
    limit: int | None = None,
    seconds: float = SECONDS,
    log: Log = silent,
    **request: Any,
) -> DryRun:
    """Build a training as `train` would, with its arguments, and run the start of its first step.

    Args:
        data: None: images of the size and number that the recipe is meant for, made up.
        seconds: about how long steps are timed: on two images first, then on more, up to a batch.
        request: `recipe`, `settings`, `model_args`, `teacher` and so on: see `train`.

    Raises:
        BadInput, Refused: as `train`.
    """
    wanted = training_request(name, log=log, **request)
    if data is not None:
        fitting: dict[str, Any] = {"adapt": adapt, "convert": convert, "class_names": class_names, "task": task}
        ready = prepare(wanted, data, **fitting, limit=limit, log=log)
    else:
        ready = _made_up(wanted, adapt=adapt, task=read_task(task), log=log)
    wanted = ready.request
    callbacks = steering(ready)
    run = assemble(
        ready.start.model,
        ready.dataset,
        ready.start.preprocess,
        ready.config,
        objective=ready.objective,
        validate=ready.judged,
        task=ready.task,
        convert=ready.convert,
        callbacks=callbacks,
    )
    disk = bytes_needed(run)
    images, per_image, loss = _timed(run, ready, seconds)
    release(ready.start.model, callbacks, run.flags)
    config = ready.config
    effective = config.batch_size * config.accumulate
    cost = count(ready.start.model.eval(), ready.start.preprocess.input_size)
    model = ready.start.model
    return DryRun(
        model=f"{model.history.root.name} {dict(model.history.root.kwargs)} ({row_name(model)})",
        recipe=None if wanted.recipe is None else f"{wanted.recipe.name}: {wanted.recipe.title}",
        data=ready.dataset.spec,
        stand_in=data is None,
        target=wanted.recipe.target.model_dump() if wanted.recipe and wanted.recipe.target else None,
        teacher=None if wanted.distill is None else f"{wanted.distill.teacher} ({wanted.distill.kind})",
        methods=tuple(f"{as_text(m)} ({given_by(m)})" for m in wanted.methods),
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=_trained(model, config.locked),
        macs=cost.macs,
        images=len(ready.dataset),
        epoch_images=epoch_length(ready.dataset, config.repeats),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        effective_batch=effective,
        lr=config.lr,
        lr_text=config.lr_text,
        first_lr=lr_at(0, config, steps_per_epoch=run.steps_per_epoch),
        min_lr=config.lr if config.schedule == "constant" else config.min_lr,
        epochs=run.epochs,
        steps_per_epoch=run.steps_per_epoch,
        steps=run.total_steps,
        disk_bytes=disk,
        loss=loss,
        timed_images=images,
        seconds_per_step=per_image * effective,
        seconds=per_image * effective * run.total_steps,
        device=str(next(model.parameters()).device),
        environment=environment(),
        config=wanted.config.to_json(),
        overrides=wanted.overrides,
    )


def _trained(model: nn.Module, locked: Sequence[str]) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not is_locked(name, locked))


# --- the step --------------------------------------------------------------------------------------------------------


def _timed(run: Run, ready: Ready, seconds: float) -> tuple[int, float, float]:
    """(images that were timed at once, seconds an image, the loss of the first ones); decoding is counted.

    Two images first, then four times as many while time is left, up to a batch; the last size again, for its best.
    """
    begun = time.perf_counter()
    largest = min(run.config.batch_size, len(ready.dataset))
    size, tries, best, first = min(2, largest), 0, math.inf, math.nan
    while tries < _TRIES:
        found, loss = _per_image(run, ready, size)
        first = loss if math.isnan(first) else first
        left = seconds - (time.perf_counter() - begun)
        following = min(size * _GROWTH, largest)
        if following > size and found * following < left:
            size = following
            continue
        best, tries = min(best, found), tries + 1
        if found * size > left:
            break
    return size, best, first


def _per_image(run: Run, ready: Ready, size: int) -> tuple[float, float]:
    loading, batch = _load(ready, size)
    running, loss = _step(run, batch)
    workers = run.config.workers
    return (max(loading / workers, running) if workers else loading + running) / len(batch), loss


def _load(ready: Ready, size: int) -> tuple[float, Batch]:
    dataset: Any = ready.dataset
    few = dataset.take(range(size)) if isinstance(dataset, Dataset) else dataset.limited(size)
    config = ready.config
    begun = time.perf_counter()
    batches = loader(
        few,
        ready.start.preprocess,
        batch_size=size,
        seed=config.seed,
        train=True,
        augment=config.augment,
        repeats=config.repeats,
    )
    batch = next(islice(batches, 1))
    return time.perf_counter() - begun, batch


def _step(run: Run, batch: Batch) -> tuple[float, float]:
    """One forward, backward and optimiser step: seconds and loss. The weights are not used afterwards."""
    config = run.config
    device = next(run.model.parameters()).device
    into_training(run.model, config)
    run.objective.train()
    begun = time.perf_counter()
    with keyed.global_rng(config.seed, "step", 0):
        batch = mixed(batch.to(device), run)
        value = 0.0
        for piece in range(run.objective.pieces):
            with autocast(device, config.amp):
                loss = run.objective.piece(piece, run.model, batch, 0, run.context)
            loss.total.backward()
            value += float(loss.total.detach())
    if not math.isfinite(value):
        raise BadInput(
            f"the loss of the first batch is {value}: its images are {', '.join(batch.keys[:8])}; look at "
            "them (leanvit data DATA --all), and at the weights that the model starts from"
        )
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begun, value


# --- data that is made up --------------------------------------------------------------------------------------------


def _made_up(request: TrainingRequest, *, adapt: bool, task: Task | None, log: Log) -> Ready:
    meant = None if request.recipe is None else request.recipe.data
    if meant is None:
        raise BadInput("a dry run without --data needs a recipe that names the data it is meant for (leanvit recipes)")
    dataset = stand_in(meant)
    log(f"data: {dataset!r}, made up")
    start = start_model(request, adapt_to=dataset if adapt else None, log=log)
    by_position = "by-position"  # what is made up has numbers for names
    convert = require_fit(start, dataset, adapted=adapt, convert=request.convert, trains=True, class_names=by_position)
    dataset = with_classes_of(start, dataset, class_names=by_position, trains=True)
    start = with_methods(request, start, dataset, log=log)
    task = tasks.of(start.model, dataset, task)
    task.check("train", model=start.model, dataset=dataset)
    goal, config = objective(request, start, dataset, task, log=log)
    return Ready(request, start, dataset, dataset, config, goal, convert, task)


def stand_in(meant: MeantFor) -> Dataset:
    """Images of one colour each, as many and as large as the data that a recipe is meant for; none is kept."""
    return Dataset(
        name=meant.name,
        spec=meant.name,
        split="train",
        classes=[str(number) for number in range(meant.classes)],
        keys=_Keys(meant.images),  # type: ignore[arg-type]
        targets=np.arange(meant.images) % meant.classes,
        rows=np.arange(meant.images),
        images=_Plain(meant.channels, meant.image_size),
        channels=meant.channels,
        image_size=(meant.image_size, meant.image_size),
    )


@dataclass(frozen=True)
class _Keys(Sequence[str]):
    total: int

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: Any) -> Any:
        return f"made-up/{index}"


@dataclass(frozen=True)
class _Plain:
    channels: int
    side: int

    def __getitem__(self, row: int) -> Image.Image:
        level = row % 256
        mode, colour = ("L", level) if self.channels == 1 else ("RGB", (level, 255 - level, 128))
        return Image.new(mode, (self.side, self.side), colour)  # type: ignore[arg-type]


def _target_text(target: Mapping[str, Any] | None) -> str:
    if target is None:
        return "–"
    figure = "" if target["percent"] is None else f"{target['percent']:g} % {target['metric']}, "
    return f"{figure}{target['data']}: {target['conditions']}"
