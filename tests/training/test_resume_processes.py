"""Two processes that are killed, stopped or replaced by another number of processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from everything import At, changed, run_everything
from processes import run_as_torchrun, run_on
from safetensors.torch import load_file, save_file
from tiny_training import make_data, make_preprocess

from leanvit.training import CrossEntropy, Interrupted, join_world
from leanvit.training.checkpoint import STATE, read_position


class Noting(CrossEntropy):
    """Writes the keys of every batch to a file of its process."""

    def __init__(self, folder: Path):
        super().__init__()
        self._file = folder / f"keys-{join_world().rank}.jsonl"

    def forward(self, model, batch, step, context):
        with self._file.open("a") as file:
            file.write(json.dumps([step, batch.keys]) + "\n")
        return super().forward(model, batch, step, context)


def noted(folder: Path) -> dict[int, list[str]]:
    """The keys of each step, of all processes; the last sitting's where a step was repeated."""
    found: dict[int, list[str]] = {}
    for file in sorted(folder.glob("keys-*.jsonl")):
        own: dict[int, list[list[str]]] = {}
        for step, keys in map(json.loads, file.read_text().splitlines()):
            own.setdefault(step, []).append(keys)
        for step, batches in own.items():
            found.setdefault(step, []).extend(key for keys in batches[-2:] for key in keys)  # accumulate is 2
    return {step: sorted(keys) for step, keys in found.items()}


def train(out: Path, *, resume: bool = False, until: int | None = None, number: int = signal.SIGKILL, **config) -> None:
    """The run with everything on; until: the step after which `number` hits. Leaves its weights in files."""
    callbacks = [] if until is None else [At(until, lambda run: os.kill(os.getpid(), number))]
    if number != signal.SIGKILL and join_world().rank < join_world().size - 1:
        callbacks = []  # the last process alone hears it
    data, val = make_data(96), make_data(61, split="val")
    try:
        result = run_everything(
            data,
            make_preprocess(),
            val,
            out=out,
            resume=resume,
            callbacks=callbacks,
            objective=Noting(out),
            config=changed(**config),
        )
    except Interrupted as interrupted:
        (out / f"interrupted-{join_world().rank}").write_text(str(interrupted))
        return
    if join_world().first:
        save_file({n: t.clone() for n, t in result.model.state_dict().items()}, out / "model")
        save_file({n: t.clone() for n, t in result.ema.state_dict().items()}, out / "ema")


def resumed(out: Path, **config) -> None:
    train(out, resume=True, **config)


def killed(out: Path) -> None:
    train(out, until=7)


def told_to_stop(out: Path, parallel: str) -> None:
    train(out, until=5, number=signal.SIGTERM, parallel=parallel)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of two processes that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    assert run_on(2, train, out) == [0, 0]
    return out


def assert_as_whole(out: Path, whole: Path, *, exact: bool) -> None:
    for name in ("model", "ema"):
        mine, other = load_file(out / name), load_file(whole / name)
        assert mine.keys() == other.keys()
        for key, tensor in mine.items():
            torch.testing.assert_close(tensor, other[key], atol=0 if exact else 2e-4, rtol=0, msg=key)


def test_killed_and_resumed_is_bit_identical(whole, tmp_path):
    assert run_on(2, killed, tmp_path) == [-signal.SIGKILL] * 2
    assert read_position(tmp_path / STATE).progress["step"] == 6
    assert run_on(2, resumed, tmp_path) == [0, 0]
    assert_as_whole(tmp_path, whole, exact=True)
    assert noted(tmp_path) == noted(whole)
    mine, other = load_file(tmp_path / STATE), load_file(whole / STATE)
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


def test_two_processes_go_on_as_one(whole, tmp_path):
    assert run_on(2, killed, tmp_path) == [-signal.SIGKILL] * 2
    resumed(tmp_path)
    assert noted(tmp_path)[8] == noted(whole)[8] and len(noted(tmp_path)) == 12
    assert_as_whole(tmp_path, whole, exact=False)


@pytest.mark.parametrize(("size", "parallel", "then"), [(1, "ddp", "fsdp2"), (2, "fsdp2", "ddp")])
def test_a_signal_to_one_process_stops_all_and_two_others_go_on(whole, tmp_path, size, parallel, then):
    """SIGTERM at one of one or two; two finish, under the other parallelism."""
    assert run_on(size, told_to_stop, tmp_path, parallel) == [0] * size
    for rank in range(size):
        assert "stopped after step 5 of 12; the state is saved" in (tmp_path / f"interrupted-{rank}").read_text()
    assert read_position(tmp_path / STATE).progress["step"] == 5
    assert run_on(2, finished_elsewhere, tmp_path, then) == [0, 0]
    assert_as_whole(tmp_path, whole, exact=False)
    assert noted(tmp_path) == noted(whole)


def finished_elsewhere(out: Path, parallel: str) -> None:
    resumed(out, parallel=parallel)


TINY = ["--model-arg", "depth=2", "--model-arg", "embed_dim=24", "--model-arg", "num_heads=2"]


def command_line(out: Path, *more: str) -> None:
    """`leanvit train` as torchrun starts it; what each process prints goes to files."""
    import sys

    rank = os.environ["RANK"]
    for name in ("stdout", "stderr"):
        setattr(sys, name, (out.parent / f"{name}-{rank}").open("w"))
    asked = ["--data", "digits", "--limit", "80", "--adapt", *TINY, "--epochs", "2", "--out", str(out)]
    sys.argv = ["leanvit", "train", "vit_tiny_patch16_224", *asked, *more]
    from leanvit.cli.main import main

    main()


def test_the_program_under_torchrun(tmp_path):
    out = tmp_path / "run"
    assert run_as_torchrun(2, command_line, out, "--batch-size", "20", "--set", "mixup=0.2") == [0, 0]
    said = {name: (tmp_path / name).read_text() for name in ("stdout-0", "stdout-1", "stderr-0", "stderr-1")}
    assert "2 epochs" in said["stdout-0"] and "epoch 2 of 2" in said["stderr-0"]
    assert said["stdout-1"] == said["stderr-1"] == ""
    from leanvit.recipe import load_run

    assert load_run(out).model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert run_as_torchrun(2, command_line, tmp_path / "odd", "--batch-size", "21") == [2, 2]
    assert (tmp_path / "stderr-0").read_text().count("batch_size=21 is not accepted with 2 processes") == 1
    assert (tmp_path / "stderr-1").read_text() == "" and not (tmp_path / "odd").exists()


def test_a_folder_that_exists_is_an_error_of_all(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "something").touch()
    assert run_as_torchrun(2, command_line, out, "--batch-size", "20") == [2, 2]
    assert "is not empty" in (tmp_path / "stderr-0").read_text()
