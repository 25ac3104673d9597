"""Layer 5: the verbs of the command line as Python calls, on run folders and data specs. One file per verb.

    from leanvit import verbs
    verbs.train("vit_tiny_patch16_224", "digits", adapt=True, settings={"epochs": 20}, out="runs/dense")
    verbs.compress("runs/dense", [lv.EViT(keep_rate=0.7), lv.Int8()], "digits", out="runs/slim")
    verbs.measure("runs/slim", "digits", against=["runs/dense"], runtimes=["torch", "openvino"])

`leanvit.compress`, `leanvit.compare` and the like do the same on models in memory. Names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "train": "training",
    "dry_run": "dry_running",
    "compress": "compressing",
    "retune": "retuning",
    "compare_methods": "comparing",
    "measure": "measuring",
    "latencies": "timing",
    "predict": "predicting",
    "predict_file": "predicting",
    "export": "exporting",
    "publish": "publishing",
    "look": "looking",
    "demo": "demonstration",
    "explain": "explaining",
    "load_model": "models",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit.verbs' has no attribute {name!r}")
    return getattr(import_module(f"leanvit.verbs.{_HOME[name]}"), name)
