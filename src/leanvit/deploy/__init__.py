"""Deployment: a model with its preprocessing as one folder, for OpenVINO, ONNX Runtime or torch.export.

Public names load on first use, so that importing this package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {  # public name -> module of this package that defines it
    "Artefact": "artefact",
    "Options": "runtimes",
    "INPUT_TYPES": "artefact",
    "RUNTIMES": "artefact",
    "Runner": "running",
    "export": "exporting",
    "Nodes": "block_grid",
    "block_shapes": "block_graphs",
    "check_table": "table_check",
    "latencies": "table_check",
    "load_artefact": "loading",
    "measure_table": "block_latency",
    "read_artefact": "artefact",
    "require_runtime": "runtimes",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit.deploy' has no attribute {name!r}")
    return getattr(import_module(f"leanvit.deploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
