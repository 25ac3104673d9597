"""How well latency tables predict: whole models of random widths, predicted and measured, in several runtimes.

    python benchmarks/latency_tables.py --model deit --runtime openvino --tables FOLDER \
        --out benchmarks/results/latency_tables.json

Makes the table (kept in FOLDER), and holds it against `--shapes` held-out models on multiples of 8, and as many of any
whole width. What was done before is not done again, and each part is kept when it is done: `--parts 1` does one and
ends, for machines that are lent for minutes.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import timm

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel, open_model
from leanvit.deploy import check_table, latencies
from leanvit.measure import LatencyTable

CIFAR = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 10}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # timm name, its arguments, batch
    "deit": ("deit_small_patch16_224", {}, 8),
    "cifar": ("vit_tiny_patch16_224", CIFAR, 32),
}
MULTIPLES = (8, 1)
OPTIONS = bench.parser(
    __doc__,
    model=bench.Option(choices=list(MODELS), required=True),
    runtime=bench.Option(required=True),
    shapes=bench.Option(10, "held-out models"),
    parts=bench.Option(3, "of: the table, and one check for each multiple"),
    tables=bench.Option(help="folder where tables are kept", kind=Path, required=True),
    out=bench.Option(kind=Path, required=True),
)
ABOUT = bench.About(
    "Latency tables",
    "What a table of a model's blocks predicts for whole models of random widths, which it has not seen, against the "
    "clock: widths on multiples of 8, and any. `cifar` is the ViT of `leanvit/cifar10_vit`.",
    (
        Table(
            "rows",
            (
                *("model", "runtime", "batch", "entries", "measuring_s"),
                *(f"held_out/{m}/{what}" for m in (8, 1) for what in ("rows", "median_error", "worst_error")),
            ),
        ),
    ),
    {
        "model": Column("model"),
        "measuring_s": Column("measured in", "s", ".0f"),
        "held_out/8/rows": Column("models, multiples of 8", show="count"),
        "held_out/8/median_error": Column("median error", "%", ".1f", 100),
        "held_out/8/worst_error": Column("worst", "%", ".1f", 100),
        "held_out/1/rows": Column("models, any width", show="count"),
        "held_out/1/median_error": Column("median error", "%", ".1f", 100),
        "held_out/1/worst_error": Column("worst", "%", ".1f", 100),
    },
)


def build(model: str) -> tuple[OpenModel, int]:
    name, arguments, batch = MODELS[model]
    return open_model(timm.create_model(name, **arguments)).eval(), batch


def table_of(model: str, runtime: str, folder: Path) -> LatencyTable:
    """The table of the folder, measured now if it is not there."""
    path = folder / f"{model}-{runtime}.json"
    if not path.exists():
        opened, batch = build(model)
        folder.mkdir(parents=True, exist_ok=True)
        latencies(
            opened,
            runtime=runtime,
            batch=batch,
            check=0,
            out=path,
            progress=lambda n, of: print(f"{n} of {of}", flush=True),
        )
    return LatencyTable.load(path)


def row_of(model: str, table: LatencyTable) -> dict[str, Any]:
    """The progress line of a table, before it is checked."""
    payload = table.provenance
    options = f"--model {model} --runtime {table.runtime} --tables FOLDER --out benchmarks/results/latency_tables.json"
    return {
        "model": model,
        "runtime": table.runtime,
        "precision": table.precision,
        "batch": table.batch,
        "entries": payload["entries"],
        "measuring_s": payload["measuring_s"],
        "spread": payload["spread"],
        "fingerprint": table.fingerprint,
        "held_out": {},
        "environment": payload["environment"],
        "date": payload["date"],
        "command": f"python benchmarks/latency_tables.py {options}",
    }


def checked(table: LatencyTable, model: OpenModel, shapes: int, multiple: int) -> dict[str, Any]:
    """Errors of held-out models on multiples of a number, and how well their order is predicted."""
    check = check_table(table, model, shapes=shapes, multiple=multiple).check
    assert check is not None
    rows = [
        {key: row[key] for key in ("embed", "predicted_s", "measured_s", "error", "raw_error")} for row in check["rows"]
    ]
    bias = statistics.median(row["error"] for row in rows)
    return {**{key: value for key, value in check.items() if key != "rows"}, "bias": bias, "rows": rows}


def kept_row(kept: bench.KeptRows, model: str, table: LatencyTable) -> dict[str, Any]:
    """The row of this very table; the one of an older table goes."""
    if row := kept.get(fingerprint=table.fingerprint):
        return row
    kept.rows[:] = [r for r in kept.rows if (r["model"], r["runtime"]) != (model, table.runtime)]
    row = kept.add(row_of(model, table))
    kept.rows.sort(key=lambda r: (r["model"], r["runtime"]))
    kept.content["commands"] = [r["command"] for r in kept.rows]  # without the folder of this machine
    return row


def main() -> None:
    given = OPTIONS.parse_args()
    left = given.parts - (not (given.tables / f"{given.model}-{given.runtime}.json").exists())
    table = table_of(given.model, given.runtime, given.tables)
    kept = bench.KeptRows(given.out, ABOUT, {})
    row = kept_row(kept, given.model, table)
    for multiple in [m for m in MULTIPLES if str(m) not in row["held_out"]][: max(left, 0)]:
        row["held_out"][str(multiple)] = checked(table, build(given.model)[0], given.shapes, multiple)
        kept.write()
        bench.log({"model": given.model, "multiples of": multiple, **row["held_out"][str(multiple)]})


if __name__ == "__main__":
    main()
