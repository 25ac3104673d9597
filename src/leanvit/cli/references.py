"""`leanvit references`: the small trained models that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from leanvit.cli import options, output
from leanvit.recipe.catalogue import Reference, reference, references

NAME = "references"


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One reference: how it was made.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the trained models that come with leanvit, or one's record. Give leanvit/NAME as a MODEL."""
    if name is not None:
        _one(reference(name), as_json)
        return
    found = references()
    if as_json:
        output.print_json([_json(one) for one in found])
    elif found:
        _all(found)
    else:
        print("this leanvit comes without references")


def _json(one: Reference) -> dict[str, object]:
    return {"name": one.spec, "size_bytes": one.size_bytes, **one.record.to_json()}


def _all(found: list[Reference]) -> None:
    from rich import box
    from rich.table import Column, Table

    name = Column("MODEL", no_wrap=True, min_width=max(len(one.spec) for one in found))
    data, accuracy = (Column(heading, min_width=8) for heading in ("data", "accuracy"))
    table = Table(name, data, accuracy, "params", "MACs", "size", "trained", box=box.SIMPLE, pad_edge=False)
    for one in found:
        record = one.record
        table.add_row(
            one.spec,
            f"{record.data}, {record.images} images",
            record.figure(record.stored_score),
            f"{record.parameters / 1e6:.2f} M",
            f"{record.macs / 1e6:.0f} M",
            f"{one.size_bytes / 1e6:.1f} MB",
            f"{record.epochs} epochs, {record.training_seconds / 3600:.1f} h",
        )
    output.print_rich(table)
    print("More of one: leanvit references NAME")


def _one(one: Reference, as_json: bool) -> None:
    if as_json:
        output.print_json(_json(one))
        return
    for key, value in _json(one).items():
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            print(f"{key}:", *(f"  {line}" for line in value), sep="\n")
        else:
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
