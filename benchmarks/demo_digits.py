"""The demo as a benchmark: EViT, ToMe, int8 and EViT with int8 on the embedded digits, in PyTorch and OpenVINO.

    python benchmarks/demo_digits.py            # about three minutes on two cores

Writes what `leanvit demo --json` prints to benchmarks/results/demo_digits.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from leanvit.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "demo_digits.json"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="leanvit-demo-") as folder:
        command = [sys.executable, "-m", "leanvit", "demo", "--out", f"{folder}/demo", "--json"]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(printed.replace(f"{folder}/", "runs/"))  # where the runs lay says nothing
    text = json.dumps({"command": "python benchmarks/demo_digits.py", **found}, indent=1, allow_nan=False)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS, f"{text}\n".encode())
    print(RESULTS)


if __name__ == "__main__":
    main()
