"""A small build of each architecture, by name: constructor arguments that make it quick."""

from __future__ import annotations

from typing import Any

import leanvit.backbones  # noqa: F401 (registers the names)

_MASKED: dict[str, dict[str, Any]] = {
    "vit_cifar": {"img_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5},
    "cait_cifar": {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "head_dim": 8, "num_classes": 5},
    "pit_cifar": {"img_size": 16, "base_dims": [8] * 3, "depth": [1, 2, 1], "heads": [2, 2, 4], "num_classes": 5},
    "swin_cifar": {"img_size": 32, "embed_dim": 12, "depths": [2, 1, 2], "num_heads": [2, 2, 3], "num_classes": 5},
}
SMALL: dict[str, dict[str, Any]] = {
    **{f"gmm_{host}": given for host, given in _MASKED.items()},
    **{f"elm_{host}": _MASKED[host] for host in ("vit_cifar", "swin_cifar")},
    "revit_tiny": {"img_size": 32, "patch_size": 8, "embed_dim": 112, "num_classes": 5},
}
LEVELS: dict[str, int] = {
    f"{mask}_{host}_cifar": 3 for mask in ("gmm", "elm") for host in ("pit", "swin")
}  # feature levels, where they are not the depth
