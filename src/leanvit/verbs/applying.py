"""What `compare-methods` runs: each method applied, judged, recovered and saved; then all measured, interleaved.

Under torchrun all processes apply and recover; the first one judges, saves and, at the end, measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from leanvit.data import AnyDataset, loader, matched_with
from leanvit.errors import LeanvitError
from leanvit.measure import Comparison, Predictions, compare, predict
from leanvit.measure.judged import Judged, judge_all
from leanvit.recipe import Data, Recovery, clear_steps, is_resumable, knobs_of, make_method
from leanvit.recipe import compress as compress_model
from leanvit.recipe.steps import ABOUT as STEPS_ABOUT
from leanvit.recipe.store import JSON_NAME
from leanvit.runs.answer_maps import answer_maps
from leanvit.runs.commands import Stopwatch
from leanvit.runs.compared import BASELINE, INT8, MethodResult
from leanvit.runs.layout import MEASURED
from leanvit.runs.measurements import keep
from leanvit.runs.saving import TargetRow, asked_rows, save_compressed
from leanvit.runs.token_maps import keep_tokens
from leanvit.tasks import Task
from leanvit.training.world import join_world
from leanvit.verbs.candidates import Candidate
from leanvit.verbs.compressing import target_rows, training_images
from leanvit.verbs.fitting import with_classes_of
from leanvit.verbs.guarding import LeftOut
from leanvit.verbs.models import Loaded, Log, load_model
from leanvit.verbs.runtimes import Opener
from leanvit.verbs.shares import Tally


@dataclass(frozen=True)
class Conditions:
    """What all methods share."""

    start: Loaded
    train: AnyDataset | None  # None: nothing learns
    val: AnyDataset
    recovery: Recovery | None
    seed: int
    folder: Path
    log: Log
    command: str
    data: str
    class_names: str
    task: Task

    def images(self) -> Data | None:
        if self.train is None:
            return None
        found = training_images(self.train, self.start, self.seed, self.log)
        return found if self.task.label_kind else replace(found, task=self.task)

    def judged(self, model: Any) -> Judged:
        batches = loader(self.val, self.start.preprocess, batch_size=64)
        if not self.task.label_kind:
            return judge_all(self.task, {"model": model}, batches)["model"]
        outputs = matched_with(self.start.model, self.val, class_names=self.class_names).positions
        return Judged.of(predict(model, batches, outputs=outputs))

    @cached_property
    def baseline_answers(self) -> Judged:
        return self.judged(self.start.model)


# --- one method after another -------------------------------------------------------------------------------------


def keep_baseline(shared: Conditions) -> None:
    world, folder = join_world(), shared.folder / BASELINE
    with world.together():
        if world.first and not (folder / JSON_NAME).is_file():
            _save(shared, shared.start.model, folder, [])


def apply_all(shared: Conditions, chosen: Sequence[Candidate], left_out: LeftOut) -> tuple[MethodResult, ...]:
    """Those of all methods that come through. Raises `LeanvitError` where none does."""
    world = join_world()
    found: list[MethodResult] = []
    for one in chosen:
        with left_out.guard(one.name, shared.log, world=world):
            found.append(_method_result(shared, one))
        if world.first:
            left_out.write(shared.folder, shared.log)
    if not found:
        raise LeanvitError(f"no method came through: {'; '.join(left_out.values())}")
    return tuple(found)


def _method_result(shared: Conditions, one: Candidate) -> MethodResult:
    """Apply, judge, recover and save one method; where that is done already, what came of it."""
    world, folder = join_world(), shared.folder / one.name
    if (through := world.from_first(partial(MethodResult.read, folder))) is not None:
        return through
    watch = Stopwatch("compare-methods", shared.command)
    off_the_shelf: dict[str, Any] = {}
    tally = Tally([one.method], asked_rows(shared.start.info))

    def judge(label: str, model: Any) -> None:
        if label != "dense":
            shared.log(f"{one.name}: {'compressed' if label == one.method.slug else label}")
        tally.take(label, model)
        if label == one.method.slug:
            off_the_shelf.update(world.from_first(partial(_off_the_shelf, shared, model)))

    recovery = shared.recovery if one.method.trainable_after else None
    begun_before = world.from_first((folder / STEPS_ABOUT).is_file)
    lean = compress_model(
        shared.start.model,
        [one.method],
        shared.images(),
        recovery=recovery,
        on_step=judge,
        out=folder if is_resumable([one.method], recovery) else None,
        resume=begun_before,
    ).cpu()

    def saved() -> MethodResult:
        ways = () if recovery is None else recovery.methods
        _save(shared, lean, folder, target_rows([one.method], lean, tally), recovered_with=ways)
        mapped = with_classes_of(shared.start, shared.val, class_names=shared.class_names)
        keep_tokens(folder, lean, mapped, shared.start.preprocess, name=one.name)
        method_result = MethodResult(
            name=one.name,
            method=one.method.slug,
            knobs=knobs_of(one.method),
            learns=bool(one.method.trains),
            recovered=recovery is not None,
            seconds=round(watch.seconds, 2),
            **off_the_shelf,
        )
        watch.record(folder, before=shared.start.commands)
        method_result.save(folder)
        clear_steps(folder)
        return method_result

    return world.from_first(saved)


def _off_the_shelf(shared: Conditions, model: Any) -> dict[str, Any]:
    """Score before the recovery, as fields of `MethodResult`."""
    answers = shared.judged(model)
    change = shared.baseline_answers.change(answers)
    return {"off_the_shelf_percent": answers.interval(answers.task.changes).shown(), "off_the_shelf_change": change}


def _save(
    shared: Conditions,
    lean: Any,
    folder: Path,
    asked: Sequence[TargetRow],
    *,
    info: Mapping[str, Any] | None = None,
    recovered_with: Sequence[Any] = (),
) -> None:
    """info: of the run that it was made from; None: the one that the comparison is of."""
    save_compressed(
        lean,
        folder,
        asked,
        preprocess=shared.start.preprocess,
        info=shared.start.info if info is None else info,
        data=shared.data,
        recovered_with=recovered_with,
        overwrite=folder.is_dir(),
    )


def round_all(shared: Conditions, names: Sequence[str], left_out: LeftOut) -> None:
    """Int8 of each model that is there; the baseline's must come through."""
    world = join_world()
    for name in names:
        folder = shared.folder / f"{name}-{INT8}"
        if world.from_first((folder / JSON_NAME).is_file):
            continue
        shared.log(f"{name}: int8")
        with left_out.guard(f"{name} {INT8}", shared.log, but=Exception if name == BASELINE else (), world=world):
            one, rounding = load_model(shared.folder / name), [make_method(INT8, {})]
            tally = Tally(rounding, asked_rows(one.info))
            lean = compress_model(one.model, rounding, shared.images(), on_step=tally.take)
            with world.together():
                if world.first:
                    _save(shared, lean, folder, target_rows(rounding, lean, tally), info=one.info)
        if world.first:
            left_out.write(shared.folder, shared.log)


