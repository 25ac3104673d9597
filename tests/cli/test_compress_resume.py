"""`leanvit compress` ended by a signal in a process of its own, then `--resume`: the run is that of one undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from leanvit.data import Preprocess
from leanvit.recipe import Root, create, load_run, save

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}
NUMBERS = ("--recover-set", "batch_size=10", "--recover-set", "save_every=1", "--recover-set", "alpha=0.3")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dense runs of other weights, and what an undisturbed compression of the first gives."""
    folder = tmp_path_factory.mktemp("resume")
    for name in ("dense", "teacher"):
        model = create(Root("vit_tiny_patch16_224", SMALL)).eval()
        save(model, folder / name, preprocess=Preprocess.of(model), classes=list("0123456789"))
    return folder


def arguments(folder: Path, out: str, *more: str, epochs: int = 3) -> list[str]:
    methods = ("--with", "evit:blocks=[1]", "--recover", str(epochs), *NUMBERS, "--no-measure")
    return [
        *("compress", str(folder / "dense"), "--data", "digits", "--limit", "40", *methods),
        *("--out", str(folder / out), *more),
    ]


@pytest.fixture(scope="module")
def whole(folder: Path, invoke, one_thread: None) -> Path:
    done = invoke(*arguments(folder, "whole"))
    assert done.exit_code == 0, done.output
    assert "epoch 3 of 3" in done.stderr, "its progress is shown"
    return folder / "whole"


def weights(run: Path) -> bytes:
    (file,) = run.glob("weights-*.safetensors")
    return file.read_bytes()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_compression_ended_by_a_signal_goes_on(folder: Path, whole: Path, invoke, number: signal.Signals) -> None:
    out = folder / number.name
    process = subprocess.Popen(
        [sys.executable, "-m", "leanvit", *arguments(folder, number.name)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("epoch 1 of"):
            process.send_signal(number)
            break
    said += process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
    assert (out / "steps/2-recovery/training/state.safetensors").is_file() and not (out / "leanvit.json").exists()
    if number == signal.SIGTERM:
        assert "To go on: leanvit compress" in said and said.rstrip().endswith("--resume"), said
    done = invoke(*arguments(folder, number.name, "--resume"))
    assert done.exit_code == 0, done.output
    assert weights(out) == weights(whole)
    assert not (out / "steps").exists()
    epochs = [row for row in map(json.loads, (out / "train.jsonl").read_text().splitlines()) if row["event"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [0, 1, 2], "the curve is that of the whole recovery"
    again = invoke(*arguments(folder, number.name, "--resume"))
    assert again.exit_code == 2 and "no compression to go on with" in again.stderr


def test_what_the_recovery_is_taught_and_how_is_asked_for(folder: Path, whole: Path, invoke) -> None:
    """A rate of zero weight decay, hard targets and another teacher each change the result; a recipe says the same."""
    found = {weights(whole)}
    ways = {
        "hard": ("--distill", "hard"),
        "taught": ("--teacher", str(folder / "teacher")),
        "smooth": ("--recover-set", "label_smoothing=0.2"),
        "averaged": ("--recover-set", "ema_decay=0.5"),
    }
    for name, words in ways.items():
        done = invoke(*arguments(folder, name, *words))
        assert done.exit_code == 0, done.output
        found.add(weights(folder / name))
    assert len(found) == 1 + len(ways)
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'model = "{folder / "dense"}"\ndata = "digits"\nteacher = "{folder / "teacher"}"\n'
        '[[method]]\nslug = "evit"\nblocks = [1]\n'
        "[recovery]\nepochs = 9\nbatch_size = 10\nalpha = 0.3\nsettings = {save_every = 1}\n"
    )
    options = ("--limit", "40", "--no-measure", "--recover", "3", "--out", str(folder / "by-recipe"))
    done = invoke("compress", "--recipe", str(recipe), *options)
    assert done.exit_code == 0, done.output
    assert weights(folder / "by-recipe") == weights(folder / "taught"), (
        "the command line's epochs stand over the file's"
    )
    assert load_run(folder / "by-recipe").info["asked"][0]["method"] == "evit"
    assert (
        load_file(next((folder / "averaged").glob("weights-*"))).keys()
        == load_file(next(whole.glob("weights-*"))).keys()
    )
