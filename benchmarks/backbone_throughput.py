"""The architectures of leanvit beside timm's light ones at 224 pixels: images a second on a CPU, interleaved.

    python benchmarks/backbone_throughput.py [--batch 1 --batch 32] [--threads 2]     # 10 minutes on two cores

Models stand in groups of about one size. Those of a group are timed interleaved on the same images, and DeiT-Ti with
them: it is the anchor, so that ratios of different groups can be compared. Weights are random: speed does not depend on
them.

Every model is timed in the form that is deployed. leanvit's own have `fuse()`, timm's are reparameterised by timm;
where that leaves batch norms behind convolutions, they are folded here, so that nobody is slow for want of it.
`largest_difference` is what the form changes in the outputs. A group and batch that is in the file is not timed again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bench
from bench import Column, Table
from leanvit.cards import models as models_of_papers
from leanvit.data import keyed
from leanvit.measure import count, paired_latency, ratio
from leanvit.models.registry import require_model

ANCHOR = "deit_tiny_patch16_224"
GROUPS = {  # by parameters; leanvit's first
    "about 5 M": (
        "t2t_vit_7",
        "dhvt_tiny_imagenet_patch16",
        "dualtoken_vit_tiny_mix",
        "tiny_vit_5m_224",
        "efficientformerv2_s0",
        "efficientformerv2_s1",
        "mobilevitv2_100",
        "fastvit_t8",
    ),
    "about 12 M": (
        "dualtoken_vit_small_mix",
        "dualtoken_vit_small",
        "tiny_vit_11m_224",
        "efficientformerv2_s2",
        "fastvit_sa12",
    ),
    "about 25 M": ("t2t_vit_14", "litv2_small", "tiny_vit_21m_224"),
}
SIDE = 224
OPTIONS = bench.parser(
    __doc__,
    group=bench.Option(list(GROUPS), "may be repeated; default: all", choices=list(GROUPS)),
    batch=[1, 32],
    threads=2,
    rounds=15,
    seconds=0.3,
    fresh=False,
    smoke=False,
    out=bench.RESULTS / "backbone_throughput.json",
)
ABOUT = bench.About(
    "Beside timm's light models",
    "Images of 224x224. Every model is timed in its deployed form (`fuse()`, timm's reparameterisation, norms folded "
    "into convolutions); parameters are those of training. `mobilevitv2` and `fastvit` were published at 256 pixels.",
    (Table("rows", ("batch", "group", "model", "by", "params", "macs", "images_per_s", "faster_than_anchor")),),
    {
        "group": Column("size"),
        "macs": Column("MACs", "G", ".2f", 1e-9),
        "faster_than_anchor": Column(f"× `{ANCHOR}` (quartiles)", form=".2f", each=("q25", "median", "q75")),
    },
)


@dataclass(frozen=True)
class Candidate:
    """A model in the form in which it is deployed."""

    model: nn.Module
    params: int  # as it is trained
    macs: int  # of the form that is timed
    largest_difference: float  # of an output, between the two forms


def candidate(name: str) -> Candidate:
    """Build a model of 1,000 classes by its timm name and bring it into its deployed form."""
    require_model(name)
    with keyed.global_rng(0, name):
        trained: Any = timm.create_model(name, num_classes=1000).eval()
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = trained(image)
    params = sum(p.numel() for p in trained.parameters())
    form = copy.deepcopy(trained).fuse() if hasattr(trained, "fuse") else folded(reparameterize_model(trained))
    with torch.inference_mode():
        difference = float((form(image) - wanted).abs().max())
    return Candidate(form, params, count(form, (3, SIDE, SIDE)).macs, difference)


def folded(model: nn.Module) -> nn.Module:
    """timm's pairs of `conv` and `bn` with the norm worked into the convolution, in place."""
    for module in model.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(conv, norm)
            module.bn = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
    return model


def measured(group: str, batch: int, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one group at one batch; `faster_than_anchor` is q25, median and q75 of the rounds' own ratios."""
    found = {name: candidate(name) for name in (ANCHOR, *GROUPS[group])}
    images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    models = {name: one.model for name, one in found.items()}
    taken = paired_latency(models, lambda _: images, batch=batch, rounds=rounds, min_seconds=seconds)
    rows = []
    for name, one in found.items():
        faster = ratio(taken[ANCHOR], taken[name])
        rows.append(
            {
                "group": group,
                "model": name,
                "by": "leanvit" if name in models_of_papers() else "timm",
                "batch": batch,
                "params": one.params,
                "macs": one.macs,
                "median_ms": round(1000 * taken[name].median_s, 3),
                "images_per_s": round(taken[name].images_per_s, 2),
                "faster_than_anchor": [round(v, 4) for v in (faster.q25, faster.median, faster.q75)],
                "largest_difference": one.largest_difference,
            }
        )
    return rows


def main() -> None:
    given = OPTIONS.parse_args()
    if given.smoke:
        given.group, given.batch = given.group[-1:], [1]
        given.threads, given.rounds, given.seconds = 1, 3, 1e-4
    torch.set_num_threads(given.threads)
    settings = {
        "model": "several",
        "what": f"float32 in PyTorch (eager), {SIDE}x{SIDE}, random weights, deployed forms",
        "anchor": ANCHOR,
        **{key: getattr(given, key) for key in ("threads", "rounds", "seconds", "smoke")},
    }
    kept = bench.KeptRows(given.out, ABOUT, settings, fresh=given.fresh)
    for group in given.group:
        for batch in given.batch:
            if kept.get(group=group, batch=batch) is None:
                kept.add(*measured(group, batch, rounds=given.rounds, seconds=given.seconds))


if __name__ == "__main__":
    main()
