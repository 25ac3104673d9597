"""The program as a whole: it answers at once, suggests, and ends with the right code."""

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from leanvit import __version__
from leanvit.cli.main import app

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
    for verb in ("demo", "methods", "data", "train", "compress", "measure", "export", "report"):
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


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leanvit", "--debug", "methods", "evitt"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "BadInput" in done.stderr


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
    told = json.loads(runner.invoke(app, ["methods", "evit", "--json"]).stdout)
    assert told["slug"] == "evit"
    (knob,) = (knob for knob in told["knobs"] if knob["name"] == "keep_rate")
    assert knob["default"] == 0.7 and "float" in knob["kind"]
    assert told["composes"]["int8"].startswith("yes, evit first")
