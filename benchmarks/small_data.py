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

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

import leanvit.backbones  # noqa: F401 (registers the names)
from kept_rows import KeptRows
from leanvit.data import Augment, Preprocess, keyed, open_dataset
from leanvit.measure import count
from leanvit.training import FitConfig, fit, top1_accuracy

SHAPE = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}
LIGHT = {"dims": (32, 64, 128), "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
TRUNK = {"embed_dim": 96, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
HISTO = {"dims": (32, 64, 128), "depths": (1, 1, 1), "num_heads": (2, 4, 8)}
RECIPE = {"batch_size": 100, "lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1}
PAIRS = ("dhvt", "dualtoken_vit", "t2t_vit", "dct_histo")


@dataclass(frozen=True)
class Candidate:
    """One model of a pair."""

    label: str
    name: str  # timm's
    side: int  # of its images
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    at_least: float | None = None  # points that the whole model is asked to be ahead of this one, in the mean

    def built(self, seed: int, **data: Any) -> nn.Module:
        with keyed.global_rng(seed, "weights"):
            model: nn.Module = timm.create_model(self.name, img_size=self.side, **self.kwargs, **data)
        return model

    def grown(self, label: str, target: nn.Module, widths: Sequence[int], ratio: float) -> Candidate:
        """The same with MLPs that are wider until it has as many parameters as `target`. `ratio`: of its MLPs now."""
        missing = _parameters(target) - _parameters(self.built(0, num_classes=10))
        wider = ratio + missing / sum(2 * width**2 for width in widths)
        return replace(self, label=label, kwargs={**self.kwargs, "mlp_ratio": wider}, at_least=None)


@dataclass(frozen=True)
class Pair:
    """Models that are compared, the whole one first, and how long each learns."""

    candidates: tuple[Candidate, ...]
    images: tuple[int, int]  # for training and for the test
    epochs: int


def pair(name: str, *, smoke: bool) -> Pair:
    """A pair by its name; `smoke`: digits, hardly any of them."""
    make = {"dhvt": _dhvt, "dualtoken_vit": _dualtoken, "t2t_vit": _t2t, "dct_histo": _dct}[name]
    found = make(smoke)
    return Pair(found.candidates, (100, 40), 1) if smoke else found


def _dhvt(smoke: bool) -> Pair:
    side = 8 if smoke else 32
    whole = Candidate("DHVT", "dhvt_tiny_cifar_patch4", side, SHAPE)
    plain = Candidate("plain ViT of its shape", "vit_tiny_patch16_224", side, SHAPE, at_least=6.0)
    wide = plain.grown("plain ViT of its size", whole.built(0, num_classes=10), [96] * 4, 4.0)
    return Pair((whole, plain, wide), (3000, 750), 5)


def _dualtoken(smoke: bool) -> Pair:
    side, name = 32 if smoke else 128, "dualtoken_vit_small_mix"
    candidates = (
        Candidate("DualToken-ViT", name, side, LIGHT),
        Candidate("without global tokens", name, side, {**LIGHT, "global_branch": False}, at_least=0.0),
        Candidate("without conv encoder", name, side, {**LIGHT, "conv_encoder": False}, at_least=0.0),
    )
    return Pair(candidates, (3000, 750), 5)


def _t2t(smoke: bool) -> Pair:
    side = 32 if smoke else 64
    patches = {**TRUNK, "patch_size": 16, "qkv_bias": False}
    candidates = (
        Candidate("T2T-ViT", "t2t_vit_7", side, {**TRUNK, "token_dim": 32}),
        Candidate("plain patches", "vit_tiny_patch16_224", side, patches, at_least=0.0),
    )
    return Pair(candidates, (10_000, 5000), 10)


def _dct(smoke: bool) -> Pair:
    side, name = 64 if smoke else 128, "dct_histo_tiny"
    whole = Candidate("DCT-HistoTransformer", name, side, HISTO)
    bare = Candidate("without DCT branch", name, side, {**HISTO, "branches": "conv"}, at_least=0.0)
    wide = bare.grown("without DCT branch, of its size", whole.built(0, num_classes=10), HISTO["dims"], 2.0)
    every = Candidate("all frequencies", name, side, {**HISTO, "keep": (1.0, 1.0, 1.0)}, at_least=-2.0)
    return Pair((whole, bare, wide, every), (5000, 5000), 5)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def row(candidate: Candidate, family: str, seed: int, source: str, *, images: tuple[int, int], epochs: int) -> Any:
    """Train and validate one model."""
    train, test = (open_dataset(source, split, limit=n) for split, n in zip(("train", "val"), images, strict=True))
    channels = train.channels
    model = candidate.built(seed, in_chans=channels, num_classes=len(train.classes))
    preprocess = Preprocess(
        (channels, candidate.side, candidate.side),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
    )
    augment = Augment(crop="pad", padding=3 / 32)
    config = FitConfig(**RECIPE, epochs=epochs, augment=augment, seed=seed)  # type: ignore[arg-type]
    cost = count(model, preprocess.input_size)
    start = time.perf_counter()
    fit(model, train.cached(), preprocess=preprocess, config=config, convert=True)
    seconds = time.perf_counter() - start
    return {
        "family": family,
        "model": candidate.label,
        "seed": seed,
        "params": _parameters(model),
        "macs": cost.macs,
        "top1_percent": round(100 * top1_accuracy(model, test, preprocess=preprocess), 3),
        "train_seconds": round(seconds, 1),
    }


def trends(rows: list[dict[str, Any]], pairs: Mapping[str, Pair]) -> list[dict[str, Any]]:
    """The whole model against each other one of its pair: points of top-1, seed by seed and in the mean."""
    by = {(r["family"], r["model"], r["seed"]): r["top1_percent"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    found = []
    for family, (whole, *others) in ((name, one.candidates) for name, one in pairs.items()):
        for other in others:
            both = [(by.get((family, whole.label, s)), by.get((family, other.label, s))) for s in seeds]
            points = [round(a - b, 3) for a, b in both if a is not None and b is not None]
            if not points:
                continue
            mean = round(statistics.mean(points), 3)
            held = None if other.at_least is None else mean >= other.at_least
            told = {"family": family, "than": other.label, "points": points, "mean": mean}
            found.append({**told, "asked_at_least": other.at_least, "holds": held})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="folder with the parquet files of CIFAR-10")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="forget the rows that --out holds")
    parser.add_argument("--smoke", action="store_true", help="an epoch of a few digits: no figures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_data.json"))
    arguments = parser.parse_args()
    if not arguments.smoke and arguments.data is None:
        parser.error("give CIFAR10_FOLDER, or --smoke")
    source = "digits" if arguments.smoke else str(Path(arguments.data).resolve())
    pairs = {name: pair(name, smoke=arguments.smoke) for name in PAIRS}
    settings = {
        "model": "small models of four architectures",
        "data": "digits" if arguments.smoke else "CIFAR-10",
        "recipe": RECIPE,
        **{name: {"images": one.images, "epochs": one.epochs} for name, one in pairs.items()},
    }
    kept = KeptRows(arguments.out, settings, fresh=arguments.fresh)
    for seed in range(arguments.seeds):  # a seed of everything before the next: what is there early is comparable
        for name in arguments.pairs:
            for candidate in pairs[name].candidates:
                if kept.get(family=name, model=candidate.label, seed=seed) is None:
                    sizes = {"images": pairs[name].images, "epochs": pairs[name].epochs}
                    made = kept.add(row(candidate, name, seed, source, **sizes))  # type: ignore[arg-type]
                    kept.write(trends=trends(kept.rows, pairs))
                    print(json.dumps(made), flush=True)
    for trend in trends(kept.rows, pairs):
        print(json.dumps(trend))


if __name__ == "__main__":
    main()
