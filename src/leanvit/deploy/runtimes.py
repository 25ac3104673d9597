"""The runtimes: their modules, the packages that they need, how one executes, and what its files are opened with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from leanvit.deploy.artefact import RUNTIMES
from leanvit.errors import BadInput, MissingExtra, unknown
from leanvit.knobs import Choice, Count, check_fields

OPSETS = (17, 18, 19, 20)  # of ONNX

Call = Callable[[np.ndarray], Any]  # what the artefact takes -> (B, classes, ...) float32, of several heads a tuple

_MODULES = {
    "openvino": "leanvit.deploy.openvino",
    "onnx": "leanvit.deploy.onnx",
    "torch": "leanvit.deploy.torch_export",
}
_PACKAGES: dict[str, tuple[str, ...]] = {  # beside what leanvit itself needs
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
}
_PIP = {"openvino": "openvino", "onnx": "'leanvit[onnx]'"}


@dataclass(frozen=True)
class Options:
    """How a runtime executes. Every choice that moves a figure is explicit, and recorded in the runner."""

    precision: Annotated[str, Choice(("f32", "bf16"))] = "f32"  # of what is not int8; bf16: OpenVINO's
    hint: Annotated[str, Choice(("latency", "throughput"))] = "latency"  # OpenVINO's
    threads: Count | None = None  # None: the runtime's choice

    def __post_init__(self) -> None:
        check_fields(self)


def open_runtime(runtime: str, folder: Path, options: Options, *, heads: bool = False) -> Call:
    """Load the files of a runtime; with `heads`, those of a graph with several outputs."""
    module = runtime_module(runtime)
    return module.open_outputs(folder, options) if heads else module.open_files(folder, options)


def packages_of(runtime: str) -> tuple[str, ...]:
    """The packages that exporting to a runtime needs beside leanvit's own."""
    return _PACKAGES[runtime]


def require_runtime(runtime: str) -> None:
    """Raise `BadInput` for an unknown runtime (the nearest is named), `MissingExtra` for one that is not installed."""
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    missing = [name for name in packages_of(runtime) if find_spec(name) is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise MissingExtra(
            f"runtime {runtime!r}: {', '.join(missing)} {are} not installed: pip install {_PIP[runtime]}"
        )


def runtime_module(runtime: str) -> Any:
    """The module of a runtime.

    It has `write_files(program, folder)`, `open_files(folder, options)` (those of graphs with several outputs also
    `open_outputs`, and `write_files` takes their names), `INT8` (what int8 is called there) and
    `integer_products(folder)`: (those that run in integers, all), or None where none does.
    """
    return import_module(_MODULES[runtime])


def check_opset(opset: int | None, to: str) -> None:
    """Raise `BadInput` unless an opset is one that ONNX files are written in, and asked of them."""
    if opset is None:
        return
    if to != "onnx":
        raise BadInput(f"opset is {opset!r}, which ONNX has, but the runtime is {to}; leave it out, or export to onnx")
    if isinstance(opset, bool) or opset not in OPSETS:
        raise BadInput(f"opset is {opset!r}; accepted: {', '.join(map(str, OPSETS))}")


def wanted(opset: int | None) -> dict[str, Any]:
    """Keyword arguments on the opset for `write_files` of a runtime: only ONNX's takes one."""
    return {} if opset is None else {"opset": opset}
