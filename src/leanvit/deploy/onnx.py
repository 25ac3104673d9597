"""Export to ONNX Runtime: one `model.onnx` with its weights inside, f32 or int8. Needs the extra `leanvit[onnx]`.

At int8 the file holds QuantizeLinear / DequantizeLinear pairs and int8 weights (for the form see `onnx_graph`), so that
any ONNX runtime can read it and ONNX Runtime fuses it to integer kernels. On x64 without VNNI, its kernels for unsigned
times signed bytes add pairs in 16 bits and can saturate: there, judge the artefact by its agreement before it is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from leanvit.deploy.runtimes import Call, Options
from leanvit.errors import BadInput, CheckpointError, MissingExtra

MODEL = "model.onnx"
OPERATORS = "operators.json"  # beside it: opset, IR version, each operator with domain and count
INT8 = "int8"


def write_files(
    program: ExportedProgram, folder: Path, outputs: Sequence[str] = ("logits",), *, opset: int | None = None
) -> None:
    """Write an exported graph as ONNX, weights inside the one file, and the list of its operators beside it.

    opset: of `exporting.OPSETS`; None is the exporter's choice. Raises `Refused` where the graph cannot have it.
    """
    from leanvit.deploy.onnx_graph import dequantize_weights, forget_sources
    from leanvit.deploy.onnx_opset import EXPORTER_LEAST, check_opset, lower_to, operators_of

    with torch.no_grad():  # as it was recorded: a bias that has a gradient lets attention lay its result out otherwise
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,  # int8 weights are rewritten before constants are folded
            input_names=["images"],
            output_names=list(outputs),
            verbose=False,
            opset_version=None if opset is None else max(opset, EXPORTER_LEAST),
        )
    assert exported is not None
    dequantize_weights(exported.model)
    exported.optimize()
    forget_sources(exported.model)
    if opset is not None:
        lower_to(exported.model, opset)
    exported.save(folder / MODEL, external_data=False)
    if opset is not None:
        check_opset(folder / MODEL, opset)
    (folder / OPERATORS).write_text(json.dumps(operators_of(exported.model), indent=1), encoding="utf-8")


def open_files(folder: Path, options: Options) -> Call:
    """A session on the CPU. Raises `MissingExtra`, `BadInput` (precision), `CheckpointError`."""
    call = open_outputs(folder, options)
    return lambda images: call(images)[0]


def open_outputs(folder: Path, options: Options) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """The same for a graph of several outputs."""
    if options.precision != "f32":
        raise BadInput(f"precision is {options.precision!r}; ONNX Runtime runs what is not int8 at f32 only")
    session = _session(folder, threads=options.threads)
    name = session.get_inputs()[0].name

    def call(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(None, {name: images}))

    return call


def opset_of(folder: Path) -> int:
    """The opset of the graph in a folder, from its list of operators."""
    return int(json.loads((folder / OPERATORS).read_text(encoding="utf-8"))["opset"])


def integer_products(folder: Path) -> tuple[int, int]:
    """(products that run in integers, all products), read from the graph that ONNX Runtime runs after optimisation."""
    from leanvit.deploy.onnx_graph import integer_share, product_kernels

    with tempfile.TemporaryDirectory(prefix="leanvit-") as temporary:
        optimised = Path(temporary) / "optimised.onnx"
        _session(folder, threads=1, optimised=optimised)
        return integer_share(product_kernels(optimised))


def _session(folder: Path, *, threads: int | None, optimised: Path | None = None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtra("onnxruntime is not installed: pip install 'leanvit[onnx]'") from error
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads or 0  # 0: its own choice
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if optimised is not None:
        settings.optimized_model_filepath = str(optimised)
        settings.log_severity_level = 3  # it warns that such a file suits this machine only
    try:
        return ort.InferenceSession(folder / MODEL, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each status code and no common base
        raise CheckpointError(f"{folder / MODEL} is not a model that ONNX Runtime reads: {error}") from error
