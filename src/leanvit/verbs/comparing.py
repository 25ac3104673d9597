"""`compare-methods`: methods on one model and data set at equal MACs, before and after the same recovery."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from leanvit import tasks
from leanvit.anatomy.composite import Composite
from leanvit.data import AnyDataset
from leanvit.data.identity import identity
from leanvit.errors import BadInput, NoTrainingSplit, Refused
from leanvit.files import write_atomic
from leanvit.knobs import Count, Rounds, check
from leanvit.measure import Comparison
from leanvit.recipe import Recovery, fit_to_data, knobs_of
from leanvit.recipe.steps import fingerprint
from leanvit.report import write_report
from leanvit.report.side_by_side import short_table, terminal_table
from leanvit.runs.compared import (
    ABOUT,
    BASELINE,
    COMPARED,
    SideBySide,
    begin_comparison,
    clear_comparison,
    read_about,
)
from leanvit.runs.folders import new_folder, require_writable
from leanvit.runs.layout import MEASURED
from leanvit.runs.locking import locked, refuse_if_held
from leanvit.tasks import Task, read_task
from leanvit.training.world import join_world, training_device
from leanvit.verbs.applying import Conditions, apply_all, keep_baseline, measure_all, round_all
from leanvit.verbs.candidates import checked, choose
from leanvit.verbs.fitting import require_fit, with_classes_of, with_labels_of, with_range_of, with_task
from leanvit.verbs.models import Loaded, Log, load_model, log_bad, open_split, silent
from leanvit.verbs.runtimes import require
from leanvit.verbs.stopping import explains_how_to_resume

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Compared:
    """Where the result is, and what came out."""

    folder: Path
    page: Path
    result: SideBySide
    comparison: Comparison

    def table(self, *, wide: bool = True) -> Table:
        """A rich table: MACs, accuracy off the shelf and at the end, speed in each runtime; or five columns."""
        return terminal_table(self.result, self.comparison) if wide else short_table(self.result, self.comparison)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "result": json.loads(self.result.to_json()),
            "comparison": json.loads(self.comparison.to_json()),
        }


def compare_methods(
    model: str | Path,
    data: str,
    candidates: Sequence[str] = (),
    *,
    macs: float = 0.6,
    tolerance: float = 0.03,
    controls: bool = True,
    recovery: Recovery | None = None,
    runtimes: Sequence[str] = (),
    int8: bool = False,
    latency_batch: int = 8,
    rounds: int = 15,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    adapt: bool = False,
    convert: bool = False,
    class_names: str = "by-name",
    task: Task | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Compared | None:
    """Set methods to an equal share of a model's MACs, recover them alike, and measure all, interleaved.

    Under torchrun all processes make the same call and train together; the first one makes the folder, speaks, saves,
    measures and gets the result, the others None.

    Args:
        model: timm name, run folder or reference; the other arguments as in `compress`.
        data: data spec; methods and recovery learn from `train`, all figures are of `val`. Where nothing learns, a data
            set without a training split will do.
        candidates: as `--with` takes them, without the knob that the share decides: `evit`, `diffrate:max_steps=300`.
            Default: every method that reduces tokens or leaves early and has such a knob; what does not fit the model
            is left out, with the reason, and so is what fails later: the others go on.
        task: what the outputs mean, see `measure`; methods and recovery learn by it.
        macs: the share, above 0 and below 1. A method whose nearest setting is farther off than `tolerance` (of the
            share) is left out with the share that it reaches.
        controls: beside EViT, as many tokens at random, and those that the class token attends to least.
        recovery: the same training for every method, by the same ways (`Recovery.methods`); one with an objective of
            its own learns by that (and is left out where a way brings one, too), and one that leaves nothing to train
            (early exits train their heads themselves) has none.
        runtimes: beside torch, of `leanvit.verbs.runtimes.RUNTIMES`.
        int8: also round each model to int8 after the recovery, and measure it in those runtimes.
        out: folder; default: `runs/MODEL-compared`. It keeps a run folder for each method, `compare.json` and
            `report.html`. resume: go on with the interrupted comparison in it; finished methods are not run again.

    Raises:
        BadInput, Refused, MissingExtra: before any work starts.
        LeanvitError: no method came through.
        Interrupted: stopped by Ctrl-C or SIGTERM; the message gives the command that resumes.
    """
    world = join_world()
    log = log if world.first else silent
    check("--batch", latency_batch, Count)
    check("--rounds", rounds, Rounds)
    check("tolerance", tolerance, Annotated[float, Gt(0), Le(0.5)])
    given = read_task(task)
    others = _other_runtimes(runtimes, int8)
    with world.together():
        if out is not None and world.first:
            refuse_if_held(Path(out))
    if resume:
        _check_resume(out)
    train, no_training_split = _training_split(data, seed, limit, log)
    val = open_split(data, "val", seed=seed, limit=limit, log=log, beside=train)
    some = val if train is None else train
    start = load_model(
        model,
        model_args=model_args,
        pretrained=pretrained,
        weights=weights,
        adapt_to=some if adapt else None,
        seed=seed,
        log=log,
    )
    start = with_task(start, given, val)
    require_fit(start, some, adapted=adapt, convert=convert, class_names=class_names, judges="compare-methods")
    _refuse_parts(start)
    judged_by = tasks.of(start.model, val)
    start = with_labels_of(some, with_range_of(some, start))
    learned = with_classes_of(start, some, class_names=class_names, log=log)
    train = None if train is None else learned
    chosen, left_out = choose(start, candidates, macs, tolerance=tolerance, controls=controls, log=log)
    learns = recovery is not None or int8 or any(one.method.needs_data or one.method.trains for one in chosen)
    if no_training_split and learns:
        raise no_training_split
    was = read_about(Path(out)) if resume and out else {}
    recovery = fit_to_data((), recovery, train, {"recovery": was.get("recovery")})[1]
    chosen, plan = checked(start, chosen, train, recovery, int8, was.get("methods", {}), left_out, log)
    request: dict[str, Any] = {
        "model": str(model),
        "data": data,
        "limit": limit,
        "macs": macs,
        "seed": seed,
        "recovery": None if recovery is None else recovery.to_json(),
        "methods": {one.name: {"slug": one.method.slug, **knobs_of(one.method)} for one in chosen},
        "class_names": class_names,
        **({} if given is None else {"task": judged_by.to_json()}),
        "weights": fingerprint(start.model),
        "images": {one.split: identity(one) for one in (train, val) if one is not None},
    }
    with ExitStack() as held:

        def claimed() -> Path:
            path = require_writable(out) if resume and out else _new(out, start, overwrite, log)
            held.enter_context(locked(path, command=command, log=log))
            if overwrite and not resume:
                clear_comparison(path)
            begin_comparison(path, request, resume=resume)
            left_out.write(path, log)
            return path

        folder = world.from_first(claimed)
        for line in plan:
            log(line)
        kept_train = None if train is None else train.cached()
        shared = Conditions(
            start, kept_train, val.cached(), recovery, seed, folder, log, command, data, class_names, judged_by
        )
        kept = f"finished methods, and the state of a training, are in {folder}"
        with explains_how_to_resume(folder, command, verb="compare-methods", about=ABOUT, kept=kept):
            keep_baseline(shared)
            if world.size > 1:
                start.model.to(training_device())
            method_results = apply_all(shared, chosen, left_out)
            if int8:
                round_all(shared, [BASELINE, *(one.name for one in method_results)], left_out)
            if not world.first:  # nobody waits for what the first one measures
                return None
            comparison = measure_all(shared, method_results, others, int8, latency_batch, rounds, left_out)
        result = SideBySide(
            model=start.name if start.folder is None else str(model),
            data=data,
            macs=macs,
            recovery=request["recovery"],
            seed=seed,
            standings=method_results,
            left_out=dict(left_out),
            measurement=MEASURED,
        )
        write_atomic(folder / COMPARED, result.to_json().encode())
        page = write_report([folder], folder / "report.html", overwrite=True)
        log_bad(log, train, val)
        return Compared(folder, page, result, comparison)


# --- before any work ----------------------------------------------------------------------------------------------


def _refuse_parts(start: Loaded) -> None:
    if isinstance(start.model, Composite):
        raise Refused(
            f"compare-methods sets the MACs of a whole model, and {start.base} is a model of parts: apply methods to "
            "one of them (leanvit compress MODEL --part NAME --with METHOD), then compare the runs (leanvit measure)"
        )


def _other_runtimes(runtimes: Sequence[str], int8: bool) -> tuple[str, ...]:
    others = tuple(name for name in dict.fromkeys(runtimes) if name != "torch")
    for runtime in others:
        require(runtime)
    if int8 and not any(name in ("openvino", "onnx") for name in others):
        raise BadInput(
            "int8 runs in integer kernels of openvino or onnx: name one of them as a runtime (--runtime openvino)"
        )
    return others


def _training_split(
    data: str, seed: int, limit: int | None, log: Log
) -> tuple[AnyDataset | None, NoTrainingSplit | None]:
    """The images to learn from; where the data has none, what to raise if something learns."""
    try:
        return open_split(data, "train", seed=seed, limit=limit, log=log), None
    except NoTrainingSplit as error:
        return None, error


def _check_resume(out: str | Path | None) -> None:
    if out is None:
        raise BadInput("--resume needs --out, the folder of the comparison to go on with")
    if not (Path(out) / ABOUT).is_file():
        raise BadInput(
            f"--resume: {out} holds no comparison to go on with (there is no {ABOUT} in it): "
            "leave --resume out to begin one"
        )


def _new(out: str | Path | None, start: Loaded, overwrite: bool, log: Log) -> Path:
    folder = new_folder(out, f"{start.base}-compared", overwrite=overwrite, holds=(ABOUT,), log=log)
    if overwrite and (folder / ABOUT).is_file():
        read_about(folder)  # a damaged one is refused before anything is removed
    return folder
