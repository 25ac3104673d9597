"""A record of a published run, as tests need it."""

from __future__ import annotations

from typing import Any

from leanvit.recipe import Record

_FIELDS: dict[str, Any] = {
    "title": 'A "small" ViT | of digits',
    "model": "vit_tiny_patch16_224",
    "methods": (),
    "input_size": (1, 8, 8),
    "classes": 10,
    "parameters": 2_690_000,
    "macs": 6_611_712,
    "data": "digits",
    "split": "val",
    "images": 359,
    "metric": "top-1",
    "score": (91.64, 88.31, 94.09),
    "stored_as": "float16",
    "stored_score": (91.36, 88.0, 93.85),
    "agreement_percent": 99.72,
    "measured_on": "a CPU",
    "presets": ("digits_vit",),
    "commands": ("leanvit train vit_tiny_patch16_224 --data digits",),
    "epochs": 3,
    "training_seconds": 5400.0,
    "trained_on": "another CPU",
    "seed": 0,
    "date": "2026-01-31",
    "versions": "torch 2.9.0",
    "licence": "Apache-2.0",
    "data_source": "Größe \\ \x7f \n UCI",
    "weights_sha256": "0" * 64,
}


def record(**changes: Any) -> Record:
    return Record(**{**_FIELDS, **changes})
