"""How well latency tables predict: whole models of random widths, predicted and measured, in several runtimes.

    python benchmarks/latency_tables.py --model deit --runtime openvino --tables FOLDER \
        --out benchmarks/results/latency_tables.json

Makes the table (kept in FOLDER), and holds it against `--shapes` held-out models on multiples of 8, and as many of any
whole width. What was done before is not done again, and each part is kept when it is done: `--parts 1` does one and
ends, for machines that are lent for minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import timm

from leanvit.anatomy import OpenModel, open_model
from leanvit.deploy import check_table, latencies
from leanvit.files import write_atomic
from leanvit.measure import LatencyTable

CIFAR = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 10}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # timm name, its arguments, batch
    "deit": ("deit_small_patch16_224", {}, 8),
    "cifar": ("vit_tiny_patch16_224", CIFAR, 32),
}
MULTIPLES = (8, 1)


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
    """What is told of a table, before it is checked."""
    told = table.provenance
    options = f"--model {model} --runtime {table.runtime} --tables FOLDER --out benchmarks/results/latency_tables.json"
    return {
        "model": model,
        "runtime": table.runtime,
        "precision": table.precision,
        "batch": table.batch,
        "entries": told["entries"],
        "measuring_s": told["measuring_s"],
        "spread": told["spread"],
        "fingerprint": table.fingerprint,
        "held_out": {},
        "environment": told["environment"],
        "date": told["date"],
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


class Result:
    """The file of results: a row for each table, all of one CPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []

    def row(self, model: str, table: LatencyTable) -> dict[str, Any]:
        """The row of this very table; the one of an older table goes."""
        cpu = table.provenance["environment"]["cpu"]
        if other := {row["environment"]["cpu"] for row in self.rows} - {cpu}:
            raise SystemExit(f"{self.path} holds rows of {', '.join(other)}, the table is of {cpu}: give another --out")
        for row in self.rows:
            if row["fingerprint"] == table.fingerprint:
                return row
        self.rows = [r for r in self.rows if (r["model"], r["runtime"]) != (model, table.runtime)]
        self.rows.append(row_of(model, table))
        self.rows.sort(key=lambda r: (r["model"], r["runtime"]))
        return self.rows[next(i for i, r in enumerate(self.rows) if r["fingerprint"] == table.fingerprint)]

    def save(self) -> None:
        commands = [row["command"] for row in self.rows]
        content = {"commands": commands, "environment": self.rows[0]["environment"], "rows": self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, f"{json.dumps(content, indent=1)}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--parts", type=int, default=3, help="of: the table, and one check for each multiple")
    parser.add_argument("--tables", type=Path, required=True, help="folder where tables are kept")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    left = arguments.parts - (not (arguments.tables / f"{arguments.model}-{arguments.runtime}.json").exists())
    table = table_of(arguments.model, arguments.runtime, arguments.tables)
    result = Result(arguments.out)
    row = result.row(arguments.model, table)
    result.save()
    for multiple in [m for m in MULTIPLES if str(m) not in row["held_out"]][: max(left, 0)]:
        held = checked(table, build(arguments.model)[0], arguments.shapes, multiple)
        row["held_out"][str(multiple)] = held
        result.save()
        print(
            f"{row['model']} {row['runtime']}, {row['entries']} entries in {row['measuring_s']} s; multiples of "
            f"{multiple}: median error {held['median_error']:.1%}, worst {held['worst_error']:.1%} (machine's drift "
            f"left in: {held['worst_raw_error']:.1%}), within 15 %: {held['within']:.0%}"
        )


if __name__ == "__main__":
    main()
