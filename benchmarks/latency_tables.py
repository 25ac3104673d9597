"""How well latency tables predict: whole models of random widths, predicted and measured, in several runtimes.

    python benchmarks/latency_tables.py --model deit --runtime openvino --out FILE.json

One call makes one table, holds it against `--shapes` held-out models on multiples of 8 and as many of any whole width,
and puts the result into FILE beside those of other calls. A table that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import timm

from leanvit.anatomy import OpenModel, open_model
from leanvit.deploy import check_table, measure_table
from leanvit.measure import LatencyTable, environment

CIFAR = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 10}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # timm name, its arguments, batch
    "deit": ("deit_small_patch16_224", {}, 8),
    "cifar": ("vit_tiny_patch16_224", CIFAR, 32),
}
MULTIPLES = (8, 1)


def build(model: str) -> tuple[OpenModel, int]:
    name, arguments, batch = MODELS[model]
    return open_model(timm.create_model(name, **arguments)).eval(), batch


def measured(model: str, runtime: str, shapes: int, partial: Path) -> dict[str, Any]:
    """One table and its checks, as a row of the result."""
    opened, batch = build(model)
    table = measure_table(
        opened, runtime=runtime, batch=batch, partial=partial, progress=lambda n, of: print(f"{n} of {of}", flush=True)
    )
    told = table.provenance
    return {
        "model": model,
        "runtime": runtime,
        "precision": table.precision,
        "batch": batch,
        "entries": told["entries"],
        "measuring_s": told["measuring_s"],
        "spread": told["spread"],
        "fingerprint": table.fingerprint,
        "held_out": {str(multiple): checked(table, opened, shapes, multiple) for multiple in MULTIPLES},
        "environment": told["environment"],
        "date": told["date"],
        "command": shlex.join(["python", "benchmarks/latency_tables.py", *sys.argv[1:]]),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    partial = arguments.out.with_name(f".{arguments.model}-{arguments.runtime}-entries")
    row = measured(arguments.model, arguments.runtime, arguments.shapes, partial)
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    others = [r for r in result["rows"] if (r["model"], r["runtime"]) != (row["model"], row["runtime"])]
    rows = sorted([*others, row], key=lambda r: (r["model"], r["runtime"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
    for multiple, held in row["held_out"].items():
        print(
            f"{row['model']} {row['runtime']}, {row['entries']} entries in {row['measuring_s']} s; multiples of "
            f"{multiple}: median error {held['median_error']:.1%}, worst {held['worst_error']:.1%} (machine's drift "
            f"left in: {held['worst_raw_error']:.1%}), within 15 %: {held['within']:.0%}"
        )


if __name__ == "__main__":
    main()
