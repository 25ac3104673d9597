"""The demo as a benchmark: EViT, ToMe, int8 and EViT with int8 on the embedded digits, in PyTorch and OpenVINO.

    python benchmarks/demo_digits.py            # about three minutes on two cores

Writes benchmarks/results/demo_digits.json: what `leanvit demo --json` prints, with the command and the machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from leanvit import verbs
from leanvit.recipe import write_atomic

RESULTS = Path(__file__).parent / "results" / "demo_digits.json"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="leanvit-demo-") as folder:
        found = verbs.demo(Path(folder) / "demo", say=lambda line: print(line, file=sys.stderr, flush=True)).to_json()
        text = json.dumps({"command": "python benchmarks/demo_digits.py", **found}, indent=1, allow_nan=False)
        text = text.replace(f"{folder}/", "runs/")  # where the runs lay says nothing
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS, f"{text}\n".encode())
    print(RESULTS)


if __name__ == "__main__":
    main()
