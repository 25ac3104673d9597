"""The README: its table is papers.toml's, and its commands are commands."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

import leanvit
from leanvit.cli.main import app
from leanvit.errors import BadInput
from leanvit.recipe.papers import papers
from pages import readme

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.startswith("leanvit")
] + re.findall(r"`(leanvit [a-z][^`]*)`", TEXT)


def test_the_table_is_current() -> None:
    assert readme.renewed(TEXT) == TEXT, "run: make pages"
    for slug in papers():
        assert f"| `{slug}` |" in TEXT


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(BadInput, match="needs the lines"):
        readme.renewed("# leanvit\n")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    """The parser takes it: verb, options and their kinds. Nothing is run."""
    verb, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, arguments)


def test_there_are_commands_to_check() -> None:
    verbs = {shlex.split(line)[1] for line in COMMANDS}
    assert {"methods", "train", "compress", "measure", "export", "report"} <= verbs


def test_every_name_in_the_python_example_exists() -> None:
    (block,) = blocks("python")
    names = {
        n.attr for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "lv"
    }
    assert {"compress", "save", "compare"} <= names <= set(leanvit.__all__)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"demo", "test", "check", "bench"} <= set(targets)
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert target in targets


def test_files_and_pictures_that_are_linked_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not link.startswith("http"):
            assert (ROOT / link).is_file(), link
