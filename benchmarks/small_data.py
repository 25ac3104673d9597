"""What the parts of four architectures give on little data: small models, few epochs, with and without them.

    python benchmarks/small_data.py CIFAR10_FOLDER [--pairs dhvt t2t_vit] [--seeds 3]
    python benchmarks/small_data.py --smoke                                      # digits, seconds: no figures

Images of CIFAR-10 (JPEG), batch 100, AdamW 1e-3 with a cosine, label smoothing 0.1, mirrored and shifted by up to 3
pixels. Within a pair all models take the same steps on the same images.

    dhvt           3,000 images, 5 epochs: DHVT (width 96, 4 blocks, 4 heads, patches of 4) against a plain ViT of its
                   shape and one of as many parameters
    dualtoken_vit  the same, enlarged to 128 pixels: widths 32, 64, 128, a block a stage; against itself without global
                   tokens and without the conv encoder
    t2t_vit        10,000 images enlarged to 64 pixels, 10 epochs: 16 tokens made by the tokens-to-token module against
                   16 patches, in front of the same trunk and with as many parameters
    dct_histo      5,000 images enlarged to 128 pixels, 5 epochs: half of the frequencies along each axis, against all
                   of them, and against the net without its DCT branch, of the same widths and of as many parameters

A seed takes about 3, 4, 6 and 7 minutes of one core. A row a model and seed; a run that was killed goes on. Trends are
held against what is asked of them, whichever way they come out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import bench
from bench import Table
from trends import AGAINST, COLUMNS, RECIPE, SMOKE_IMAGES, Arm, Trend, against, summary, trained

SHAPE = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}
LIGHT = {"dims": (32, 64, 128), "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
TRUNK = {"embed_dim": 96, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
HISTO = {"dims": (32, 64, 128), "depths": (1, 1, 1), "num_heads": (2, 4, 8)}
PAIRS = ("dhvt", "dualtoken_vit", "t2t_vit", "dct_histo")
OPTIONS = bench.parser(
    __doc__,
    data=bench.Option(help="folder with the parquet files of CIFAR-10", positional=True),
    pairs=bench.Option(list(PAIRS), "default: all", choices=PAIRS, several=True),
    seeds=3,
    fresh=False,
    smoke=False,
    out=bench.RESULTS / "small_data.json",
)
ABOUT = bench.About(
    "On little data",
    "Small models, few images of CIFAR-10, few epochs: what a part of an architecture gives, held against what is "
    "asked of it. What is trained, and for how long, stands in the script.",
    (
        Table("summary", ("family", "model", "params", "top1_percent", "mean", "train_seconds")),
        replace(
            AGAINST,
            columns=("family", *AGAINST.columns),
            caption="The whole model against the others of its family",
        ),
    ),
    {**COLUMNS, "family": bench.Column("of", show="code"), "model": bench.Column("model")},
)


def pair(name: str, *, smoke: bool) -> Trend:
    """The models of a family, the whole one first; `smoke`: digits, hardly any of them."""
    make = {"dhvt": _dhvt, "dualtoken_vit": _dualtoken, "t2t_vit": _t2t, "dct_histo": _dct}[name]
    found = make(smoke)
    return Trend(found.arms, SMOKE_IMAGES, 1) if smoke else found


def _dhvt(smoke: bool) -> Trend:
    side = 8 if smoke else 32
    whole = Arm("DHVT", (), "dhvt_tiny_cifar_patch4", side, SHAPE)
    plain = Arm("plain ViT of its shape", (), "vit_tiny_patch16_224", side, SHAPE, at_least=6.0)
    wide = grown(plain, "plain ViT of its size", whole, [96] * 4, 4.0)
    return Trend((whole, plain, wide), (3000, 750), 5)


def _dualtoken(smoke: bool) -> Trend:
    side, name = 32 if smoke else 128, "dualtoken_vit_small_mix"
    arms = (
        Arm("DualToken-ViT", (), name, side, LIGHT),
        Arm("without global tokens", (), name, side, {**LIGHT, "global_branch": False}, at_least=0.0),
        Arm("without conv encoder", (), name, side, {**LIGHT, "conv_encoder": False}, at_least=0.0),
    )
    return Trend(arms, (3000, 750), 5)


def _t2t(smoke: bool) -> Trend:
    side = 32 if smoke else 64
    patches = {**TRUNK, "patch_size": 16, "qkv_bias": False}
    arms = (
        Arm("T2T-ViT", (), "t2t_vit_7", side, {**TRUNK, "token_dim": 32}),
        Arm("plain patches", (), "vit_tiny_patch16_224", side, patches, at_least=0.0),
    )
    return Trend(arms, (10_000, 5000), 10)


def _dct(smoke: bool) -> Trend:
    side, name = 64 if smoke else 128, "dct_histo_tiny"
    whole = Arm("DCT-HistoTransformer", (), name, side, HISTO)
    bare = Arm("without DCT branch", (), name, side, {**HISTO, "branches": "conv"}, at_least=0.0)
    wide = grown(bare, "without DCT branch, of its size", whole, HISTO["dims"], 2.0)
    every = Arm("all frequencies", (), name, side, {**HISTO, "keep": (1.0, 1.0, 1.0)}, at_least=-2.0)
    return Trend((whole, bare, wide, every), (5000, 5000), 5)


def grown(arm: Arm, name: str, target: Arm, widths: Sequence[int], ratio: float) -> Arm:
    """The same with MLPs that are wider until it has as many parameters as `target`. `ratio`: of its MLPs now."""
    missing = _parameters(target.built(0, num_classes=10)) - _parameters(arm.built(0, num_classes=10))
    wider = ratio + missing / sum(2 * width**2 for width in widths)
    return replace(arm, name=name, kwargs={**arm.kwargs, "mlp_ratio": wider}, at_least=None)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def trends(rows: list[dict[str, Any]], pairs: Mapping[str, Trend]) -> list[dict[str, Any]]:
    """The whole model against each other one of its family."""
    found = []
    for family, pair in pairs.items():
        top1 = {(r["model"], r["seed"]): r["top1_percent"] for r in rows if r["family"] == family}
        found += [{"family": family, **one} for one in against(top1, pair.arms)]
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    if not given.smoke and given.data is None:
        OPTIONS.error("give CIFAR10_FOLDER, or --smoke")
    source = "digits" if given.smoke else str(Path(given.data).resolve())
    pairs = {name: pair(name, smoke=given.smoke) for name in PAIRS}
    settings = {
        "model": "small models of four architectures",
        "data": "digits" if given.smoke else "CIFAR-10",
        "recipe": RECIPE,
        **{name: {"images": one.images, "epochs": one.epochs} for name, one in pairs.items()},
    }
    kept = bench.KeptRows(given.out, ABOUT, settings, fresh=given.fresh)
    for seed in range(given.seeds):  # a seed of everything before the next: what is there early is comparable
        for name in given.pairs:
            for arm in pairs[name].arms:
                key = {"family": name, "model": arm.name, "seed": seed}
                if kept.get(**key) is None:
                    kept.add({**key, **trained(arm, seed, source, pairs[name].images, pairs[name].epochs)})
                    kept.write(trends=trends(kept.rows, pairs), summary=summary(kept.rows, "family", "model"))
    for trend in trends(kept.rows, pairs):
        print(json.dumps(trend))


if __name__ == "__main__":
    main()
