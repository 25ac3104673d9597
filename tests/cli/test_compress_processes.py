"""`leanvit compress` as torchrun starts it: two processes give what one gives, one of them speaks and writes, and a run
that is killed goes on with the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torchrun import RECOVER, assert_close, command_line, dense_run, dying, run_as_torchrun, said, weights

from leanvit.recipe import load_run
from leanvit.training.checkpoint import STATE

NVIT = ("--with", "nvit:macs=0.8,batch_size=8,max_steps=10,interval=5")
LGVIT = ("--with", "lgvit:exits=[1],heads=[gah2],epochs=1,batch_size=8,held_out=0.2,speedup=1.1")

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_run(tmp_path_factory.mktemp("processes"))


def compressing(folder: Path, out: str, *methods: str) -> tuple[str, ...]:
    given = ("--data", "digits", "--limit", "40", *methods, "--out", str(folder / out))
    return ("compress", str(folder / "dense"), *given)


@pytest.mark.parametrize(
    "methods", [(*NVIT, *RECOVER), (*NVIT, *RECOVER, "--with", "int8:images=16"), LGVIT], ids=["nvit", "int8", "lgvit"]
)
def test_two_processes_give_what_one_gives(folder: Path, tmp_path: Path, invoke, methods: tuple[str, ...]) -> None:
    name = "-".join(word.partition(":")[0] for word in methods[1::2])
    alone = invoke(*compressing(folder, f"{name}-alone", *methods, "--no-measure"))
    assert alone.exit_code == 0, alone.output
    assert run_as_torchrun(2, command_line, tmp_path, *compressing(folder, f"{name}-two", *methods)) == [0, 0], said(
        tmp_path
    )
    assert_close(folder / f"{name}-two", folder / f"{name}-alone")  # statistics of a batch norm would differ
    one, two = (load_run(folder / f"{name}-{run}") for run in ("alone", "two"))
    if "lgvit" not in name:
        assert [p.to_json() for p in one.model.history.plans] == [p.to_json() for p in two.model.history.plans]
    found = said(tmp_path)
    assert found["stdout-1"] == found["stderr-1"] == "", "the first one speaks"
    assert "training:" in found["stderr-0"] and "top-1" in found["stdout-0"]
    assert (folder / f"{name}-two" / "measure.json").is_file() and not (folder / f"{name}-two" / "steps").exists()


@pytest.mark.parametrize(("steps", "under_way"), [(3, "1-nvit"), (7, "2-recovery")])
def test_two_that_are_killed_go_on_with_the_same_bits(folder: Path, tmp_path: Path, steps: int, under_way: str) -> None:
    whole, out = folder / f"whole-{steps}", folder / f"killed-{steps}"
    methods = (*NVIT, *RECOVER, "--no-measure")
    assert run_as_torchrun(2, command_line, tmp_path, *compressing(folder, whole.name, *methods)) == [0, 0]
    words = compressing(folder, out.name, *methods)
    assert run_as_torchrun(2, dying, tmp_path, steps, *words) == [-signal.SIGKILL] * 2
    assert (out / "steps" / under_way / STATE).is_file() and not (out / "leanvit.json").exists()
    assert run_as_torchrun(2, command_line, tmp_path, *words, "--resume") == [0, 0], said(tmp_path)
    mine, its = weights(out), weights(whole)
    assert mine.keys() == its.keys() and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def test_an_error_is_that_of_all_and_one_says_it(folder: Path, tmp_path: Path) -> None:
    """Before any work: a batch that cannot be shared, a folder that is taken."""
    words = compressing(folder, "odd", "--with", "evit:blocks=[1]", "--recover", "1", "--recover-batch", "9")
    assert run_as_torchrun(2, command_line, tmp_path, *words) == [2, 2]
    found = said(tmp_path)
    assert found["stderr-0"].count("batch_size is 9, which 2 processes share; accepted: a multiple of 2") == 1
    assert found["stderr-1"] == "" and not (folder / "odd").exists()
    (folder / "taken").mkdir()
    (folder / "taken" / "something").touch()
    words = compressing(folder, "taken", "--with", "evit:blocks=[1]")
    assert run_as_torchrun(2, command_line, tmp_path, *words) == [2, 2]
    assert "is not empty" in said(tmp_path)["stderr-0"]


def test_what_does_not_train_runs_on_several_too(folder: Path, tmp_path: Path) -> None:
    words = compressing(folder, "evit", "--with", "evit:blocks=[1]", "--no-measure", "--json")
    assert run_as_torchrun(2, command_line, tmp_path, *words) == [0, 0], said(tmp_path)
    assert json.loads(said(tmp_path)["stdout-0"])["label"] == "evit" and said(tmp_path)["stdout-1"] == ""
