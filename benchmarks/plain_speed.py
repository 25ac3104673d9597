"""leanvit's architectures against a straight transcription of their papers, in one runtime, weights shared.

    python benchmarks/plain_speed.py [--model NAME] [--batch 8 --batch 1] [--rounds 15] [--threads N]

Three sides, timed interleaved on one input: the transcription (`plain_*.py`), leanvit's model, and the same after
`fuse()` where there is something to fold. Weights and images are random: speed does not depend on them. Each side's
distance from the transcription's output is written beside its time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

import bench
import leanvit.backbones  # noqa: F401 (registers the names)
from bench import Column, Table
from leanvit.backbones.gmm_mask import fuse
from leanvit.measure import paired_latency, ratio
from plain_dct_histo import PlainDctHisto
from plain_dhvt import PlainDHVT
from plain_dualtoken_vit import PlainDualTokenViT
from plain_gmm_mask import PlainGmmViT
from plain_litv2 import PlainLITv2
from plain_t2t_vit import PlainT2TViT

PLAIN: dict[str, Callable[[nn.Module], nn.Module]] = {  # by how a model's name begins
    "dct_histo": PlainDctHisto,
    "dhvt": PlainDHVT,
    "dualtoken_vit": PlainDualTokenViT,
    "gmm_vit": PlainGmmViT,
    "litv2": PlainLITv2,
    "t2t_vit": PlainT2TViT,
}
MODELS = (
    "dct_histo_tiny",
    "dhvt_tiny_cifar_patch4",
    "dhvt_tiny_imagenet_patch16",
    "dualtoken_vit_small",
    "gmm_vit_cifar",
    "litv2_small",
    "t2t_vit_7",
    "t2t_vit_14",
    "t2t_vit_t_14",
)
OPTIONS = bench.parser(
    __doc__,
    model=bench.Option(list(MODELS), f"may be repeated; default {', '.join(MODELS)}"),
    batch=[8, 1],
    rounds=15,
    seconds=0.5,
    threads=None,
    out=None,
)
ABOUT = bench.About(
    "Against a straight transcription",
    "The same networks written as the papers' formulas stand, with shared weights.",
    (
        Table(
            "rows",
            ("model", "side", "batch", "images_per_s", "speedup_vs_transcription", "largest_difference"),
        ),
    ),
    {
        "speedup_vs_transcription": Column("speed", "× the transcription", ".2f"),
        "largest_difference": Column("largest difference of an output", form=".0e"),
    },
)


def sides(name: str) -> tuple[dict[str, nn.Module], tuple[int, int, int]]:
    """The sides of one architecture by name, and the size of its images."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name).eval()
    plain = next(make for start, make in PLAIN.items() if name.startswith(start))
    found = {"transcription": plain(model), "leanvit": model}
    if hasattr(model, "fuse"):
        found["leanvit, fused"] = copy.deepcopy(model).fuse()
    elif name.startswith("gmm"):
        found["leanvit, fused"] = fuse(copy.deepcopy(model))
    return found, model.pretrained_cfg["input_size"]


@torch.no_grad()
def measured(name: str, batch: int, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one architecture at one batch."""
    models, size = sides(name)
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    outputs = {side: model(images) for side, model in models.items()}
    taken = paired_latency(models, lambda _: images, batch=batch, rounds=rounds, min_seconds=seconds)
    return [
        {
            "model": name,
            "side": side,
            "runtime": "pytorch eager",
            "precision": "f32",
            "batch": batch,
            "images_per_s": round(taken[side].images_per_s, 2),
            "speedup_vs_transcription": round(ratio(taken["transcription"], taken[side]).median, 4),
            "largest_difference": float((outputs[side] - outputs["transcription"]).abs().max()),
        }
        for side in models
    ]


def main() -> None:
    given = OPTIONS.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = []
    for name in given.model:
        for batch in given.batch:
            rows += measured(name, batch, rounds=given.rounds, seconds=given.seconds)
    for row in rows:
        bench.log(row)
    bench.write_result(given.out, ABOUT, model="several", rows=rows)


if __name__ == "__main__":
    main()
