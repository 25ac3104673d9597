"""Token reduction on DeiT-S/224 shapes on a CPU: PyTorch, torch.compile, ONNX Runtime, OpenVINO, NNCF.

    python benchmarks/tokens_deit_small.py          # about half an hour on one core

Writes benchmarks/results/tokens_deit_small.json from `tokens_speed.py` (PyTorch) and `deploy_speed.py` (the rest);
what the rows mean is said there. Rows are ratios to the dense model in the same runtime, timed in turns, on one thread.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import deploy_speed
import tokens_speed
from leanvit.files import write_atomic
from leanvit.measure import environment

RESULTS = Path(__file__).parent / "results" / "tokens_deit_small.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch-only", action="store_true", help="measure PyTorch anew, keep the other rows of --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = tokens_speed.measured([8, 1], list(tokens_speed.RUNTIMES), rounds=arguments.rounds, seconds=0.2)
    command = shlex.join(["python", "benchmarks/tokens_deit_small.py", *sys.argv[1:]])
    if arguments.torch_only:
        result = json.loads(arguments.out.read_text())
        ours = {row["runtime"] for row in rows}
        result["rows"] = [*rows, *(row for row in result["rows"] if row["runtime"] not in ours)]
        result["command"] = f"{result['command']}; {command}"
    else:
        result = {"command": command, **everything_else(rows, arguments.rounds)}
    write_and_show(result, arguments.out)


def everything_else(rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The whole result: rows of PyTorch given, the deployed ones measured."""
    parts = [
        deploy_speed.measure(tokens_speed.MODEL, batch, threads=1, rounds=rounds, methods=deploy_speed.ALL)
        for batch in (8, 1)
    ]
    return {
        "model": tokens_speed.MODEL,
        "threads": 1,
        "environment": environment(),
        "rows": [*rows, *(row for part in parts for row in part["rows"])],
        "int8_vs_nncf": {batch: ratio for part in parts for batch, ratio in part["int8_vs_nncf"].items()},
        "kernels": {batch: kernels for part in parts for batch, kernels in part["kernels"].items()},
    }


def write_and_show(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, f"{json.dumps(result, indent=1)}\n".encode())
    for row in result["rows"]:
        efficiency = "" if row["efficiency"] is None else f"  efficiency {row['efficiency']:.3f}"
        print(
            f"batch {row['batch']}  {row['runtime']:22} {row['precision']:17} {row['method']:18}"
            f"{row['images_per_s']:9.1f} img/s  x{row['ratio_vs_dense_same_runtime']:.3f}{efficiency}"
        )
    print(json.dumps(result["int8_vs_nncf"], indent=1))


if __name__ == "__main__":
    main()
