"""`compare-methods` and `demo` as torchrun starts them: two processes give what one gives, one of them speaks, writes
and measures; what trains in no way is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import RECOVER, assert_close, command_line, dense_run, dying, run_as_torchrun, said, weights

from leanvit.errors import LeanvitError
from leanvit.recipe import load_run
from leanvit.runs.compared import BASELINE, SideBySide
from leanvit.training.checkpoint import STATE

DIFFRATE = ("--with", "diffrate:batch_size=10,max_steps=4")
FEW = ("--macs", "0.8", "--tolerance", "0.5", "--no-controls", "--rounds", "3", "--batch", "1")

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_run(tmp_path_factory.mktemp("processes"))


def comparing(folder: Path, out: str, *methods: str) -> tuple[str, ...]:
    given = ("--data", "digits", "--limit", "40", *methods, *FEW, "--out", str(folder / out))
    return ("compare-methods", str(folder / "dense"), *given)


def files(run: Path) -> set[str]:
    """All, but for weights, whose names are their sums."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if not path.name.startswith("weights-")}


def results(run: Path) -> list[dict[str, Any]]:
    return [{**vars(one), "seconds": 0.0} for one in SideBySide.read(run).standings]


def assert_alike(run: Path, other: Path, *, slugs: tuple[str, ...]) -> None:
    assert results(run) == results(other) and [one["name"] for one in results(run)] == list(slugs)
    for name in slugs:
        assert_close(run / name, other / name)
        mine, its = (load_run(path / name).model.history.plans for path in (run, other))
        assert [plan.to_json() for plan in mine] == [plan.to_json() for plan in its]
    mine, its = (json.loads((path / BASELINE / "measure.json").read_text())["rows"] for path in (run, other))
    assert [(row["name"], row["scores"]) for row in mine] == [(row["name"], row["scores"]) for row in its]


def test_two_processes_compare_as_one_does(folder: Path, tmp_path: Path, invoke) -> None:
    methods = ("--with", "tome", *DIFFRATE, *RECOVER, "--json")
    alone = invoke(*comparing(folder, "alone", *methods))
    assert alone.exit_code == 0, alone.output
    assert run_as_torchrun(2, command_line, tmp_path, *comparing(folder, "two", *methods)) == [0, 0], said(tmp_path)
    assert_alike(folder / "two", folder / "alone", slugs=("tome", "diffrate"))
    found = said(tmp_path)
    assert found["stdout-1"] == found["stderr-1"] == "", "the first one speaks"
    assert "diffrate: recovery" in found["stderr-0"]
    assert [one["name"] for one in json.loads(found["stdout-0"])["result"]["standings"]] == ["tome", "diffrate"]
    mine, its = (
        {str(path.relative_to(folder / run)) for path in (folder / run).rglob("*")} for run in ("two", "alone")
    )
    assert {name for name in mine if "weights-" not in name} == {name for name in its if "weights-" not in name}


def test_a_comparison_that_is_killed_goes_on_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    methods = ("--with", "tome", *DIFFRATE, *RECOVER)
    whole, killed = comparing(folder, "whole", *methods), comparing(folder, "killed", *methods)
    assert run_as_torchrun(2, command_line, tmp_path, *whole) == [0, 0], said(tmp_path)
    assert run_as_torchrun(2, dying, tmp_path, 6, *killed) == [-signal.SIGKILL] * 2
    assert (folder / "killed" / "tome" / "standing.json").is_file(), "one method is through, of the other its search"
    assert (folder / "killed" / "diffrate" / "steps" / "2-recovery" / STATE).is_file()
    assert not (folder / "killed" / "compare.json").exists()
    assert run_as_torchrun(2, command_line, tmp_path, *killed, "--resume") == [0, 0], said(tmp_path)
    for name in ("tome", "diffrate"):
        mine, its = weights(folder / "killed" / name), weights(folder / "whole" / name)
        assert mine.keys() == its.keys() and all(torch.equal(tensor, its[key]) for key, tensor in mine.items())
    assert results(folder / "killed") == results(folder / "whole")


