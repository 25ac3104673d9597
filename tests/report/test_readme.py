"""The README: its table is papers.toml's, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from leanvit.cli.main import app
from leanvit.errors import BadInput
from pages import readme

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.startswith("leanvit")
] + re.findall(r"`(leanvit [a-z][^`]*)`", TEXT)


def test_every_paper_has_a_row() -> None:
    for row in readme.rows():
        assert f"| `{row.slug}` |" in TEXT


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


def test_a_figure_is_a_number_with_its_setting() -> None:
    assert (
        readme.figure("DeiT-S/224, batch 8: 1.49x in PyTorch, 1.5x elsewhere. CIFAR: 3")
        == "DeiT-S/224: 1.49x in PyTorch"
    )
    assert readme.figure("CIFAR-10: all of it (1.35x, 2x) for 0.5 points; and more") == (
        "CIFAR-10: all of it (1.35x, 2x) for 0.5 points"
    )


def test_rows_are_grouped_by_family_and_unknown_families_come_last() -> None:
    found = [
        readme.Row("b", "prune", "cuts", ""),
        readme.Row("c", "new", "adds", ""),
        readme.Row("a", "tokens", "x|y", ""),
    ]
    lines = readme.table(found).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        *("**Fewer tokens**", "`a`", "**Smaller layers**", "`b`", "**new**", "`c`")
    ]
    assert "x\\|y" in lines[1] and "[not yet](docs/methods/b.md)" in lines[3]


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"demo", "test", "check", "bench"} <= set(targets)
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert target in targets
