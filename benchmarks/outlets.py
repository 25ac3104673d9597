"""Speed of every runtime on this CPU: torch, torch.compile, torch.export, OpenVINO and ONNX Runtime, at each precision.

    python benchmarks/outlets.py --model deit_tiny_patch16_224 --batch 1 --batch 8

All candidates of a batch run in one process, interleaved, on the same input and with as many threads. Weights and
calibration images are random: speed does not depend on them, and accuracy is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import bench
from bench import Column, Table
from deploy_speed import METHODS, build
from leanvit.data import Preprocess
from leanvit.deploy import Options, export, load_artefact
from leanvit.deploy.openvino import bf16_runs
from leanvit.measure import paired_latency, ratio

Key = tuple[str, str, str]  # method, runtime, precision
Run = Callable[[Tensor], Any]
OPTIONS = bench.parser(
    __doc__,
    model="deit_tiny_patch16_224",
    batch=[1, 8],
    threads=1,
    rounds=9,
    method=bench.Option(["dense"], "may be repeated; default: dense", choices=list(METHODS)),
    out=bench.RESULTS / "outlets.json",
)
ABOUT = bench.About(
    "Runtimes and precisions",
    "The same network in every runtime: random weights, speed alone.",
    (
        Table(
            "rows",
            (
                *("method", "runtime", "precision", "batch", "median_ms"),
                *("speedup_vs_f32_same_runtime", "speedup_vs_torch_f32_with_change_of_runtime"),
            ),
        ),
    ),
    {
        "median_ms": Column("time", "ms", ".2f"),
        "speedup_vs_f32_same_runtime": Column("speed (quartiles)", "× f32 in the same runtime", ".2f"),
        "speedup_vs_torch_f32_with_change_of_runtime": Column("speed (quartiles)", "× PyTorch f32", ".2f"),
    },
)


def candidates(name: str, batch: int, threads: int, methods: list[str], folder: Path) -> tuple[dict[Key, Run], dict]:
    """Every runner of one batch, and of each int8 artefact (products in integers, all products)."""
    runners: dict[Key, Run] = {}
    products: dict[str, list[int]] = {}
    for method in methods:
        for int8 in (False, True):
            model = build(name, method, int8=int8).eval()
            simulated, rounded = ("int8 simulated", "int8") if int8 else ("f32", "f32")
            runners[method, "torch", simulated] = torch.inference_mode()(model)
            if not int8:
                runners[method, "torch.compile", "f32"] = torch.inference_mode()(compiled(model))
            for backend in ("torch", "openvino", "onnx"):
                artefact = export(
                    model,
                    folder / f"{method}-{backend}-{int8}",
                    to=backend,
                    preprocess=Preprocess.of(model),
                    batch=batch,
                )
                if "products" in artefact.check:
                    products[f"{method}/{backend}"] = [artefact.check["integer_products"], artefact.check["products"]]
                options = Options() if backend == "torch" else Options(threads=threads)
                runner = load_artefact(artefact, options=options)
                runners[method, runner.runtime, runner.precision] = runner
                if backend == "openvino" and bf16_runs():
                    hinted = load_artefact(artefact, options=Options(precision="bf16", threads=threads))
                    runners[method, "openvino", f"{rounded}+bf16" if int8 else "bf16"] = hinted
    return runners, products


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def measure(name: str, batch: int, *, threads: int, rounds: int, methods: list[str]) -> tuple[list[dict], dict]:
    """Rows of one batch, and its products in integers."""
    with TemporaryDirectory() as folder:
        runners, products = candidates(name, batch, threads, methods, Path(folder))
        size = Preprocess.of(build(name, "dense", int8=False)).input_size
        x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
        taken = paired_latency({"/".join(k): r for k, r in runners.items()}, lambda _: x, batch=batch, rounds=rounds)
    rows = []
    for method, runtime, precision in runners:
        own = taken[f"{method}/{runtime}/{precision}"]
        same = ratio(taken[f"{method}/{runtime}/f32"], own)
        rows.append(
            {
                "method": method,
                "runtime": runtime,
                "precision": precision,
                "batch": batch,
                "threads": threads,
                "images_per_s": own.images_per_s,
                "median_ms": own.median_s * 1e3,
                "quartiles_ms": [own.q25_s * 1e3, own.q75_s * 1e3],
                "speedup_vs_f32_same_runtime": vars(same),
                "speedup_vs_torch_f32_with_change_of_runtime": vars(ratio(taken[f"{method}/torch/f32"], own)),
            }
        )
    return rows, products


def main() -> None:
    given = OPTIONS.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = []
    products: dict[str, Any] = {}
    for batch in given.batch:
        found, products[str(batch)] = measure(
            given.model, batch, threads=given.threads, rounds=given.rounds, methods=given.method
        )
        rows += found
        for row in found:
            bench.log(row)
    bench.write_result(given.out, ABOUT, model=given.model, integer_products=products, rows=rows)


if __name__ == "__main__":
    main()
