"""Killed before any file operation: what is left loads as a whole, or is refused, and the next start is let in."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import Recovery, load_run
from leanvit.recipe.steps import ABOUT
from leanvit.recipe.store import JSON_NAME
from leanvit.runs.folders import new_folder
from leanvit.runs.layout import TRAINING_LOG
from leanvit.runs.locking import LOCK, locked
from leanvit.tokens.evit import EViT
from leanvit.training.checkpoint import STATE
from leanvit.verbs.compressing import compress
from leanvit.verbs.publishing import publish
from leanvit.verbs.training import train

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1}
OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """Stands for SIGKILL."""


@contextlib.contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Before the n-th file operation, and every one after it (a killed process tidies nothing up)."""
    done = itertools.count(1)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(done) >= number:
                raise Killed
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(Killed):
            yield


def _train(out: Path, lr: float, **more: Any) -> None:
    settings = {"epochs": 1, "batch_size": 10, "lr": lr}
    train(NAME, "digits", settings=settings, adapt=True, model_args=SMALL, limit=20, out=out, **more)


def _compress(out: Path, lr: float, *, source: Path, **more: Any) -> None:
    recovery = Recovery(epochs=1, batch_size=10, lr=lr)
    compress(source, [EViT(blocks=(1,))], "digits", recovery=recovery, limit=20, measured=False, out=out, **more)


def _publish(out: Path, lr: float, *, source: Path, **more: Any) -> None:
    publish(source, "digits", out, limit=20, **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with their logs: one to be replaced, and one to start from."""
    folder = tmp_path_factory.mktemp("runs")
    _train(folder / "old", 0.1)
    _train(folder / "source", 0.2)
    return folder


def rates(folder: Path) -> tuple[float | None, float | None]:
    """The learning rate that the run says, and that its log says."""
    try:
        info = load_run(folder).info
    except (BadInput, CheckpointError):
        return None, None
    log = folder / TRAINING_LOG
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return 0.2 if info.get("asked") else info["training"]["lr"], rows[0]["lr"] if rows else None


MAKERS = {"train": _train, "compress": _compress, "publish": _publish}
EVERY = {"train": 5, "compress": 23, "publish": 17}  # of the operations: all were tried once, which takes a minute


@pytest.mark.e2e
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("verb", MAKERS)
def test_a_kill_at_any_moment_leaves_a_folder_that_is_let_in(verb, replacing, runs, tmp_path) -> None:
    more: dict[str, Any] = {} if verb == "train" else {"source": runs / "source"}
    for number in range(1 + replacing, 200, EVERY[verb]):
        out = tmp_path / f"{verb}-{number}"
        if replacing:
            shutil.copytree(runs / "old", out)
        with killed_at(number):
            MAKERS[verb](out, 0.2, **more, overwrite=replacing)
            break
        run, log = rates(out)
        assert run in (None, 0.1, 0.2) and (log is None or log == run), f"killed at {number}: {run} beside {log}"
        if out.exists():
            assert new_folder(out, "x", overwrite=True) == out
            begun = any((out / name).is_file() for name in (JSON_NAME, STATE, ABOUT, TRAINING_LOG))
            weights = list(out.glob("weights-*"))
            if not replacing and not begun and not weights:
                assert new_folder(out, "x") == out
        if number > 10 and not replacing and verb != "publish":
            goes_on = (out / (STATE if verb == "train" else ABOUT)).is_file()
            MAKERS[verb](out, 0.2, **more, **({"resume": True} if goes_on else {"overwrite": True}))
            assert rates(out)[0] == 0.2 and not [p for p in out.rglob("*") if p.name.startswith(".")]
    assert number > 10


def test_the_second_process_is_told_who_is_there(tmp_path) -> None:
    """And a process that was killed holds nothing any more."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom leanvit.runs.locking import locked\n"
        "with locked(Path(sys.argv[1]), command='leanvit train first', log=print):\n"
        "    print('in', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    try:
        payload = rf"--out .*run is in use by process {holder.pid} on \S+ since \S+ \(leanvit train first\)"
        with pytest.raises(BadInput, match=payload), locked(tmp_path / "run", command="", log=print):
            pass
        for more in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(BadInput, match=payload):
                _train(tmp_path / "run", 0.1, **more)
    finally:
        holder.kill()
        holder.communicate()
    said: list[str] = []
    assert new_folder(tmp_path / "run", "x", log=said.append) and "was killed" in said[0]
    with locked(tmp_path / "run", command="", log=print):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not [*(tmp_path / "run").iterdir()]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("leanvit.runs.locking.fcntl.flock", none)
    said: list[str] = []
    with locked(tmp_path / "run", command="", log=said.append):
        (tmp_path / "run" / "mine").touch()
    assert "is not locked (No locks available)" in said[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("left", "accepted"),
    [
        (["training/", "steps/", ".state.safetensors-abc.part"], {"plain", "overwrite"}),
        (["training/.state.safetensors-abcd1234.part", "training/.tmpAbC", LOCK], {"plain", "overwrite"}),
        (["weights-abc.safetensors", ".leanvit.json-abcd1234.part"], {"overwrite"}),
        ([LOCK, "measure.json", "notes.txt"], {"overwrite"}),
        (["training/diary.txt"], set()),
        (["report.html"], set()),
        (["train.jsonl"], set()),
        ([".hidden"], set()),
    ],
)
def test_leftovers_of_ours_are_known(left, accepted, tmp_path) -> None:
    for name in left:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    for overwrite in (False, True):
        if ("overwrite" if overwrite else "plain") in accepted:
            assert new_folder(tmp_path, "x", overwrite=overwrite) == tmp_path
            continue
        with pytest.raises(BadInput, match=r"not empty|not a run"):
            new_folder(tmp_path, "x", overwrite=overwrite)
    assert len([*tmp_path.rglob("*")]) >= len(left)  # nothing went by being looked at
