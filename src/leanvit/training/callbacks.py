"""What happens around the steps of `fit`.

A callback is any object with some of these methods, in the order of their calls; those of a `run` get the `Run`:

    prepare(model)        once, before averages, sharding and optimiser exist (and before a state is loaded, when
                          resuming): puts temporary modules into the model, in place, under keyed randomness
    start(run)            once, after everything is built (and restored, when resuming)
    before_forward(run)   before each forward (`accumulate` of them make a step), inside the step's keyed randomness
    before_step(run)      before each optimiser step, with its gradients: unscaled, complete over the processes, not yet
                          clipped. It may change them; "grad_norm" and clipping are then of what it leaves
    after_step(run)       after each optimiser step, before the averaged weights are updated; run.step already counts
                          it. The step's gradients are still there, multiplied by run.grad_factor
    end_epoch(run)        after validation; run.history[-1] is the epoch's row
    finish(run)           once, after the last step
    close(run)            always at the very end of the steps, error or not: for terminals and files
    deploy(model)         takes what `prepare` put in out of a model, in place, so that its state dict is that of a
                          model that was never prepared

A step that fp16 leaves out has neither `before_step` nor `after_step`. Several callbacks are called in their order, for
`deploy` in the reverse one.

`deploy` is called with copies of the model, too: it has to find its modules in the model that it is given. What is
kept or given back has gone through it: best weights, the averaged model, the result. So has the model that `fit` was
given where it ends by an error or a signal: it then holds the weights so far, without temporary modules (under FSDP2,
after an error, the weights from before). Validation runs the model as it trains, and the resumable state holds all.

A callback that is an `nn.Module` is saved with the run, under the name of its class, and restored before `start`. Its
state has to be alike on all processes; its parameters are not trained.

A callback steers the model through `run.context`, and may end the run with `run.stop()`. What it decides must follow
from `run.step`, keyed randomness and the state that is saved with the run: then a resumed run goes on as it would have.
Each of several processes calls its own callbacks: those that change the model or its gradients have to be there on all
of them; one that writes or shows something asks `run.world.first`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from leanvit.data import Preprocess, keyed
from leanvit.errors import BadInput, LeanvitError
from leanvit.files import write_atomic
from leanvit.knobs import Count, check
from leanvit.tasks import Classification, Task
from leanvit.tasks.objectives import Objective
from leanvit.training.config import FitConfig
from leanvit.training.schedule import total_steps
from leanvit.training.world import World

HOOKS = (
    "prepare", "start", "before_forward", "before_step", "after_step", "end_epoch", "finish", "close", "deploy",
)  # fmt: skip


@dataclass(kw_only=True)
class Run:
    """A run while it runs: what callbacks may read, and `context`, which they may write."""

    model: nn.Module
    given: nn.Module  # what `fit` was given: the model, or under FSDP2 what it is a sharded copy of
    objective: Objective
    optimizer: Optimizer
    config: FitConfig
    preprocess: Preprocess
    steps_per_epoch: int
    averager: ModelEmaV3 | None = None
    saved: Mapping[str, nn.Module] = field(default_factory=dict)  # callbacks that are saved with the run, by name
    flags: Mapping[str, bool] = field(default_factory=dict)  # which parameters of `given` required a gradient
    sparse: Sequence[nn.Parameter] = ()  # whose exact zeros stay (`leanvit.training.zeros`)
    mix: Mixup | None = None
    task: Task = field(default_factory=Classification)  # what outputs mean, and how validation judges them
    step: int = 0  # optimiser steps taken so far
    epoch: int = 0  # the epoch under way, from 0
    micro: int = 0  # which forward of the step, from 0 to accumulate - 1
    context: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the next forward
    lr: float = 0.0  # of the last step
    losses: dict[str, float] = field(default_factory=dict)  # of the last step: "loss", its parts, "grad_norm"
    epoch_sums: dict[str, float] = field(default_factory=dict)  # the same, summed over the epoch's steps so far
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per finished epoch
    best_score: float | None = None  # of `metric`
    seconds: float = 0.0  # spent so far, the earlier sittings of a resumed run included
    world: World = field(default_factory=World)  # this process among those of the run
    forward: nn.Module  # the step as it is called: objective and model, under DDP where there are several processes
    scaler: torch.amp.GradScaler
    grad_factor: float = 1.0  # what clipping (by "norm") multiplied the last step's gradients by
    skipped: int = 0  # steps of the epoch under way that fp16 overflow left out
    ends_at: int | None = None  # a callback that will end the run earlier sets the step here, at its start
    stopped: bool = False  # the run has ended before its last step, because a callback requested it

    @property
    def metric(self) -> str:
        """What validation measures, by its name in the history."""
        return self.task.metric.name

    @property
    def ema(self) -> nn.Module | None:
        """The averaged model, if the recipe has one."""
        return None if self.averager is None else self.averager.module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return total_steps(self.config, self.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, the last of which may be a part of one."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def epoch_steps(self) -> int:
        """Steps of the epoch under way: all of it, or in the last one what is left of the run."""
        return min(self.steps_per_epoch, self.total_steps - self.epoch * self.steps_per_epoch)

    @property
    def last_step(self) -> int:
        """The step at which the run ends: its last one, or the one at which a callback will end it."""
        return self.total_steps if self.ends_at is None else min(self.ends_at, self.total_steps)

    @property
    def into_epoch(self) -> int:
        """Steps of the epoch under way that are done."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 0) whose validation was the best, the first of equal ones; None without validation."""
        if self.best_score is None:
            return None
        return next((int(row["epoch"]) for row in self.history if row.get(self.metric) == self.best_score), None)

    def stop(self) -> None:
        """End the run after this step: it is validated, `finish` is called, and it is saved as finished."""
        self.stopped = True


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Refuse what would never be called: a class instead of an instance, or an object without any hook; and what would
    put temporary modules in, and never take them out."""
    for callback in callbacks:
        if isinstance(callback, type):
            raise BadInput(f"callbacks holds the class {callback.__name__}: give an instance of it")
        if not any(callable(getattr(callback, hook, None)) for hook in HOOKS):
            raise BadInput(
                f"callbacks holds {callback!r}, which has none of the methods that are called: {', '.join(HOOKS)}"
            )
        if callable(getattr(callback, "prepare", None)) and not callable(getattr(callback, "deploy", None)):
            raise BadInput(
                f"callbacks holds {callback!r}, which has prepare(model), but no deploy(model): give it one, which "
                "takes out again what prepare puts in"
            )


def prepare_model(model: nn.Module, callbacks: Iterable[object], *, seed: int) -> None:
    """Call `prepare` on every callback that has it. Where one fails, what those before it put in is taken out."""
    done: list[object] = []
    try:
        with keyed.global_rng(seed, "prepare"):
            for callback in preparing(callbacks):
                callback.prepare(model)
                done.append(callback)
    except BaseException:
        deploy_model(model, done)
        raise


def deploy_model(model: nn.Module, callbacks: Iterable[object]) -> None:
    """Take out of a model, in place, what callbacks have put in: the last one first."""
    for callback in reversed(preparing(callbacks)):
        callback.deploy(model)


def preparing(callbacks: Iterable[object]) -> list[Any]:
    """The callbacks that put temporary modules into a model."""
    return [callback for callback in callbacks if callable(getattr(callback, "prepare", None))]


def has_hook(callbacks: Iterable[object], hook: str) -> bool:
    """Whether one of the callbacks is called at `hook`."""
    return any(getattr(callback, hook, None) is not None for callback in callbacks)


def saved_callbacks(callbacks: Iterable[object], objective: nn.Module) -> dict[str, nn.Module]:
    """The callbacks that are saved with a run, by the names of their classes; a second of a class is `Class#2`.

    Those that are part of the objective are saved with it.
    """
    parts = {id(module) for module in objective.modules()}
    found: dict[str, nn.Module] = {}
    for callback in callbacks:
        if isinstance(callback, nn.Module) and id(callback) not in parts:
            kind = type(callback).__name__
            count = sum(name.partition("#")[0] == kind for name in found)
            found[f"{kind}#{count + 1}" if count else kind] = callback
    return found


def notify(callbacks: Iterable[object], hook: str, run: Run) -> None:
    """Call `hook` on every callback that has it, in their order."""
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(run)


class JsonlLog:
    """Writes one JSON object a line: the recipe, every `every`-th step, every epoch.

    A resumed run continues its file: rows past the step that it resumes from are dropped first, so the file reads as
    if the run had never stopped.
    """

    def __init__(self, path: str | Path, *, every: int = 10) -> None:
        self.path = Path(path)
        self.every: int = check("every", every, Count)
        self._file: TextIO | None = None

    def start(self, run: Run) -> None:
        """Open the file, keeping the rows of the steps that the run already holds."""
        if not run.world.first:
            return
        kept = self._rows_until(run) if run.step else []
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, lambda temporary: temporary.write_text(text))
        self._file = self.path.open("a")
        said = {} if run.task.label_kind else {"metric": asdict(run.task.metric)}
        row = {"event": "start", "step": run.step, "total_steps": run.total_steps, **run.config.to_json(), **said}
        self._write(row)

    def after_step(self, run: Run) -> None:
        """Write the step's learning rate and losses."""
        if run.step % self.every == 0:
            self._write({"event": "step", "step": run.step, "epoch": run.epoch, "lr": run.lr, **run.losses})

    def end_epoch(self, run: Run) -> None:
        """Write the epoch's row."""
        self._write({"event": "epoch", **run.history[-1]})

    def close(self, run: Run) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when it was written to
                self._file.close()
            self._file = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise LeanvitError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _rows_until(self, run: Run) -> list[dict[str, Any]]:
        rows = [_row(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [row for row in rows if row and not _is_later(row, run)]


class ProgressBar:
    """A live bar over all steps: last loss and score, images/s and the time left; silent off a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console or Console(stderr=True),
            transient=True,
        )

    def start(self, run: Run) -> None:
        """Show the bar."""
        if not run.world.first:
            return
        self._progress.start()
        self._task = self._progress.add_task("training", total=run.last_step, completed=run.step)

    def after_step(self, run: Run) -> None:
        """Advance by one step."""
        if not run.world.first:
            return
        last = next((row[run.metric] for row in reversed(run.history) if run.metric in row), None)
        score = "" if last is None else f" · {run.task.metric.text(last)}"
        text = f"epoch {run.epoch + 1}/{run.epochs} · loss {run.losses['loss']:.3f}{score}"
        speed = self._progress.tasks[self._task].speed  # steps/s of the last half minute
        images = "" if speed is None else f" · {speed * run.config.batch_size * run.config.accumulate:.0f} images/s"
        self._progress.update(self._task, completed=run.step, description=f"{text}{images}")

    def close(self, run: Run) -> None:
        """Give the terminal back."""
        self._progress.stop()
        for task in self._progress.task_ids:  # another training may use the bar
            self._progress.remove_task(task)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # a killed run can leave its last line half written
        return None
    return row if isinstance(row, dict) else None


def _is_later(row: dict[str, Any], run: Run) -> bool:
    if row.get("event") == "epoch":
        return row.get("epoch", 0) >= len(run.history)
    return row.get("step", 0) > run.step
