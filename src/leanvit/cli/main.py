"""The program `leanvit`: its verbs, and how errors end it.

Exit codes: 0 it worked; 1 it failed; 2 the request must change (usage, bad input, a combination that is refused);
130 it was interrupted. Nothing heavy is imported here: `leanvit --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from leanvit import __version__
from leanvit.cli import compress, data, demo, export, measure, methods, report, train
from leanvit.cli.importing import import_modules
from leanvit.errors import BadInput, LeanvitError, Refused


class _Program(TyperGroup):
    """Turns the errors that a user can act on into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LeanvitError, OSError, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                raise
            raise typer.Exit(_explain(error)) from None


def _explain(error: BaseException) -> int:
    """Say what went wrong on stderr; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(f"leanvit: {error or 'interrupted'}", file=sys.stderr)
        return 130
    text = str(error) or type(error).__name__
    print(f"leanvit: {text}", file=sys.stderr)
    return 2 if isinstance(error, BadInput | Refused) else 1


app = typer.Typer(
    cls=_Program,
    name="leanvit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"leanvit {__version__}")
        raise typer.Exit


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module of yours that registers methods. Repeats."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make vision transformers lean: train, compress, measure, export, report.

    Start with `leanvit demo`. What can be applied to a model: `leanvit methods`.
    """
    import_modules(modules or ())


for verb in (demo, methods, data, train, compress, measure, export, report):
    app.command(verb.NAME)(verb.command)


def main() -> None:
    """Entry point of the program."""
    # Threads that wait for one another sleep instead of spinning: with one core taken by another program, spinning
    # makes small training steps more than ten times slower. Read when PyTorch is loaded; a value that is set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
