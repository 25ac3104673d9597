"""Speed of deployed models on this CPU: OpenVINO f32, bf16 and int8, NNCF's int8, ONNX Runtime f32.

    python benchmarks/deploy_speed.py --model deit_small_patch16_224 --batch 8 --batch 1 --out FILE.json

All candidates of a batch run in one process, interleaved, on the same input and with as many threads. Weights and
calibration images are random: speed does not depend on them, and accuracy is not measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
import timm
import torch
from torch import Tensor

import bench
from leanvit.anatomy import OpenViT, open_model
from leanvit.deploy.onnx import open_files as open_onnx
from leanvit.deploy.onnx import write_files as write_onnx
from leanvit.deploy.openvino import compile_model, convert
from leanvit.deploy.openvino_graph import product_precisions
from leanvit.deploy.runtimes import Options
from leanvit.deploy.tracing import trace
from leanvit.measure import count, paired_latency, ratio
from leanvit.recipe.protocol import Folds
from leanvit.recipe.registry import make_method
from tokens_speed import ABOUT, cut_like

METHODS: dict[str, dict[str, Any] | None] = {"dense": None, "evit": {"keep_rate": 0.7}, "tome": {"r": 13}}
CUT = " lengths, cut"  # control: tokens sliced off for nothing, to the lengths that a method leaves
ALL = [*METHODS, f"evit{CUT}", f"tome{CUT}"]
Key = tuple[str, str, str]  # method, runtime, precision
OPTIONS = bench.parser(
    __doc__,
    model="deit_small_patch16_224",
    batch=[8, 1],
    threads=1,
    rounds=15,
    method=bench.Option(ALL, f"may be repeated; default: {', '.join(ALL)}"),
    out=None,
)


class RandomImages:
    """What a method that calibrates asks of data."""

    def __init__(self, input_size: tuple[int, int, int]) -> None:
        self.input_size = input_size

    def images(self, count: int) -> Iterator[Tensor]:
        yield torch.randn(min(count, 4), *self.input_size, generator=torch.Generator().manual_seed(1))


def build(name: str, method: str, *, int8: bool) -> OpenViT:
    torch.manual_seed(0)
    source = timm.create_model(name).eval()
    model = open_model(source)
    slug = method.removesuffix(CUT)
    if METHODS[slug] is not None:
        apply(model, make_method(slug, METHODS[slug] or {}))
    if method.endswith(CUT):
        model = cut_like(source, model)
    if int8:
        apply(model, make_method("int8", {"images": 4}))
    return model


@torch.no_grad()
def apply(model: OpenViT, method: Any) -> None:
    """A method on a model without a history: cut ones have none."""
    structure = method.learn(model, RandomImages(model.input_size()))
    before = dict(model.state_dict())
    method.shape(model, structure)
    if isinstance(method, Folds):
        method.fold(model, structure, before)


def as_runner(compiled: ov.CompiledModel) -> Callable[[Tensor], np.ndarray]:
    request = compiled.create_infer_request()
    return lambda x: request.infer({0: x.numpy()}, share_inputs=True)[0]


def candidates(name: str, batch: int, threads: int, methods: list[str]) -> tuple[dict[Key, Any], dict[str, Any]]:
    """Every runner of one batch, and what precision their products run in."""
    runners: dict[Key, Any] = {}
    kernels: dict[str, Any] = {}
    size = open_model(timm.create_model(name)).input_size()
    f32, bf16 = Options(threads=threads), Options(precision="bf16", threads=threads)

    def add(key: Key, graph: ov.Model, options: Options) -> None:
        compiled = compile_model(graph, options)
        kernels["/".join(key)] = dict(product_precisions(compiled))
        runners[key] = as_runner(compiled)

    for method in methods:
        program = trace(build(name, method, int8=False), size, batch)
        graph = convert(program)
        add((method, "openvino", "f32"), graph, f32)
        if method.endswith(CUT):
            add((method, "openvino", "int8"), convert(trace(build(name, method, int8=True), size, batch)), f32)
            continue
        add((method, "openvino", "bf16"), graph, bf16)
        with TemporaryDirectory() as folder:
            write_onnx(program, Path(folder))
            runners[method, "onnxruntime", "f32"] = through_numpy(open_onnx(Path(folder), f32))
        rounded = convert(trace(build(name, method, int8=True), size, batch))
        add((method, "openvino", "int8"), rounded, f32)
        add((method, "openvino", "int8+bf16"), rounded, bf16)
        if method == "dense":
            rival = nncf_int8(ov.convert_model(program), (batch, *size))
            add((method, "openvino", "int8 (nncf)"), rival, f32)
            add((method, "openvino", "int8+bf16 (nncf)"), rival, bf16)
    return runners, kernels


def through_numpy(call: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], np.ndarray]:
    return lambda x: call(x.numpy())


def nncf_int8(graph: ov.Model, shape: tuple[int, ...]) -> ov.Model:
    """The rival: NNCF's static quantization, preset for transformers."""
    import nncf

    images = [np.random.default_rng(i).standard_normal(shape, dtype=np.float32) for i in range(2)]
    return nncf.quantize(graph, nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))


def measure(name: str, batch: int, *, threads: int, rounds: int, methods: list[str]) -> dict[str, Any]:
    """`rows` of one batch, `int8_vs_nncf` (how many times as fast ours is, by hint) and `kernels`."""
    runners, kernels = candidates(name, batch, threads, methods)
    size = open_model(timm.create_model(name)).input_size()
    macs = {method: count(build(name, method, int8=False), size).macs for method in methods}
    shaped = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    taken = paired_latency({"/".join(k): r for k, r in runners.items()}, lambda _: shaped, batch=batch, rounds=rounds)
    rows = []
    for method, runtime, precision in runners:
        own = taken[f"{method}/{runtime}/{precision}"]
        speedup = ratio(taken[f"dense/{runtime}/{precision}"], own)
        macs_ratio = macs[method] / macs["dense"]
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
                "ratio_vs_dense_same_runtime": speedup.median,
                "macs_ratio": macs_ratio,
                "efficiency": None if macs_ratio == 1 else (1 - 1 / speedup.median) / (1 - macs_ratio),
            }
        )
    rivals = {
        precision: vars(ratio(taken[f"dense/openvino/{precision} (nncf)"], taken[f"dense/openvino/{precision}"]))
        for precision in ("int8", "int8+bf16")
    }
    return {"rows": rows, "int8_vs_nncf": {str(batch): rivals}, "kernels": {str(batch): kernels}}


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of several batches as one."""
    return {
        "rows": [row for part in parts for row in part["rows"]],
        "int8_vs_nncf": {k: v for part in parts for k, v in part["int8_vs_nncf"].items()},
        "kernels": {k: v for part in parts for k, v in part["kernels"].items()},
    }


def main() -> None:
    given = OPTIONS.parse_args()
    how = {"threads": given.threads, "rounds": given.rounds, "methods": given.method}
    result = merged([measure(given.model, batch, **how) for batch in given.batch])
    for row in result["rows"]:
        bench.log(row)
    print(json.dumps(result["int8_vs_nncf"], indent=1))
    bench.write_result(given.out, ABOUT, model=given.model, **result)


if __name__ == "__main__":
    main()
