"""`compare-methods`: methods on one model and data set at equal MACs, before and after the same recovery."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanvit.data import AnyDataset, loader, matched_with
from leanvit.data.identity import changes, identity
from leanvit.errors import BadInput, CheckpointError, LeanvitError, NoTrainingSplit, is_number
from leanvit.files import Sealed, read_sealed, sealed_text, write_atomic
from leanvit.measure import Comparison, Predictions, accuracy, accuracy_change, compare, predict
from leanvit.recipe import (
    Data,
    Recovery,
    clear_steps,
    fit_to_data,
    knobs_of,
    make_method,
    save,
    trains,
)
from leanvit.recipe import compress as compress_model
from leanvit.recipe.steps import ABOUT as STEPS_ABOUT
from leanvit.recipe.steps import fingerprint
from leanvit.recipe.store import JSON_NAME
from leanvit.report import write_report
from leanvit.report.keeping import keep
from leanvit.report.side_by_side import BASELINE, COMPARED, INT8, SideBySide, Standing, short_table, terminal_table
from leanvit.report.token_maps import TOKENS, trace_tokens
from leanvit.verbs.compressing import asked_of, last_share
from leanvit.verbs.contenders import Contender, checked, choose
from leanvit.verbs.folders import Stopwatch, new_folder, require_whole, require_writable
from leanvit.verbs.guarding import ENDING, LeftOut
from leanvit.verbs.locking import locked, refuse_if_held
from leanvit.verbs.models import (
    Loaded,
    Say,
    load_model,
    open_split,
    require_fit,
    say_bad,
    silent,
    with_classes_of,
    with_labels_of,
    with_range_of,
)
from leanvit.verbs.progress import progress
from leanvit.verbs.runtimes import Opener, require
from leanvit.verbs.shares import Tally
from leanvit.verbs.stopping import says_how_to_go_on

if TYPE_CHECKING:
    from rich.table import Table

ABOUT = "about.json"  # what is compared (sealed): written first, compared when it is resumed
STANDING = "standing.json"  # of each method that is through
_KIND = "leanvit-comparison"
_NEW = ("weights", "images")  # of what is compared when it is resumed: 0.1 did not write it down


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


@dataclass(frozen=True)
class _Contest:
    """What all methods share."""

    start: Loaded
    train: AnyDataset | None  # None: nothing learns
    val: AnyDataset
    recovery: Recovery | None
    seed: int
    folder: Path
    say: Say
    command: str
    data: str
    class_names: str

    def images(self) -> Data | None:
        if self.train is None:
            return None
        return Data(self.train, self.start.preprocess, seed=self.seed, callbacks=progress(self.say))

    def judged(self, model: Any) -> Predictions:
        outputs = matched_with(self.start.model, self.val, class_names=self.class_names).positions
        return predict(model, loader(self.val, self.start.preprocess, batch_size=64), outputs=outputs)

    @cached_property
    def baseline_answers(self) -> Predictions:
        return self.judged(self.start.model)


class _AboutFile(Sealed):
    about: dict[str, Any]


def compare_methods(
    model: str | Path,
    data: str,
    contenders: Sequence[str] = (),
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
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = silent,
    command: str = "",
) -> Compared:
    """Set methods to an equal share of a model's MACs, recover them alike, and measure all in turns.

    Args:
        model: timm name, run folder or reference; the other arguments as in `compress`.
        data: data spec; methods and recovery learn from `train`, all figures are of `val`. Where nothing learns, a data
            set without a training split will do.
        contenders: as `--with` takes them, without the knob that the share decides: `evit`, `diffrate:max_steps=300`.
            Default: every method that reduces tokens or leaves early and has such a knob; what does not fit the model
            is left out, with the reason, and so is what fails later: the others go on.
        macs: the share, above 0 and below 1. A method whose nearest setting is farther off than `tolerance` (of the
            share) is left out with the share that it reaches.
        controls: beside EViT, as many tokens at random, and those that the class token attends to least.
        recovery: the same training for every method; one with an objective of its own learns by that, and one that
            leaves nothing to train (early exits train their heads themselves) has none.
        runtimes: beside torch, of `leanvit.verbs.runtimes.RUNTIMES`.
        int8: also round each model to int8 after the recovery, and measure it in those runtimes.
        out: folder; default: `runs/MODEL-compared`. It keeps a run folder for each method, `compare.json` and
            `report.html`. resume: go on with the interrupted comparison in it; finished methods are not run again.

    Raises:
        BadInput, Refused, MissingExtra: before any work starts.
        LeanvitError: no method came through.
        Interrupted: stopped by Ctrl-C or SIGTERM; the text says how to go on.
    """
    for name, value, least in (("--batch", latency_batch, 1), ("--rounds", rounds, 3)):
        require_whole(name, value, least=least)
    if not is_number(tolerance, above=0, most=0.5):
        raise BadInput(f"tolerance is {tolerance!r}; accepted: above 0, up to 0.5 (of the share)")
    others = _other_runtimes(runtimes, int8)
    if out is not None:
        refuse_if_held(Path(out))
    if resume:
        _check_resume(out)
    train, no_training_split = _training_split(data, seed, limit, say)
    val = open_split(data, "val", seed=seed, limit=limit, say=say, beside=train)
    some = val if train is None else train
    start = load_model(
        model,
        model_args=model_args,
        pretrained=pretrained,
        weights=weights,
        adapt_to=some if adapt else None,
        seed=seed,
        say=say,
    )
    require_fit(start, some, adapted=adapt, convert=convert, class_names=class_names)
    start = with_labels_of(some, with_range_of(some, start))
    learned = with_classes_of(start, some, class_names=class_names, say=say)
    train = None if train is None else learned
    chosen, left_out = choose(start, contenders, macs, tolerance=tolerance, controls=controls, say=say)
    learns = recovery is not None or int8 or any(one.method.needs_data or one.method.trains for one in chosen)
    if no_training_split and learns:
        raise no_training_split
    was = _about(Path(out)) if resume and out else {}
    recovery = fit_to_data((), recovery, train, {"recovery": was.get("recovery")})[1]
    chosen, plan = checked(start, chosen, train, recovery, int8, was.get("methods", {}), left_out, say)
    folder = require_writable(out) if resume and out else _new(out, start, overwrite, say)
    asked: dict[str, Any] = {
        "model": str(model),
        "data": data,
        "limit": limit,
        "macs": macs,
        "seed": seed,
        "recovery": None if recovery is None else recovery.to_json(),
        "methods": {one.name: {"slug": one.method.slug, **knobs_of(one.method)} for one in chosen},
        "class_names": class_names,
        "weights": fingerprint(start.model),
        "images": {one.split: identity(one) for one in (train, val) if one is not None},
    }
    with locked(folder, command=command, say=say):
        if overwrite and not resume:
            _clear(folder)
        _begin(folder, asked, resume=resume)
        left_out.write(folder, say)
        for line in plan:
            say(line)
        kept_train = None if train is None else train.cached()
        contest = _Contest(start, kept_train, val.cached(), recovery, seed, folder, say, command, data, class_names)
        kept = f"finished methods, and the state of a training, are in {folder}"
        with says_how_to_go_on(folder, command, verb="compare-methods", about=ABOUT, kept=kept):
            _keep_baseline(contest)
            standings = _standings(contest, chosen, left_out)
            if int8:
                _round(contest, [BASELINE, *(one.name for one in standings)], left_out)
            comparison = _measured(contest, standings, others, int8, latency_batch, rounds, left_out)
        result = SideBySide(
            model=start.name if start.folder is None else str(model),
            data=data,
            macs=macs,
            recovery=asked["recovery"],
            seed=seed,
            standings=standings,
            left_out=dict(left_out),
            measurement="measure.json",
        )
        write_atomic(folder / COMPARED, result.to_json().encode())
        page = write_report([folder], folder / "report.html", overwrite=True)
        say_bad(say, train, val)
        return Compared(folder, page, result, comparison)


# --- before any work ----------------------------------------------------------------------------------------------


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
    data: str, seed: int, limit: int | None, say: Say
) -> tuple[AnyDataset | None, NoTrainingSplit | None]:
    """The images to learn from; where the data has none, what to raise if something learns."""
    try:
        return open_split(data, "train", seed=seed, limit=limit, say=say), None
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


def _new(out: str | Path | None, start: Loaded, overwrite: bool, say: Say) -> Path:
    folder = new_folder(out, f"{start.base}-compared", overwrite=overwrite, holds=(ABOUT,), say=say)
    if overwrite and (folder / ABOUT).is_file():
        _about(folder)  # a damaged one is refused before anything is removed
    return folder


def _clear(folder: Path) -> None:
    """Remove what the old comparison made, and nothing else; its result first, what it was of last."""
    if not (folder / ABOUT).is_file():
        return
    for name in (COMPARED, "report.html"):
        (folder / name).unlink(missing_ok=True)
    names = [BASELINE, *_about(folder)["methods"]]
    for name in (*names, *(f"{name}-{INT8}" for name in names)):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / f"{name}{ENDING}").unlink(missing_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)


def _about(folder: Path) -> dict[str, Any]:
    """What a comparison is of. Raises `CheckpointError`."""
    changed = "Begin again in another folder."
    return read_sealed(folder / ABOUT, _AboutFile, kind=_KIND, newest=1, changed=changed).about


def _begin(folder: Path, asked: dict[str, Any], *, resume: bool) -> None:
    """Write down what is compared, or make sure that it is the same."""
    file, asked = folder / ABOUT, json.loads(json.dumps(asked))
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, sealed_text({"kind": _KIND, "format": 1, "about": asked}))
        return
    was = {"class_names": "by-name", **_about(folder)}
    for key in dict.fromkeys([*was, *asked]):
        if (key in _NEW and key not in was) or key == "images":  # an older version did not write it down
            continue
        if key == "weights" and was[key] != asked[key]:
            raise BadInput(f"--resume: the weights of {asked['model']} changed; accepted: the same")
        if was.get(key) != asked.get(key):
            raise BadInput(f"--resume: {key} was {was.get(key)!r} and is {asked.get(key)!r}; accepted: the same")
    before, now = was.get("images", {}), asked["images"]
    changed = [text for split in now for text in changes(before.get(split), now[split])]
    if changed:
        raise BadInput(f"--resume: the comparison in {folder} is of other data: {'; '.join(changed)}")


# --- one method after another -------------------------------------------------------------------------------------


def _keep_baseline(contest: _Contest) -> None:
    folder = contest.folder / BASELINE
    if (folder / JSON_NAME).is_file():
        return
    _save(contest, contest.start.model, folder, [])


def _standings(contest: _Contest, chosen: Sequence[Contender], left_out: LeftOut) -> tuple[Standing, ...]:
    """Those of all methods that come through. Raises `LeanvitError` where none does."""
    found: list[Standing] = []
    for one in chosen:
        with left_out.guard(one.name, contest.say):
            found.append(_standing(contest, one))
        left_out.write(contest.folder, contest.say)
    if not found:
        raise LeanvitError(f"no method came through: {'; '.join(left_out.values())}")
    return tuple(found)


def _standing(contest: _Contest, one: Contender) -> Standing:
    """Apply, judge, recover and save one method; where that is done already, what came of it."""
    folder = contest.folder / one.name
    if (folder / STANDING).is_file():
        return _read_standing(folder / STANDING)
    begun, watch = time.perf_counter(), Stopwatch("compare-methods", contest.command)
    shelf: dict[str, Any] = {}
    tally = Tally([one.method], last_share(contest.start.info))

    def judge(label: str, model: Any) -> None:
        if label != "dense":
            contest.say(f"{one.name}: {'compressed' if label == one.method.slug else label}")
        tally.take(label, model)
        if label == one.method.slug:
            answers = contest.judged(model)
            shelf["off_the_shelf_percent"] = accuracy(answers).percent()
            shelf["off_the_shelf_change"] = accuracy_change(contest.baseline_answers, answers)

    recovery = contest.recovery if one.method.trainable_after else None
    lean = compress_model(
        contest.start.model,
        [one.method],
        contest.images(),
        recovery=recovery,
        on_step=judge,
        out=folder if trains([one.method], recovery) else None,
        resume=(folder / STEPS_ABOUT).is_file(),
    )
    _save(contest, lean, folder, [row.to_json() for row in asked_of([one.method], lean, tally)])
    mapped = with_classes_of(contest.start, contest.val, class_names=contest.class_names)
    maps = trace_tokens(lean, mapped, contest.start.preprocess, name=one.name)
    write_atomic(folder / TOKENS, maps.to_json().encode())
    standing = Standing(
        name=one.name,
        method=one.method.slug,
        knobs=knobs_of(one.method),
        learns=bool(one.method.trains),
        recovered=recovery is not None,
        seconds=round(time.perf_counter() - begun, 2),
        **shelf,
    )
    watch.record(folder, before=contest.start.commands)
    write_atomic(folder / STANDING, _standing_adapter().dump_json(standing, indent=1))
    clear_steps(folder)
    return standing


def _save(contest: _Contest, lean: Any, folder: Path, asked: list[dict[str, Any]]) -> None:
    start = contest.start
    info = {k: v for k, v in start.info.items() if k not in ("made_with", "steps", "frozen")}
    info |= {"data": contest.data, "asked": [*info.get("asked", []), *asked]}
    save(
        lean,
        folder,
        preprocess=start.preprocess,
        info=info,
        overwrite=folder.is_dir(),
    )


def _standing_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Standing)


def _read_standing(file: Path) -> Standing:
    from pydantic import ValidationError

    try:
        return _standing_adapter().validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file} is damaged: {where}: {first['msg']}; remove its folder") from None


def _round(contest: _Contest, names: Sequence[str], left_out: LeftOut) -> None:
    """Int8 of each model that is there; the baseline's must come through."""
    for name in names:
        folder = contest.folder / f"{name}-{INT8}"
        if (folder / JSON_NAME).is_file():
            continue
        contest.say(f"{name}: int8")
        with left_out.guard(f"{name} {INT8}", contest.say, but=Exception if name == BASELINE else ()):
            model = load_model(contest.folder / name).model
            _save(contest, compress_model(model, [make_method(INT8, {})], contest.images()), folder, [])
        left_out.write(contest.folder, contest.say)


# --- all in turns -------------------------------------------------------------------------------------------------


def _measured(
    contest: _Contest,
    standings: Sequence[Standing],
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
    loaded = {folder: load_model(contest.folder / folder) for _, folder, _ in wanted}
    runners: dict[str, Any] = {}
    files: dict[str, Path] = {}
    same: dict[str, str] = {}
    answers: dict[str, Predictions] = {}
    with Opener(latency_batch, contest.say) as opener:
        for row, folder, runtime in wanted:
            key = row if runtime == "torch" else f"{row} ({runtime})"
            file = None
            with left_out.guard(key, contest.say, but=Exception if folder.startswith(BASELINE) else ()):
                runners[key], file = opener.open(loaded[folder], runtime)
            files |= {key: file} if file else {}
            same[key] = row.removesuffix(f" {INT8}")  # int8 is compared with the baseline at int8
        comparison = compare(
            runners,
            contest.val,
            latency_batch=latency_batch,
            rounds=rounds,
            files=files,
            model_names=same,
            baseline=BASELINE,
            progress=contest.say,
            on_predictions=answers.update,
            class_names=contest.class_names,
        )
    keep(comparison, answers, contest.val, contest.folder / BASELINE / "measure.json")
    return comparison
