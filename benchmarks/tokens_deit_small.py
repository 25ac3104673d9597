"""Token reduction on DeiT-S/224 shapes on a CPU: PyTorch, torch.compile, ONNX Runtime, OpenVINO, NNCF.

    python benchmarks/tokens_deit_small.py          # about half an hour on one core

Writes benchmarks/results/tokens_deit_small.json from `tokens_speed.py` (PyTorch) and `deploy_speed.py` (the rest);
what the rows mean is said there. Rows are ratios to the dense model in the same runtime, timed interleaved, on one
thread.
"""

from __future__ import annotations

import json

import torch

import bench
import deploy_speed
import tokens_speed

OPTIONS = bench.parser(
    __doc__,
    rounds=9,
    torch_only=bench.Option(False, "measure PyTorch anew, keep the other rows of --out"),
    out=bench.RESULTS / "tokens_deit_small.json",
)


def main() -> None:
    given = OPTIONS.parse_args()
    torch.set_num_threads(1)
    model, batches = tokens_speed.MODEL, [8, 1]
    rows = tokens_speed.measured(batches, list(tokens_speed.RUNTIMES), rounds=given.rounds, seconds=0.2)
    if given.torch_only:
        result = json.loads(given.out.read_text(encoding="utf-8"))
        ours = {row["runtime"] for row in rows}
        result["rows"] = [*rows, *(row for row in result["rows"] if row["runtime"] not in ours)]
        result["command"] = f"{result['command']}; {bench.command()}"
        bench.write_json(given.out, result)
    else:
        how = {"threads": 1, "rounds": given.rounds, "methods": deploy_speed.ALL}
        result = deploy_speed.merged([deploy_speed.measure(model, batch, **how) for batch in batches])
        result["rows"] = [*rows, *result["rows"]]
        bench.write_result(given.out, tokens_speed.ABOUT, model=model, threads=1, **result)
    for row in result["rows"]:
        bench.log(row)


if __name__ == "__main__":
    main()
