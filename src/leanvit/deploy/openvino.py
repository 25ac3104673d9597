"""The OpenVINO runtime: intermediate representation on disk, compiled for the CPU when it is loaded.

The int8 weights are stored as int8. Activation quantizers become FakeQuantize nodes, which the CPU plugin turns into
int8 kernels; on CPUs without VNNI or AMX the plugin itself keeps 8-bit products from overflowing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from torch.export import ExportedProgram

from leanvit.deploy.openvino_graph import for_cpu, product_precisions
from leanvit.deploy.runtimes import Call, Options
from leanvit.errors import CheckpointError

MODEL = "model.xml"
INT8 = "int8"


@cache
def core() -> ov.Core:
    """The one core of the process, kept to its end.

    On CPUs with AMX the plugin gives the thread a signal stack that is large enough for the tiles, and takes it away
    with the last core: a signal (a child process that ends) would then kill the process.
    """
    return ov.Core()


def write_files(program: ExportedProgram, folder: Path, outputs: Sequence[str] = ("logits",)) -> None:
    """Convert an exported graph and save it, weights as they are (float32, int8)."""
    ov.save_model(convert(program, outputs), folder / MODEL, compress_to_fp16=False)


def convert(program: ExportedProgram, outputs: Sequence[str] = ("logits",)) -> ov.Model:
    """An exported graph as an OpenVINO model that the CPU plugin runs well."""
    model = ov.convert_model(program)
    images = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    model.reshape([d if isinstance(d, int) else -1 for d in images.meta["val"].shape])  # -1: free
    for_cpu(model)
    model.inputs[0].tensor.set_names({"images"})
    for output, name in zip(model.outputs, outputs, strict=True):
        output.tensor.set_names({name})
    return model


def open_files(folder: Path, options: Options) -> Call:
    """Compile for the CPU. Raises `CheckpointError` if the files are not a model that OpenVINO reads."""
    call = open_outputs(folder, options)
    return lambda images: call(images)[0]


def open_outputs(folder: Path, options: Options) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """The same for a graph of several outputs. They are the runtime's own memory, until the next call."""
    try:
        compiled = compile_model(core().read_model(folder / MODEL), options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder / MODEL} is not a model that OpenVINO {ov.__version__} reads: {reason}"
        ) from error
    request = compiled.create_infer_request()

    def call(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return request.infer({0: images}, share_inputs=True).to_tuple()

    return call


def integer_products(folder: Path) -> tuple[int, int]:
    """(products that run in integers, all products), of convolutions and products with weights.

    The products of attention are inside the plugin's fused kernels and are not counted.
    """
    kinds = product_precisions(compile_model(core().read_model(folder / MODEL), Options()))
    return kinds["u8"] + kinds["i8"], kinds.total()


def bf16_runs() -> bool:
    """Whether this CPU multiplies bf16; where it does not, the hint changes nothing."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_model(model: ov.Model, options: Options, **more: Any) -> ov.CompiledModel:
    """Compile with each option that moves speed or precision given: untold, OpenVINO runs bf16 where it can."""
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": options.precision,
        "PERFORMANCE_HINT": options.hint.upper(),
        **more,
    }
    if options.threads is not None:
        config["INFERENCE_NUM_THREADS"] = options.threads
    return core().compile_model(model, "CPU", config)