def failing(said: Path, error: type[Exception], *words: str) -> None:
    """The program, in which the first process cannot write the token maps of `tome`."""
    from leanvit.verbs import applying

    keep = applying.keep_tokens

    def broken(*given: Any, name: str) -> None:
        if name == "tome":
            raise error("no room")
        keep(*given, name=name)

    applying.keep_tokens = broken
    command_line(said, *words)


def test_what_fails_on_one_process_is_left_out_on_all(folder: Path, tmp_path: Path) -> None:
    words = comparing(folder, "left-out", "--with", "tome", "--with", "evit", *RECOVER)
    assert run_as_torchrun(2, failing, tmp_path, LeanvitError, *words) == [0, 0], said(tmp_path)
    found = SideBySide.read(folder / "left-out")
    assert found.left_out == {"tome": "no room"} and [one.name for one in found.standings] == ["evit"]
    words = comparing(folder, "broken", "--with", "tome", "--with", "evit", *RECOVER)
    assert run_as_torchrun(2, failing, tmp_path, IndexError, *words) == [1, 1], "what nobody foresaw ends all"
    assert "unexpected error: IndexError: no room" in said(tmp_path)["stderr-0"]
    assert not (folder / "broken" / "compare.json").exists()


def test_an_error_is_that_of_all_and_one_says_it(folder: Path, tmp_path: Path) -> None:
    """Before any work: a batch that cannot be shared, a folder that is taken, commands of one process."""
    words = comparing(folder, "odd", "--with", "tome", "--recover", "1", "--recover-batch", "9")
    assert run_as_torchrun(2, command_line, tmp_path, *words) == [2, 2]
    assert "batch_size is 9, which 2 processes share" in said(tmp_path)["stderr-0"] and not (folder / "odd").exists()
    (folder / "taken").mkdir()
    (folder / "taken" / "something").touch()
    for words in (comparing(folder, "taken", "--with", "tome"), ("demo", "--out", str(folder / "taken"))):
        assert run_as_torchrun(2, command_line, tmp_path, *words) == [2, 2]
        assert "is not empty" in said(tmp_path)["stderr-0"] and said(tmp_path)["stderr-1"] == ""


def small_demo(said: Path, whole: bool, *words: str) -> None:
    """The demo as it is, but for size; or what of it trains, which then ends with an error."""
    from leanvit.verbs import demonstration

    demonstration.MODEL_ARGS = {**demonstration.MODEL_ARGS, "img_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3}
    demonstration.TRAINING = {**demonstration.TRAINING, "batch_size": 64, "warmup_epochs": 0}
    demonstration.RECOVER, demonstration.BATCH, demonstration.ROUNDS, demonstration.LIMIT = 1, 4, 3, 128
    if not whole:
        demonstration.export = stopped  # type: ignore[assignment]
    command_line(said, *words)


def stopped(*_: Any, **__: Any) -> None:
    raise LeanvitError("nothing is exported here")


def test_two_processes_give_the_demo_of_one(tmp_path: Path) -> None:
    words = ("demo", "--epochs", "1", "--json", "--out")
    assert run_as_torchrun(1, small_demo, tmp_path, False, *words, str(tmp_path / "one")) == [1], said(tmp_path)
    assert "nothing is exported here" in said(tmp_path)["stderr-0"]
    assert run_as_torchrun(2, small_demo, tmp_path, True, *words, str(tmp_path / "two")) == [0, 0], said(tmp_path)
    found = said(tmp_path)
    assert found["stdout-1"] == found["stderr-1"] == "" and (tmp_path / "two" / "report.html").is_file()
    assert len(json.loads(found["stdout-0"])["rows"]) == 10, "five models in two runtimes"
    for name in ("dense", "evit", "tome", "int8", "evit-int8"):
        # a shift of all keys changes no attention: Adam makes steps of the rounding of its gradient, which is zero
        assert_close(tmp_path / "two" / name, tmp_path / "one" / name, but="k_norm.bias")
