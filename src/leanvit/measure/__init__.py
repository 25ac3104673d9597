"""One way to measure for all methods: parameters, MACs, latency, memory, accuracy, agreement, and a comparison of them.

Names load on first use, so that a caller pays only for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {  # public name -> module that defines it
    "Cost": "counting",
    "Uncounted": "counting",
    "count": "counting",
    "Latency": "latency",
    "Spread": "latency",
    "paired_latency": "latency",
    "ratio": "latency",
    "BlockShape": "latency_table",
    "LatencyTable": "latency_table",
    "Energy": "energy",
    "Meter": "meter",
    "NoMeter": "meter",
    "find_meter": "energy",
    "paired_energy": "energy",
    "Memory": "memory",
    "peak_memory": "memory",
    "environment": "machine",
    "Batch": "predictions",
    "Predictions": "predictions",
    "predict": "predictions",
    "predict_all": "predictions",
    "Interval": "leanvit.tasks.intervals",
    "Change": "scoring",
    "accuracy": "scoring",
    "accuracy_change": "scoring",
    "accuracy_per_class": "scoring",
    "agreement": "scoring",
    "label_accuracy": "multilabel",
    "map_interval": "multilabel",
    "mean_average_precision": "multilabel",
    "Reliability": "calibration",
    "reliability": "calibration",
    "Comparison": "comparison",
    "Row": "rows",
    "compare": "comparing",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanvit.measure' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(home if "." in home else f"leanvit.measure.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
