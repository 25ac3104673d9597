"""The columns of a table of HF `datasets`, read whole (`hub`) or as a stream (`hubstream`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanvit.data import arrow
from leanvit.data.columns import Column, root_of
from leanvit.data.specs import Spec
from leanvit.errors import BadInput


def columns_of(spec: Spec, split: str, table: Any) -> arrow.Columns:
    """The image and label columns of a split."""
    where, taken = f"data {spec.text!r}, {split}", spec.columns.values()
    return arrow.find_columns(table.features.arrow_schema, where=where, labelled=spec.labelled, taken=taken)


def field_columns(spec: Spec, tables: dict[str, Any]) -> tuple[dict[str, Column], Path | None]:
    """(the columns that become fields, what paths in them start from). Raises BadInput, also for paths of no root=."""
    found = [
        arrow.field_columns(table.features.arrow_schema, spec.columns, where=f"data {spec.text!r}, {split}")
        for split, table in tables.items()
    ]
    columns = arrow.one_form(found, where=f"data {spec.text!r}")
    root = root_of(spec, Path(), columns.values()) if "root" in spec.options else None
    bare = next((name for name, column in columns.items() if column.form == "paths"), None)
    if bare is not None and root is None:
        raise BadInput(
            f"data {spec.text!r}: {bare} column {columns[bare].column!r} holds paths; accepted: encoded pictures, or "
            "root=DIR, the folder that the paths start from"
        )
    return columns, root


def encoded(table: Any, *columns: str) -> Any:
    """Some columns of a table of `datasets`, images as they are stored."""
    library = arrow.require("datasets")
    chosen = table.select_columns(list(columns))
    for column in columns:
        if isinstance(table.features[column], library.Image):
            chosen = chosen.cast_column(column, library.Image(decode=False))
    return chosen
