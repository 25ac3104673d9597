"""A small build of each architecture, by name: constructor arguments that make it quick."""

from __future__ import annotations

from typing import Any

import leanvit.backbones  # noqa: F401 (registers the names)

_MASKED: dict[str, dict[str, Any]] = {
    "vit_cifar": {"img_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5},
    "cait_cifar": {"img_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "head_dim": 8, "num_classes": 5},
    "pit_cifar": {"img_size": 16, "base_dims": [8] * 3, "depth": [1, 2, 1], "heads": [2, 2, 4], "num_classes": 5},
    "t2t_cifar": {"img_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "token_dim": 8, "num_classes": 5},
    "swin_cifar": {"img_size": 32, "embed_dim": 12, "depths": [2, 1, 2], "num_heads": [2, 2, 3], "num_classes": 5},
}
_T2T = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "token_dim": 16, "num_classes": 5}
_SIT = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
SMALL: dict[str, dict[str, Any]] = {
    **{f"gmm_{host}": given for host, given in _MASKED.items()},
    "elm_vit_cifar": _MASKED["vit_cifar"],
    "dct_histo_tiny": {
        "img_size": 64,
        "dims": (16, 24, 32),
        "depths": (1, 1, 1),
        "num_heads": (2, 3, 4),
        "num_classes": 5,
    },
    "dhvt_tiny_cifar_patch4": {"img_size": 16, "embed_dim": 32, "depth": 3, "num_classes": 5},
    "dualtoken_vit_small": {
        "img_size": 64,
        "dims": (8, 16, 32),
        "depths": (1, 1, 1),
        "num_heads": (2, 2, 4),
        "token_side": 2,
        "num_classes": 5,
    },
    "revit_tiny": {"img_size": 32, "patch_size": 8, "embed_dim": 112, "num_classes": 5},
    "litv2_small": {
        "img_size": 64,
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": 2.0,
        "num_classes": 5,
    },
    "stvit_r_swin_tiny": {
        "img_size": 128,
        "embed_dim": 8,
        "depths": (2, 1, 6, 1),
        "num_heads": (1, 2, 2, 4),
        "window_size": 4,
        "samples": 2,
        "mlp_ratio": 2.0,
        "num_classes": 5,
    },
    "lvvit_small": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5},
    "sit_large": {**_SIT, "stage_blocks": (2, 1)},
    "t2t_vit_7": {**_T2T, "depth": 3},
    "t2t_vit_t_14": {**_T2T, "depth": 3},
    "t2t_vit_14_se": {**_T2T, "depth": 3},
    "t2t_vit_16_ghost": {**_T2T, "depth": 3},
    "t2t_vit_dense": {**_T2T, "depths": (2, 1), "growth": 16},
}
LEVELS: dict[str, int] = {  # of features, where they are not the depth
    "dct_histo_tiny": 3,
    "dualtoken_vit_small": 3,
    "gmm_pit_cifar": 3,
    "gmm_swin_cifar": 3,
    "litv2_small": 4,
    "stvit_r_swin_tiny": 4,
    "sit_large": 1,
}
LIKE_ANOTHER = (  # built of the parts of another one here: not exported again, which takes seconds
    "elm_vit_cifar",
    "gmm_t2t_cifar",
    "gmm_cait_cifar",
    "lvvit_small",
    "t2t_vit_14_se",
    "t2t_vit_dense",
)
