"""`compress`: methods applied to a model in order, recovered, measured step by step, and saved as a run folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanvit import tasks
from leanvit.anatomy import OpenModel
from leanvit.data import AnyDataset
from leanvit.data.classes import listed
from leanvit.data.preprocess import own_settings
from leanvit.errors import BadInput
from leanvit.knobs import Count, check
from leanvit.measure import Comparison, Predictions, compare
from leanvit.recipe import (
    Data,
    Recovery,
    check_needs,
    check_order,
    check_slots,
    choices,
    fit_to_data,
    is_resumable,
    knobs_of,
    missed,
    trainings,
    trains,
)
from leanvit.recipe import compress as compress_model
from leanvit.recipe.compressing import chosen_part
from leanvit.recipe.history import part_of
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import Method
from leanvit.recipe.steps import ABOUT, STEPS, clear_steps, saved_about
from leanvit.report.values import share_in_words, shown
from leanvit.runs.clearing import clear_run
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder, require_writable
from leanvit.runs.layout import MEASURED, RUN
from leanvit.runs.locking import locked, refuse_if_held
from leanvit.runs.measurements import keep
from leanvit.runs.saving import TargetRow, asked_rows, save_compressed
from leanvit.runs.token_maps import keep_tokens
from leanvit.tasks import Task, read_task
from leanvit.training.world import join_world, training_device
from leanvit.verbs.fitting import require_fit, with_classes_of, with_labels_of, with_range_of, with_task
from leanvit.verbs.models import (
    Loaded,
    Log,
    as_runner,
    load_model,
    log_bad,
    open_split,
    row_name,
    silent,
)
from leanvit.verbs.progress import meter, progress
from leanvit.verbs.shares import KINDS, Tally, achieved_by
from leanvit.verbs.stopping import explains_how_to_resume

if TYPE_CHECKING:
    from rich.table import Table

MEASURING = "measuring what compress makes (--measure)"


@dataclass(frozen=True)
class Compressed:
    """What a compression gave."""

    folder: Path
    label: str
    asked: tuple[TargetRow, ...]
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "label": self.label,
            "asked": [row.to_json() for row in self.asked],
            "comparison": None if self.comparison is None else json.loads(self.comparison.to_json()),
        }

    def target_table(self) -> Table:
        """A rich table: method, requested, achieved."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for heading, share in (("method", 1), ("requested", 3), ("achieved", 4)):
            table.add_column(heading, ratio=None if share == 1 else share, overflow="fold")
        for row in self.asked:
            achieved = Text(_pairs(row.achieved))
            for line in share_in_words(row.share):
                achieved.append(f"\n{line}")
            for miss in row.missed:
                achieved.append(f"\nmissed: {miss}", style="bold red")
            table.add_row(Text(row.method), Text(_pairs(row.asked)), achieved)
        return table


