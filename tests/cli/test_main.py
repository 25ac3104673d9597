"""The program as a whole: it answers at once, suggests, and ends with the right code."""

import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import leanvit
from leanvit import __version__
from leanvit.cli import compare_methods
from leanvit.cli.main import app
from leanvit.cli.together import TOGETHER
from leanvit.errors import BadInput

runner = CliRunner()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["compress", "--help"]])
def test_answers_without_importing_torch(arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['leanvit', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('leanvit', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'timm', 'numpy', 'plotly', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    """0.2 s on the machine where this was written; the bound leaves room for a busy one. Best of three."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "leanvit", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    assert min(times) < 2.0


def test_help_lists_every_verb() -> None:
    shown = runner.invoke(app, ["--help"]).output
    for verb in ("demo", "methods", "data", "train", "compress", "measure", "latencies", "export", "report"):
        assert verb in shown


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output == f"leanvit {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compres"], "compress"),
        (["train", "m", "--data", "digits", "--epoch", "3"], "--epochs"),
        (["methods", "evitt"], "did you mean 'evit'"),
        (["compress", "deit_tiny_patch16_224", "--with", "evitt"], "did you mean 'evit'"),
        (["compress", "deit_tiny_patch16_224", "--with", "evit:keeprate=0.7"], "'keep_rate'"),
        (["train", "deit_tinny_patch16_224", "--data", "digits"], "deit_tiny_patch16_224"),
        (["train", "deit_tiny_patch16_224", "--data", "digits", "--set", "epoch=2"], "'epochs'"),
        (["measure", "deit_tiny_patch16_224", "--data", "digits", "--runtime", "openvin"], "'openvino'"),
        (["export", "deit_tiny_patch16_224", "--to", "openvin"], "'openvino'"),
        (["export", "runs/nothing-here"], "no run folder"),
        (["train", "deit_tiny_patch16_224", "--data", "digits", "--model-arg", "depth"], "KEY=VALUE"),
        (["train", "deit_tiny_patch16_224", "--data", "digits"], "--adapt"),
        (["compress", "deit_tiny_patch16_224"], "--with METHOD"),
        (["compress"], "MODEL"),
        (["report"], "RUN"),
    ],
)
def test_a_wrong_request_ends_with_2_and_a_hint(arguments: list[str], hint: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert hint in result.output.replace("\n│ ", " ")
    assert "Traceback" not in result.output


def test_the_old_name_of_a_command_works_and_warns(monkeypatch) -> None:
    def compared(model, data, *_, **__):
        raise BadInput(f"called with {model} and {data}")

    monkeypatch.setattr(compare_methods, "load_verb", {"compare_methods": compared}.__getitem__)
    result = runner.invoke(app, ["compare", "m", "--data", "digits"])
    assert result.exit_code == 2 and "called with m and digits" in result.stderr
    assert "the command compare is now compare-methods" in result.stderr and not result.stdout
    assert "the command" not in runner.invoke(app, ["compare-methods", "m", "--data", "digits"]).stderr


def test_what_does_not_train_together_is_refused_under_torchrun(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    allowed = "start it without torchrun, which is for train, compress, compare-methods and demo"
    train = ["train", "vit_tiny_patch16_224", "--data", "digits", "--dry-run"]
    for words, name in (
        (["measure", "run", "--data", "digits"], "measure"),
        (["methods"], "methods"),
        (train, train[0]),
    ):
        result = runner.invoke(app, words)
        what = f"{name} --dry-run" if name == "train" else name
        assert result.exit_code == 2
        assert f"{what} runs in one process, but torchrun started 2: {allowed}" in " ".join(result.stderr.split())


def test_the_torchrun_list_names_commands() -> None:
    assert set(TOGETHER) <= {verb.name for verb in app.registered_commands}


def test_a_failure_ends_with_1(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "leanvit.json").write_text("{")
    result = runner.invoke(app, ["export", str(run)])
    assert result.exit_code == 1
    assert "is not valid JSON" in result.output


def test_an_interrupt_ends_with_130(monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr("leanvit.report.write_report", stop, raising=False)
    result = runner.invoke(app, ["report", "x"])
    assert result.exit_code == 130
    assert "stopped after step 3" in result.output


@pytest.mark.parametrize(("words", "variables"), [(["--debug"], {}), ([], {"LEANVIT_DEBUG": "1"})])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(words: list[str], variables: dict[str, str]) -> None:
    result = runner.invoke(app, [*words, "methods", "evitt"], env=variables)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and "BadInput" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("leanvit: unknown method 'evitt'")


def test_help_tells_the_exit_codes() -> None:
    shown = " ".join(runner.invoke(app, ["--help"]).output.split())
    for meaning in ("0 it worked", "1 it failed", "2 the request must change", "130 it was interrupted"):
        assert meaning in shown


def test_an_interrupt_during_a_compiled_import_ends_with_130(monkeypatch) -> None:
    """A compiled module that is interrupted while it loads raises ImportError from the interrupt."""

    def stop(*args: object, **options: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("leanvit.report.write_report", stop, raising=False)
    result = runner.invoke(app, ["report", "runs/x"])
    assert result.exit_code == 130 and result.stderr.strip() == "leanvit: interrupted"


def test_an_unexpected_error_is_one_line_that_says_what_to_do(monkeypatch) -> None:
    def broken(*_, **__):
        raise ZeroDivisionError("a fault\nof the program")

    monkeypatch.setattr("leanvit.report.write_report", broken, raising=False)
    result = runner.invoke(app, ["report", "x"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "leanvit: unexpected error: ZeroDivisionError: a fault of the program; run again with --debug"
    )
    assert "report at" in line


def test_warnings_of_libraries_are_not_shown_unless_debugging(monkeypatch) -> None:
    def warns(*_, **__):
        warnings.warn_explicit("an old habit", UserWarning, "/somewhere/library.py", 3)
        warnings.warn_explicit("a gap in the count", UserWarning, leanvit.__file__, 3)
        logging.getLogger("library").warning("chatter")
        raise BadInput("the end")

    monkeypatch.setattr("leanvit.report.write_report", warns, raising=False)
    quiet = runner.invoke(app, ["report", "x"]).stderr
    assert quiet.splitlines() == ["leanvit: warning: a gap in the count", "leanvit: the end"]
    disabled = logging.root.manager.disable
    with pytest.warns(UserWarning, match="an old habit"):  # pytest is the one that shows them here
        runner.invoke(app, ["--debug", "report", "x"])
    assert logging.root.manager.disable == disabled == 0


def test_a_full_disk_behind_stdout_is_told() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "leanvit", "methods"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("leanvit: ") and line.endswith("No space left on device")


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "leanvit", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_the_way_out_runs_exit_handlers_and_writes_the_output() -> None:
    code = (
        "import atexit, threading, time\n"
        "from leanvit.cli.ending import leave\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "print('output', end=' ')\n"
        "leave(7)"
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (7, "output thread\nhandler\n")


def test_errors_go_to_stderr_and_stdout_stays_empty() -> None:
    result = runner.invoke(app, ["methods", "evitt", "--json"])
    assert result.stdout == ""
    assert "evit" in result.stderr


def test_methods_as_json() -> None:
    rows = json.loads(runner.invoke(app, ["methods", "--json"]).stdout)
    assert {"evit", "tome", "int8"} <= {row["slug"] for row in rows}
    for row in rows:
        assert {"slug", "title", "arxiv", "kind", "family", "module", "summary"} <= set(row)


def test_one_method_is_explained() -> None:
    shown = runner.invoke(app, ["methods", "evit"])
    assert shown.exit_code == 0, shown.output
    for text in ("keep_rate", "0.7", "a class token", "the full grid of patches", "2202.07800", "with int8"):
        assert text in shown.output


def test_one_method_as_json_has_knobs_with_their_defaults() -> None:
    payload = json.loads(runner.invoke(app, ["methods", "evit", "--json"]).stdout)
    assert payload["slug"] == "evit"
    (knob,) = (knob for knob in payload["knobs"] if knob["name"] == "keep_rate")
    assert knob["default"] == 0.7 and knob["accepts"].startswith("a number above 0, up to 1")
    assert knob["example"] == "keep_rate=0.7" and knob["meaning"]
    assert payload["composes"]["int8"].startswith("yes, evit first")
