"""The program `leanvit`: its verbs, and how errors end it.

Nothing heavy is imported here: `leanvit --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from leanvit import __version__
from leanvit.cli import (
    compare_methods,
    compress,
    data,
    demo,
    ending,
    export,
    latencies,
    measure,
    methods,
    output,
    predict,
    publish,
    recipes,
    references,
    report,
    retune,
    train,
)
from leanvit.cli.importing import import_modules
from leanvit.cli.panels import Verb, Verbs
from leanvit.cli.together import TOGETHER, require_one_process

EXIT_CODES = (
    "Exit codes: 0 it worked; 1 it failed; 2 the request must change (usage, bad input, a combination that is "
    "refused); 130 it was interrupted."
)


_RENAMED = {compare_methods.OLD_NAME: compare_methods.NAME}


class _Program(Verbs):
    """Turns every error into one line and an exit code; with `--debug` the traceback comes before the line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """An old name of a command works, and warns on stderr."""
        if args[0] in _RENAMED:
            new = _RENAMED[args[0]]
            if output.process()[0] == 0:
                output.log(
                    f"leanvit: warning: the command {args[0]} is now {new}; the old name goes in the next release"
                )
            args = [new, *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        with output.quiet_libraries(not debug):
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                    raise  # typer's own: usage errors and ends with a code
                if debug:
                    traceback.print_exc()
                raise typer.Exit(ending.explain(error)) from None


app = typer.Typer(
    cls=_Program,
    name="leanvit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _version(given: bool) -> None:
    if given:
        print(f"leanvit {__version__}")
        raise typer.Exit


@app.callback()
def program(
    ctx: typer.Context,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module of yours: registers methods, holds papers. Repeats."),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="LEANVIT_DEBUG", help="Show tracebacks, and what libraries warn about.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make vision transformers lean: train, compress, measure, export, report.

    Start with `leanvit demo`. What can be applied to a model: `leanvit methods`.
    """
    if ctx.invoked_subcommand not in TOGETHER:
        require_one_process(str(ctx.invoked_subcommand))
    import_modules(modules or ())
    ctx.with_resource(output.data_progress())


for verb in (
    demo,
    methods,
    references,
    data,
    train,
    compress,
    retune,
    compare_methods,
    measure,
    latencies,
    predict,
    export,
    report,
    publish,
):
    app.command(verb.NAME, cls=Verb)(verb.command)
app.add_typer(recipes.app, name=recipes.NAME)


def main() -> None:
    """Entry point of the program."""
    # Threads that wait for one another sleep instead of spinning: with one core taken by another program, spinning
    # makes small training steps more than ten times slower. Read when PyTorch is loaded; a value that is set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if output.process()[1] > 1:  # of DDP, that a flag costs time which odd models need; read when PyTorch is loaded
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    ending.note_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text
    try:
        app()
    except SystemExit as end:
        ending.leave(end.code)
