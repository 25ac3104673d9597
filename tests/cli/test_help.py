"""Help: options in panels, flags without a type, at the widths of terminals."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from leanvit.cli.main import app
from leanvit.cli.panels import PANELS

PROGRAM = typer.main.get_command(app)
VERBS = [[], *([name] for name in PROGRAM.commands), *(["recipes", n] for n in PROGRAM.commands["recipes"].commands)]


def options_of(words: list[str]) -> list:
    command = PROGRAM
    for word in words:
        command = command.commands[word]
    with typer.Context(command) as context:
        return [p for p in command.get_params(context) if p.param_type_name == "option"]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_option_stands_in_a_panel(words: list[str]) -> None:
    order = list(PANELS)
    panels = [option.rich_help_panel for option in options_of(words)]
    assert all(option.metavar == "" for option in options_of(words) if option.is_flag)
    assert set(panels) <= set(order), [o.name for o in options_of(words) if o.rich_help_panel not in order]
    assert [order.index(panel) for panel in panels] == sorted(order.index(panel) for panel in panels)


@pytest.mark.parametrize(
    ("width", "words"), [("80", []), ("80", ["train"]), ("100", ["compare-methods"]), ("80", ["recipes", "show"])]
)
def test_flags_show_no_type_and_panels_are_named(width: str, words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": width}).output
    assert "<bool>" not in shown and max(map(len, shown.splitlines())) <= int(width)
    for panel in {option.rich_help_panel for option in options_of(words)}:
        assert panel in shown
