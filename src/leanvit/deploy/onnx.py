"""The ONNX Runtime outlet, at f32: one `model.onnx` with its weights inside. Needs the extra `leanvit[onnx]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from leanvit.deploy.running import Call, Options
from leanvit.errors import BadInput, CheckpointError, MissingExtra

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MODEL = "model.onnx"


def write_files(program: ExportedProgram, folder: Path) -> None:
    """Write an exported graph as ONNX, weights inside the one file."""
    torch.onnx.export(
        program,
        f=folder / MODEL,
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )


def open_files(folder: Path, options: Options) -> Call:
    """A session on the CPU. Raises `MissingExtra`, `BadInput` (precision), `CheckpointError`."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtra("onnxruntime is not installed: pip install 'leanvit[onnx]'") from error
    if options.precision != "f32":
        raise BadInput(f"precision is {options.precision!r}; ONNX Runtime runs this artefact at f32 only")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or 0  # 0: its own choice
    try:
        session = ort.InferenceSession(folder / MODEL, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each status code and no common base
        raise CheckpointError(f"{folder / MODEL} is not a model that ONNX Runtime reads: {error}") from error
    name = session.get_inputs()[0].name

    def call(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images})[0]

    return call
