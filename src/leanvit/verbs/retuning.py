"""`retune`: a finished run with other knobs of a method, where no weight follows from them. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.recipe import retune as retune_model
from leanvit.recipe import split_with
from leanvit.runs.clearing import clear_run
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder
from leanvit.runs.layout import RUN
from leanvit.runs.locking import locked
from leanvit.runs.logs import training_logs
from leanvit.runs.saving import TargetRow, asked_rows, save_compressed
from leanvit.verbs.compressing import Compressed, target_rows
from leanvit.verbs.models import is_built, load_model, silent


def retune(
    run: str | Path,
    methods: Sequence[str],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Compressed:
    """Write a run with other thresholds of its exits, say: `retune("runs/exits", ["lgvit:speedup=1.5"])`.

    Args:
        run: run folder, which stays as it is. methods: `SLUG:KNOB=VALUE` each, knobs that its class calls `tunable`.
        out: folder of the new run; default: a name under runs/.

    Raises:
        BadInput: a method that the run does not have, or a knob that is not tunable or not accepted.
        Refused: a method without such knobs, or a target that cannot be met; nothing is written.
    """
    watch = Stopwatch("retune", command)
    if isinstance(methods, str) or not methods:
        raise BadInput(f"methods is {methods!r}; accepted: one or more like lgvit:threshold=0.8")
    given = [split_with(text) for text in methods]
    one = None if is_built(run) else load_model(run)
    if one is None:
        raise BadInput(
            f"{run} is not a run folder: retune changes what was compressed: give the folder that compress wrote"
        )
    if out is not None and one.home is not None and one.home.resolve() == Path(out).resolve():
        raise BadInput(f"--out {out} is the run itself: give another path")
    folder = new_folder(out, f"{one.base}-retuned", overwrite=overwrite)
    lean = one.model
    for slug, knobs in given:
        lean = retune_model(lean, slug, knobs)
    asked = target_rows([plan.method() for plan in lean.history.plans], lean)
    asked = _with_shares(asked, asked_rows(one.info))
    info = {key: value for key, value in one.info.items() if key != "asked"}  # said anew, of every method
    with locked(folder, command=command, log=silent):
        clear_run(folder, overwrite=overwrite, keep=RUN)
        save_compressed(lean, folder, asked, preprocess=one.preprocess, info=info, overwrite=overwrite)
        for log in training_logs(one.home) if one.home else ():
            write_atomic(folder / log.name, log.read_bytes())
        watch.record(folder, before=one.commands)
    return Compressed(folder, one.name, asked, None)


def _with_shares(asked: tuple[TargetRow, ...], was: tuple[TargetRow, ...]) -> tuple[TargetRow, ...]:
    """What methods did to MACs and parameters was counted when they were applied; thresholds change none of it."""
    if [row.method for row in was] != [row.method for row in asked]:
        return asked
    return tuple(replace(row, share=old.share) for row, old in zip(asked, was, strict=True))
