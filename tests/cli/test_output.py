"""Names of files and classes may hold anything: a terminal shows them, and obeys none."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from leanvit.cli import output
from leanvit.cli.main import app
from leanvit.recipe.store import _instead
from leanvit.verbs.models import log_bad

ODD = "\x1b[2J\x1b]0;title\x07 \r \x9b31m \u202e [red]b[/red] \udce9"


def test_nothing_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class")
    table.add_row(Text(ODD))
    output.log(ODD)
    output.show(ODD)
    output.print_rich(table, ODD)
    payload = capsys.readouterr()
    for text in (payload.err, payload.out):
        assert not set(text) & set("\x1b\x07\r\x9b\u202e\udce9"), "a control character went through"
        assert "\\x1b[2J" in text and "\\u202e" in text and "[red]b[/red]" in text and "\\udce9" in text
    assert output.plain("ünïcode\tand\nlines") == "ünïcode\tand\nlines"


def test_a_folder_with_an_odd_name_is_only_shown(tmp_path: Path) -> None:
    (tmp_path / "x\x1b[31m").mkdir()
    result = CliRunner().invoke(app, ["measure", str(tmp_path / "x\x1b[31m"), "--data", "digits"])
    assert result.exit_code == 2 and "\\x1b[31m" in result.stderr and "\x1b[31mx" not in result.stderr
    assert "x\x1b" not in result.stderr


def test_commands_to_be_copied_are_quoted(tmp_path: Path) -> None:
    run = tmp_path / "my run; rm -rf x"
    (run / "training").mkdir(parents=True)
    (run / "training" / "state.safetensors").touch()
    assert _instead(run).endswith(f"--resume --out {shlex.quote(str(run))}")

    class Bad:
        reason = "cannot be read"

    class Data:
        split, spec, bad = "train", "folder:my pictures?on_bad=skip", [Bad()] * 21

    said: list[str] = []
    log_bad(said.append, Data())  # type: ignore[arg-type]
    assert "leanvit data 'folder:my pictures?on_bad=skip' --all --json" in said[-1]
