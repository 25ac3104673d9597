"""Ctrl-C in a process of its own: exit code 130, one line, and a target that can be resumed or is untouched."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from wrong import tree

from leanvit.cli.main import app
from leanvit.recipe import load

DIGITS = ("--data", "digits")
LONG = ("--epochs", "5000", "--batch-size", "10", "--set", "save_every=1")
VERBS = {  # arguments, and what is on stderr when work is on its way
    "train": (("train", "run", *DIGITS, "--limit", "200", *LONG, "--out", "new"), "epoch"),
    "compress": (("compress", "run", *DIGITS, "--with", "evit", "--recover", "5000", "--out", "new"), "epoch"),
    "measure": (("measure", "run", *DIGITS, "--rounds", "1000000"), "latency"),
    "export": (("export", "run", "--to", "openvino", "--out", "new"), "exporting"),
}


def _interrupt(folder: Path, argv: tuple[str, ...], sign: str) -> tuple[int, str]:
    """Start the program, wait until it says `sign`, press Ctrl-C; returns the exit code and all of stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "leanvit", *argv],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a test runner may ignore it
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(sign):
            break
    time.sleep(0.05)
    for _ in range(3):  # one that comes inside of a destructor is lost: Python cannot raise there, people press again
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said += process.communicate(timeout=15)[1]
            return process.returncode, said
    process.kill()
    raise AssertionError(f"{argv[0]} goes on after three interrupts: {said}{process.communicate()[1]}")


@pytest.mark.e2e
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_ends_with_130(verb: str, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    before = tree(tmp_path)
    argv, sign = VERBS[verb]
    code, said = _interrupt(tmp_path, argv, sign)
    assert code == 130, said
    assert "Traceback" not in said and "leanvit: " in said.splitlines()[-1], said
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if ".part" in name or "/." in name or name.startswith(".")]
    if verb == "train":
        assert "to go on" in said.lower() and "new/training/state.safetensors" in after
    elif verb == "compress":
        assert "To go on: leanvit compress run" in said and said.rstrip().endswith("--resume"), said
        assert "new/steps/1-evit/leanvit.json" in after and "new/steps/2-recovery/training/state.safetensors" in after
    else:
        assert after == before, "nothing is left of it"


def test_an_interrupted_training_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    argv = ["train", "run", *DIGITS, "--limit", "20", "--batch-size", "10", "--epochs", "2", "--out", "new"]

    def interrupted(run: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("leanvit.verbs.progress.EpochLines.end_epoch", lambda self, run: interrupted(run))
        assert CliRunner().invoke(app, argv).exit_code == 130
    assert not (tmp_path / "new/leanvit.json").exists()
    (tmp_path / "new/training/.state.safetensors-killed.part").write_bytes(b"half")  # and what a kill would leave
    result = CliRunner().invoke(app, [*argv, "--resume"])
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "new/training").glob(".*"))
    load(tmp_path / "new")
