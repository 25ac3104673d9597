"""The demo as a benchmark: EViT, ToMe, int8 and EViT with int8 on the embedded digits, in PyTorch and OpenVINO.

    python benchmarks/demo_digits.py            # about three minutes on two cores

Writes what `leanvit demo --json` prints to benchmarks/results/demo_digits.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import bench
from bench import Column, Table

OPTIONS = bench.parser(__doc__)
ABOUT = bench.About(
    "The demo",
    "What `leanvit demo` finds on the embedded digits.",
    (
        Table(
            "rows",
            (
                *("method", "runtime", "precision", "top1_percent", "change_points"),
                *("latency_ms", "speedup_same_runtime"),
            ),
        ),
    ),
    {
        "latency_ms": Column("time of a batch", "ms", ".2f"),
        "speedup_same_runtime": Column("speed", "× dense in the same runtime", ".2f"),
    },
)


def main() -> None:
    OPTIONS.parse_args()
    out = bench.RESULTS / "demo_digits.json"
    with tempfile.TemporaryDirectory(prefix="leanvit-demo-") as folder:
        command = [sys.executable, "-m", "leanvit", "demo", "--out", f"{folder}/demo", "--json"]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(printed.replace(f"{folder}/", "runs/"))  # where the runs lay says nothing
    bench.write_json(out, {**ABOUT.to_json(out.stem), "command": bench.command(), **found})
    print(out)


if __name__ == "__main__":
    main()