# --- all, interleaved ----------------------------------------------------------------------------------------------


def measure_all(
    shared: Conditions,
    standings: Sequence[MethodResult],
    others: Sequence[str],
    int8: bool,
    latency_batch: int,
    rounds: int,
    left_out: LeftOut,
) -> Comparison:
    """Accuracy and speed of every model in every runtime; kept in the baseline's folder."""
    names = [BASELINE, *(one.name for one in standings)]
    wanted = [(name, name, runtime) for runtime in ("torch", *others) for name in names]
    whole = [runtime for runtime in others if runtime in ("openvino", "onnx")] if int8 else []
    wanted += [(f"{name} {INT8}", f"{name}-{INT8}", runtime) for runtime in whole for name in names]
    wanted = [row for row in wanted if row[0] not in left_out]  # what could not be rounded to int8
    loaded = {folder: load_model(shared.folder / folder) for _, folder, _ in wanted}
    runners: dict[str, Any] = {}
    files: dict[str, Path] = {}
    same: dict[str, str] = {}
    answers: dict[str, Predictions] = {}
    judged: dict[str, Judged] = {}
    with Opener(latency_batch, shared.log) as opener:
        for row, folder, runtime in wanted:
            key = row if runtime == "torch" else f"{row} ({runtime})"
            file = None
            with left_out.guard(key, shared.log, but=Exception if folder.startswith(BASELINE) else ()):
                runners[key], file = opener.open(loaded[folder], runtime)
            files |= {key: file} if file else {}
            same[key] = row.removesuffix(f" {INT8}")  # int8 is compared with the baseline at int8
        comparison = compare(
            runners,
            shared.val,
            latency_batch=latency_batch,
            rounds=rounds,
            files=files,
            model_names=same,
            baseline=BASELINE,
            progress=shared.log,
            on_predictions=answers.update,
            on_judged=judged.update,
            class_names=shared.class_names,
            task=shared.task,
        )
        maps = answer_maps(comparison, runners, judged, shared.val)
    keep(comparison, answers, shared.val, shared.folder / BASELINE / MEASURED, maps=maps)
    return comparison
