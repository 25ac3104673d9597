"""What a run folder holds: removed when the run is replaced, and recognised after a kill."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanvit.recipe.catalogue import RECORD
from leanvit.recipe.steps import ABOUT, STEPS
from leanvit.runs.layout import ARTEFACTS, COMMANDS, EARLIER_LOG, RUN, TENSORBOARD, TOKENS, TRAINING_LOG, latencies_file
from leanvit.runs.locking import LOCK
from leanvit.training.checkpoint import STATE

_TRAINING = STATE.parent.name
_LEFT = (  # in the order in which it is removed: what makes a run of it, or can be gone on with, comes first
    *RUN,
    str(STATE),
    str(ABOUT),
    "measure*.json",
    latencies_file("*"),
    "predictions*.safetensors",
    "disagreements*.json",
    "maps*.json",
    TOKENS,
    COMMANDS,
    RECORD,
    TRAINING_LOG,
    TENSORBOARD,
    EARLIER_LOG.format("*"),
    _TRAINING,
    STEPS,
    ARTEFACTS,
    "report*.html",
    ".*.part",
    ".tmp*",
)
_HALF = re.compile(r"\..+\.part|\.tmp\w*")  # of a write that was killed: ours, and safetensors' own


def clear_run(folder: Path, *, overwrite: bool, keep: Sequence[str] = ()) -> None:
    """Before a run is replaced: remove what verbs left of the old one, but for `keep`, and nothing else.

    The run itself goes first, so that at no moment it lies beside the log of another. Without `overwrite` only what a
    kill left is removed.
    """
    if not folder.is_dir() or not (overwrite or only_leftovers(folder)):
        return
    for name in (name for name in _LEFT if name not in keep):
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def was_begun(folder: Path) -> bool:
    """Whether a process of ours began to write here and was killed: its lock is still there, or weights without their
    JSON. To be replaced when that is asked for."""
    others = [path for path in folder.iterdir() if not _HALF.fullmatch(path.name)]
    if (folder / LOCK).is_file():
        return True
    return bool(others) and all(path.match("weights-*.safetensors") for path in others)


def only_leftovers(folder: Path) -> bool:
    """Whether a folder holds nothing but what a kill of ours left before there was anything to load or go on with."""
    return all(_is_leftover(path) for path in folder.iterdir())


def _is_leftover(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_file():
        return path.name == LOCK or bool(_HALF.fullmatch(path.name))
    if path.name in (_TRAINING, STEPS, TENSORBOARD, ARTEFACTS):
        return all(one.is_dir() or _HALF.fullmatch(one.name) for one in _below(path))
    return False


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*"))
