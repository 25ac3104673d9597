"""Every wrong call of the tables: the error that it must give, in its words, and a folder that stays as it was."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import table_columns
import table_compare
import table_dhvt
import table_fields
import table_files
import table_interrupted
import table_judging
import table_names
import table_parts
import table_paths
import table_recipes
import table_shapes
import table_values
from typer.testing import CliRunner
from wrong import Case, Cli, missing, plain, tree

from leanvit.cli.main import app

TABLES = (
    table_names,
    table_values,
    table_shapes,
    table_paths,
    table_files,
    table_interrupted,
    table_judging,
    table_recipes,
    table_compare,
    table_dhvt,
    table_fields,
    table_columns,
    table_parts,
)
CASES: list[Case] = [case for table in TABLES for case in table.CASES]
CLI: list[Cli] = [case for table in TABLES for case in table.CLI]


@pytest.mark.parametrize("case", CLI, ids=lambda case: case.name)
def test_command_line(case: Cli, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    before = tree(world)
    result = CliRunner().invoke(app, list(case.argv))
    assert result.exit_code == case.code, result.output
    assert not isinstance(result.exception, Exception), "an error got past the program"
    assert not missing(case.says, result.stderr), plain(result.stderr)
    assert not result.stdout and "Traceback" not in result.stderr and "unexpected error" not in result.stderr, (
        result.output
    )
    assert tree(world) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python(case: Case, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    before = tree(world)
    with pytest.raises(case.error) as caught:
        case.call()
    assert not missing(case.says, str(caught.value)), plain(str(caught.value))
    assert tree(world) == before


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("commands-damaged", "commands.jsonl is not a record of commands"),
        ("measure-damaged", "measure-damaged/measure.json: not a comparison"),
        ("measure-swapped", "measure-swapped/measure.json: "),
        ("tokens-damaged", "tokens-damaged/tokens.json: not token maps"),
    ],
)
def test_a_report_names_what_it_cannot_read_and_is_written(
    run: str, says: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = tree(world)
    result = CliRunner().invoke(app, ["report", run, "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0 and "Traceback" not in result.output, result.output
    assert "warning: not in the report: " in result.stderr and not missing((says,), result.stderr)
    assert says.rpartition("/")[2] in (tmp_path / "page.html").read_text() and tree(world) == before


def test_the_table_is_large_and_every_name_is_used_once() -> None:
    names = Counter(case.name for case in (*CASES, *CLI))
    assert len(names) >= 200
    assert sorted(name for name, count in names.items() if count > 1) == []


def test_every_case_says_something_of_its_own() -> None:
    """An error names the argument, what was given or what is accepted: a phrase of one word would hold for anything."""
    for case in (*CASES, *CLI):
        assert sum(len(phrase) for phrase in case.says) >= 8, case.name


def test_the_world_is_seen(world: Path) -> None:
    """The check that nothing changed would see a file made, changed or removed."""
    before = tree(world)
    (world / "made").write_text("x")
    assert tree(world) != before
    os.unlink(world / "made")
    assert tree(world) == before