def compress(
    model: str | Path,
    methods: Sequence[Method],
    data: str | None = None,
    *,
    recovery: Recovery | None = None,
    teacher: str | Path | None = None,
    adapt: bool = False,
    convert: bool = False,
    class_names: str = "by-name",
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    latency_batch: int = 8,
    measured: bool = True,
    task: Task | str | None = None,
    out: str | Path | None = None,
    part: str = "",
    resume: bool = False,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Compressed:
    """Apply methods to a model and save the lean one with its history.

    Under torchrun all processes make the same call and train together; the first one makes the folder, speaks, saves
    and measures, and gets the comparison.

    Args:
        model: timm name or run folder; `adapt`, `model_args`, `pretrained`, `weights`: see `load_model`;
            `convert`: see `train`; `class_names`: see `measure`. A run keeps the names of its classes.
        mean, std, crop_pct, interpolation: preprocessing of a timm name in the place of timm's configuration, a mean
            and a standard deviation (of pixels in 0 to 1) for each channel; saved in what is made from it.
        methods: methods like `EViT(keep_rate=0.7)`, in the order they are applied.
        data: data spec. Methods that calibrate and the recovery learn from its `train` split, which is opened only
            where something learns; `val` is measured.
        recovery: train after compression.
        teacher: run folder of the model that teaches in every training; default: the dense model.
        limit: images taken of each split.
        task: what the outputs mean, see `train`; default: as the run says, else what the labels of the data are for.
        part: of a run of a model of parts, the one that the methods are applied to; default: its main one.
        measured: compare dense, each step and all on the `val` split; needs data.
        out: run folder; default: `runs/MODEL-METHODS`. One that trains keeps its finished steps and its state in
            `steps/` there until all is done. resume: go on with the interrupted compression in it.

    Raises:
        BadInput, Refused: before any work starts, for what does not fit.
        Interrupted: stopped by Ctrl-C or SIGTERM while it can be resumed; the message gives the command.
    """
    watch = Stopwatch("compress", command)
    world = join_world()
    log = log if world.first else silent
    check("--batch", latency_batch, Count)
    with world.together():
        if out is not None and world.first:
            refuse_if_held(Path(out))
    settings = own_settings(mean, std, crop_pct, interpolation)
    if resume:
        _check_resume(out, methods, recovery)
    _check_teacher_is_asked(teacher, methods, recovery)
    learning = adapt or recovery is not None or any(m.needs_data or m.trains for m in methods)
    train = open_split(data, "train", seed=seed, limit=limit, log=log) if data is not None and learning else None
    if adapt and train is None:
        raise BadInput("--adapt needs --data, which it adapts to")
    start = load_model(
        model,
        model_args=model_args,
        pretrained=pretrained,
        weights=weights,
        adapt_to=train if adapt else None,
        preprocess_settings=settings,
        seed=seed,
        log=log,
    )
    part = chosen_part(start.model, part)
    target = part_of(start.model, part)
    check_order(target.traits(), methods, kept=target.kept_traits)
    check_slots(target, methods)
    validation = None if data is None else open_split(data, "val", seed=seed, limit=limit, log=log, beside=train)
    known = validation if train is None else train
    start = with_task(start, read_task(task), known, log=log)
    check_needs(methods, train, recovery, start.model)
    was = saved_about(Path(out)) if resume and out else None
    given, (methods, recovery) = methods, fit_to_data(methods, recovery, train, was)
    plan = trainings(methods, recovery, train)
    taught = None if teacher is None else _teacher(teacher, start)
    if validation is not None and measured:
        tasks.of(start.model, validation).check_judging(
            MEASURING, model=start.model, dataset=validation, instead="or --no-measure"
        )
    if known is not None:
        require_fit(start, known, adapted=adapt, convert=convert, class_names=class_names)
        start = with_labels_of(known, with_range_of(known, start))
    train = None if train is None else with_classes_of(start, train, class_names=class_names, log=log)
    validation = validation.cached() if validation is not None else None
    log_matched = log if train is None else silent
    mapped = (
        None if validation is None else with_classes_of(start, validation, class_names=class_names, log=log_matched)
    )
    name = "-".join([start.base, *(m.slug for m in methods)])
    if world.size > 1:
        start.model.to(training_device())
        if taught is not None:
            taught.model.to(training_device())
    claim = partial(new_folder, out, name, overwrite=overwrite, log=log)
    with ExitStack() as held:

        def claimed() -> Path:
            path = require_writable(out) if resume and out else claim()
            held.enter_context(locked(path, command=command, log=log))
            if overwrite and not resume:
                clear_steps(path)
            return path

        folder = world.from_first(claimed)
        for text in choices(given, methods, train):
            log(text)
        for training in plan:
            log(f"will train {training}")
        measures = measured and validation is not None and world.first
        rows = _Rows(first=row_name(start.model), log=log, keep=measures)
        tally = Tally(methods, asked_rows(start.info))

        def step_taken(label: str, step: OpenModel) -> None:
            rows.take(label, step)
            tally.take(label, step)

        kept = f"what is finished, and the state of the training, is in {folder / STEPS}"
        going_on = explains_how_to_resume(folder, command, verb="compress", about=ABOUT, kept=kept)
        resumable = is_resumable(methods, recovery)
        with going_on if resumable else nullcontext():
            lean = compress_model(
                start.model,
                methods,
                None if train is None else training_images(train, start, seed, log),
                recovery=recovery,
                teacher=None if taught is None else taught.model,
                on_step=step_taken,
                out=folder if resumable else None,
                resume=resume,
                part=part,
            ).cpu()
            asked = target_rows(methods, lean, tally)
            with world.together():
                if world.first:
                    # the old run stays until the new one takes its place, in one rename
                    clear_run(folder, overwrite=overwrite or resume, keep=(*RUN, STEPS, str(ABOUT)))
                    save_compressed(
                        lean,
                        folder,
                        asked,
                        preprocess=start.preprocess,
                        info=start.info,
                        data=data or "",
                        recovered_with=() if recovery is None else recovery.methods,
                        overwrite=overwrite or resume,
                    )
            if not world.first:  # nobody waits for what the first one measures
                return Compressed(folder, row_name(lean), asked, None)
            comparison = None
            if validation is not None and measured:
                runners = {name: as_runner(step, start.preprocess) for name, step in rows.models.items()}
                comparison = _compared(
                    runners, validation, folder, latency_batch=latency_batch, class_names=class_names, log=log
                )
            if mapped is not None:
                keep_tokens(folder, lean, mapped, start.preprocess, name=row_name(lean))
        watch.record(folder, wrote=MEASURED if comparison else "", before=start.commands)
        clear_steps(folder)
        log_bad(log, train, validation)
        return Compressed(folder, row_name(lean), asked, comparison)


# --- before any work ----------------------------------------------------------------------------------------------


def _check_resume(out: str | Path | None, methods: Sequence[Method], recovery: Recovery | None) -> None:
    if out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    if not is_resumable(methods, recovery):
        raise BadInput("--resume: nothing here trains, so there is no state to go on with; leave it out")
    if not (Path(str(out)) / ABOUT).is_file():
        raise BadInput(
            f"--resume: {out} holds no compression to go on with (there is no {ABOUT} in it): "
            "leave --resume out to begin one"
        )


def _check_teacher_is_asked(teacher: object, methods: Sequence[Method], recovery: Recovery | None) -> None:
    if teacher is not None and not trains(methods, recovery):
        raise BadInput(f"--teacher {teacher}: nothing here trains; give --recover EPOCHS, or leave it out")


def _teacher(spec: str | Path, start: Loaded) -> Loaded:
    """The run that teaches. Raises `BadInput` unless it answers to the same images with as many classes."""
    taught = load_model(spec)
    if taught.folder is None:
        raise BadInput(f"--teacher {spec} is a timm name, without trained weights; accepted: a run folder")
    if taught.preprocess.fingerprint() != start.preprocess.fingerprint():
        raise BadInput(
            f"--teacher {spec} knows images made with {taught.preprocess}, the model those made with "
            f"{start.preprocess}: give a teacher with the model's preprocessing"
        )
    if taught.classes and start.classes and taught.classes != start.classes:
        raise BadInput(
            f"--teacher {spec} knows the classes {listed(taught.classes)}, the model {listed(start.classes)}: give a "
            "teacher with the model's classes, in their order"
        )
    if taught.model.num_classes != start.model.num_classes:
        raise BadInput(
            f"--teacher {spec} has {taught.model.num_classes} outputs, the model {start.model.num_classes}: "
            "give a run that was trained on the same classes"
        )
    return taught


def training_images(train: AnyDataset, start: Loaded, seed: int, log: Log) -> Data:
    """What a compression of a loaded model learns from, its progress shown by the first process."""
    shows = meter(log) if join_world().first else None
    told = tasks.of(start.model, train)
    return Data(train.cached(), start.preprocess, seed=seed, callbacks=progress(log), meter=shows, task=told)


# --- what is written ----------------------------------------------------------------------------------------------


def target_rows(methods: Sequence[Method], lean: OpenModel, tally: Tally | None = None) -> tuple[TargetRow, ...]:
    """A row for each method of this compression: its plan is among the last of the history."""
    misses = missed(lean)
    plans = lean.history.plans[len(lean.history.plans) - len(methods) :]
    rows = []
    for i, (m, plan) in enumerate(zip(methods, plans, strict=True)):
        missed_ones = tuple(text for slug, text in misses if slug == m.slug)
        rows.append(_asked(m, plan, lean, missed_ones, i, tally))
    return tuple(rows)


def _asked(
    method: Method, plan: Plan, lean: OpenModel, misses: tuple[str, ...], number: int, tally: Tally | None
) -> TargetRow:
    """Adds each method's own share of MACs and parameters, whatever came after it."""
    share = tally.share(number) if tally else {}
    own = tally.achieved(number) if tally else None
    achieved = achieved_by(method, plan, lean) if own is None else own
    achieved = {key: share.get(key, value) if key in KINDS else value for key, value in achieved.items()}
    return TargetRow(method.slug, knobs_of(method), achieved, misses, share)


def _compared(
    runners: Mapping[str, OpenModel],
    validation: AnyDataset,
    folder: Path,
    *,
    latency_batch: int,
    class_names: str,
    log: Log,
) -> Comparison:
    answers: dict[str, Predictions] = {}
    comparison = compare(
        runners,
        validation,
        latency_batch=latency_batch,
        progress=log,
        on_predictions=answers.update,
        class_names=class_names,
    )
    keep(comparison, answers, validation, folder / MEASURED)
    return comparison


class _Rows:
    """Keeps a copy of the model after each step, under the name of its row."""

    def __init__(self, *, first: str, log: Log, keep: bool) -> None:
        self.models: dict[str, OpenModel] = {}
        self._first, self._log, self._keep = first, log, keep

    def take(self, label: str, model: OpenModel) -> None:
        name = self._first if not self.models else self._free(f"+ {label}")
        if self.models:
            self._log(f"done: {name}")
        self.models[name] = copy.deepcopy(model).eval().cpu() if self._keep else model

    def _free(self, name: str) -> str:
        taken = sum(known == name or known.startswith(f"{name} (") for known in self.models)
        return f"{name} ({taken + 1})" if taken else name


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in values.items()) or "–"
