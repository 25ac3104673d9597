"""Targets that cannot be written: read-only, and full at the moment of writing. What was there stays whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from wrong import plain, tree

from leanvit.cli.main import app
from leanvit.errors import LeanvitError
from leanvit.files import write_atomic
from leanvit.recipe import load, save

DIGITS = ("--data", "digits", "--limit", "20")
MEASURE = ("measure", "run", *DIGITS, "--rounds", "3", "--batch", "1")
WRITERS = {
    "train": ("train", "run", *DIGITS, "--epochs", "1", "--batch-size", "10"),
    "compress": ("compress", "run", "--with", "evit", "--no-measure"),
    "export": ("export", "run", "--to", "openvino"),
    "demo": ("demo", "--epochs", "1"),
    "measure": MEASURE,
    "latencies": ("latencies", "run", "--rounds", "3", "--batch", "1", "--check", "0"),
    "report": ("report", "run"),
    "publish": ("publish", "run", *DIGITS),
}


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the run in it."""
    shutil.copytree(world / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`os.access` as it answers on a read-only file system, for root too."""
    real = os.access

    def access(path: str | Path, mode: int, **options: bool) -> bool:
        inside = Path(path).absolute().is_relative_to(folder)
        return False if inside and mode & os.W_OK else real(path, mode, **options)

    monkeypatch.setattr(os, "access", access)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_read_only_target_is_refused_before_any_work(verb: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _read_only(monkeypatch, here)
    before = tree(here)
    result = CliRunner().invoke(app, [*WRITERS[verb], "--out", "sealed/new"])
    assert result.exit_code == 2, result.output
    assert "--out sealed/new cannot be written" in plain(result.stderr) and "is read-only" in result.stderr
    assert "accuracy" not in result.stderr and "epoch" not in result.stderr
    assert tree(here) == before


def test_a_read_only_run_can_be_measured_into_another_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _read_only(monkeypatch, here / "run")
    refused = CliRunner().invoke(app, list(MEASURE))
    assert refused.exit_code == 2 and "give --out" in refused.stderr
    before = tree(here / "run")
    result = CliRunner().invoke(app, [*MEASURE, "--out", "figures.json"])
    assert result.exit_code == 0, result.output
    assert (here / "figures.json").is_file() and tree(here / "run") == before


FULL = {
    verb: WRITERS[verb] + (("--out", "new") if verb in ("train", "compress", "publish") else ())
    for verb in ("train", "compress", "measure", "latencies", "report", "publish")
}


@pytest.mark.parametrize("verb", FULL)
def test_a_disk_that_is_full_loses_nothing(verb: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = tree(here)
    result = CliRunner().invoke(app, list(FULL[verb]))
    assert result.exit_code == 1, result.output
    assert "cannot write" in result.stderr and "No space left on device" in result.stderr
    assert "unexpected" not in result.stderr
    after = tree(here)
    assert {name: after[name] for name in before} == before
    made = {name for name in after if name not in before and after[name][0] == "file"}
    assert made <= {"new/train.jsonl"}, "no half file"


def test_a_run_that_cannot_be_replaced_is_still_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("run")

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LeanvitError, match=r"cannot write run/weights.*quota"):
        save(model, "run", overwrite=True)
    load("run")


def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path: Path) -> None:
    """A real one: the system stops the write halfway."""
    target = tmp_path / "file"
    write_atomic(target, b"old")
    code = (
        "import resource, signal, sys, pathlib\n"
        "from leanvit.files import write_atomic\n"
        "from leanvit.errors import LeanvitError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomic(pathlib.Path(sys.argv[1]), b'x' * 100_000)\n"
        "except LeanvitError as error:\n    sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert "cannot write" in done.stderr and "File too large" in done.stderr
    assert "unchanged" in done.stderr
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


REFUSED = {
    "too few images": ("--limit", "5", "--batch-size", "10"),
    "another setting": ("--set", "epochs=0"),
    "other data": ("--data", "nowhere"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_overwriting_removes_nothing_when_the_new_run_is_refused(reason: str, here: Path) -> None:
    (here / "run/measure.json").write_text("{}")
    before = tree(here)
    result = CliRunner().invoke(app, [*WRITERS["train"], "--out", "run", "--overwrite", *REFUSED[reason]])
    assert result.exit_code == 2, result.output
    assert tree(here) == before
