"""`leanvit recipes`: the training recipes that come with the package, and checks of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanvit.cli import options, output
from leanvit.cli.panels import Verb, Verbs
from leanvit.errors import BadInput

if TYPE_CHECKING:
    from leanvit.training import TrainRecipe

NAME = "recipes"
RecipeName = Annotated[
    str, typer.Argument(metavar="NAME", help="A recipe that comes with leanvit.", show_default=False)
]
app = typer.Typer(
    cls=Verbs,
    help="List the training recipes, show one, copy one to edit, or check a file.",
    no_args_is_help=False,
)


@app.callback(invoke_without_command=True)
def listing(ctx: typer.Context, as_json: options.Json = False) -> None:
    """List the training recipes, show one, copy one to edit, or check a file."""
    if ctx.invoked_subcommand is not None:
        return
    from leanvit.training import preset, preset_names

    found = [preset(name) for name in preset_names()]
    if as_json:
        output.print_json([_short(recipe) for recipe in found])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in ("recipe", "what", "target"):
        table.add_column(heading, overflow="fold")
    for recipe in found:
        paper = f" [{recipe.arxiv}]" if recipe.arxiv else ""
        table.add_row(Text(recipe.name), Text(f"{recipe.title}{paper}"), Text(_target(recipe)))
    output.print_rich(table)
    output.show("More of one: leanvit recipes show NAME. To use it: leanvit train --data DATA --recipe NAME")


@app.command("show", cls=Verb)
def show(name: RecipeName, as_json: options.Json = False) -> None:
    """Show one recipe: its file, as it comes with the package."""
    from leanvit.training import preset

    recipe = preset(name)
    if as_json:
        output.print_json(_whole(recipe))
    else:
        print(recipe.text, end="")


@app.command("copy", cls=Verb)
def copy(
    name: RecipeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file, FILE.toml.", show_default=False)],
    overwrite: options.Overwrite = False,
) -> None:
    """Copy a recipe into a file to edit; `leanvit train --recipe FILE` reads it."""
    from leanvit.files import write_atomic
    from leanvit.runs.folders import new_file
    from leanvit.training import preset

    recipe = preset(name)
    if file.suffix != ".toml":
        raise BadInput(f"FILE is {str(file)!r}; accepted: a path that ends with .toml")
    path = new_file(file, None, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, recipe.text.encode())
    output.show(f"{path}: recipe {name}. Next: leanvit train --data DATA --recipe {shlex.quote(str(path))} --dry-run")


@app.command("validate", cls=Verb)
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe, or timm's args.yaml.", show_default=False)],
    as_json: options.Json = False,
) -> None:
    """Check a recipe file, and show what timm's args.yaml amounts to."""
    from leanvit.training import load_train_recipe

    recipe = load_train_recipe(file)
    for remark in recipe.remarks:
        output.log(remark)
    if as_json:
        output.print_json(_whole(recipe))
        return
    config = recipe.config()
    start = recipe.model or f"a run ({recipe.starts_from})"
    output.show(f"{file}: {start}, {config.length_text}, learning rate {config.lr_text}. It is valid.")


def _target(recipe: TrainRecipe) -> str:
    target = recipe.target
    if target is None:
        return ""
    return target.conditions if target.percent is None else f"{target.percent:g} % {target.metric}, {target.data}"


def _short(recipe: TrainRecipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "arxiv": recipe.arxiv,
        "source": recipe.source,
        "target": None if recipe.target is None else recipe.target.model_dump(),
    }


def _whole(recipe: TrainRecipe) -> dict[str, Any]:
    return {
        **_short(recipe),
        "model": recipe.model,
        "also": list(recipe.also),
        "model_args": dict(recipe.model_args),
        "starts_from": recipe.starts_from,
        "pretrained": recipe.pretrained,
        "fit": recipe.config().to_json(),
        "distill": None if recipe.distill is None else vars(recipe.distill),
        "data": None if recipe.data is None else recipe.data.model_dump(),
        "notes": recipe.notes.strip(),
        "unverified": list(recipe.unverified),
        "remarks": list(recipe.remarks),
    }
