"""What the parts of DHVT and DualToken-ViT give on little data: small models, few epochs, with and without them.

    python benchmarks/small_data.py CIFAR10_FOLDER [--only dhvt] [--seeds 3]     # 3 to 10 minutes a family and core
    python benchmarks/small_data.py --smoke                                      # digits, seconds: no figures

3,000 training and 750 test images of CIFAR-10, 5 epochs, batch 100, AdamW 1e-3 with a cosine, label smoothing 0.1,
mirrored and shifted by up to 3 pixels. DHVT (width 96, 4 blocks, 4 heads, patches of 4) against a plain ViT of its
shape and one of as many parameters; DualToken-ViT (widths 32, 64, 128, a block a stage, images enlarged to 128) against
itself without global tokens and without the conv encoder. A row a model and seed; a run that was killed goes on. Trends
are held against what is asked of them, whichever way they come out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.data import Augment, Preprocess, keyed, open_dataset
from leanvit.files import write_atomic
from leanvit.measure import environment
from leanvit.training import FitConfig, fit, top1_accuracy

SHAPE = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}
LIGHT = {"dims": (32, 64, 128), "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
RECIPE = {"epochs": 5, "batch_size": 100, "lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1}


@dataclass(frozen=True)
class Candidate:
    """One model of a family."""

    label: str
    name: str  # timm's
    side: int  # of its images
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def built(self, seed: int, **data: Any) -> nn.Module:
        with keyed.global_rng(seed, "weights"):
            model: nn.Module = timm.create_model(self.name, img_size=self.side, **self.kwargs, **data)
        return model


def families(side: int, enlarged: int) -> dict[str, tuple[Candidate, ...]]:
    """The first of each family is whole; the others lack something."""
    whole = Candidate("DHVT", "dhvt_tiny_cifar_patch4", side, SHAPE)
    plain = Candidate("plain ViT of its shape", "vit_tiny_patch16_224", side, SHAPE)
    missing = _parameters(whole.built(0, num_classes=10)) - _parameters(plain.built(0, num_classes=10))
    ratio = 4 + missing / (SHAPE["depth"] * 2 * SHAPE["embed_dim"] ** 2)  # the MLPs grow until nothing is missing
    wide = Candidate("plain ViT of its size", plain.name, side, {**SHAPE, "mlp_ratio": ratio})
    light = "dualtoken_vit_small_mix"
    return {
        "dhvt": (whole, plain, wide),
        "dualtoken_vit": (
            Candidate("DualToken-ViT", light, enlarged, LIGHT),
            Candidate("without global tokens", light, enlarged, {**LIGHT, "global_branch": False}),
            Candidate("without conv encoder", light, enlarged, {**LIGHT, "conv_encoder": False}),
        ),
    }


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
    config = FitConfig(**{**RECIPE, "epochs": epochs}, augment=augment, seed=seed)  # type: ignore[arg-type]
    start = time.perf_counter()
    fit(model, train, preprocess=preprocess, config=config, convert=True)
    seconds = time.perf_counter() - start
    return {
        "family": family,
        "model": candidate.label,
        "seed": seed,
        "params": _parameters(model),
        "top1_percent": round(100 * top1_accuracy(model, test, preprocess=preprocess), 3),
        "train_seconds": round(seconds, 1),
    }


def trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole model against each other one of its family: points of top-1, seed by seed and in the mean."""
    asked = {"plain ViT of its shape": 6.0, "without global tokens": 0.0, "without conv encoder": 0.0}
    wholes = {"dhvt": "DHVT", "dualtoken_vit": "DualToken-ViT"}
    by = {(r["family"], r["model"], r["seed"]): r["top1_percent"] for r in rows}
    found = []
    for family, label in dict.fromkeys((r["family"], r["model"]) for r in rows):
        pairs = [
            (by.get((family, wholes[family], s)), by[family, label, s]) for f, m, s in by if (f, m) == (family, label)
        ]
        points = [round(whole - other, 3) for whole, other in pairs if whole is not None]
        if label == wholes[family] or not points:
            continue
        mean, least = round(statistics.mean(points), 3), asked.get(label)
        held = None if least is None else mean >= least
        found.append({"than": label, "points": points, "mean": mean, "asked_at_least": least, "holds": held})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="folder with the parquet files of CIFAR-10")
    parser.add_argument("--only", choices=["dhvt", "dualtoken_vit"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="an epoch of a few digits: no figures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_data.json"))
    arguments = parser.parse_args()
    if not arguments.smoke and arguments.data is None:
        parser.error("give CIFAR10_FOLDER, or --smoke")
    source = "digits" if arguments.smoke else str(Path(arguments.data).resolve())
    sizes = {"images": (100, 40), "epochs": 1} if arguments.smoke else {"images": (3000, 750), "epochs": 5}
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
    for family, candidates in families(*((8, 32) if arguments.smoke else (32, 128))).items():
        for seed in range(arguments.seeds) if arguments.only in (None, family) else ():
            for candidate in candidates:
                if any((r["family"], r["model"], r["seed"]) == (family, candidate.label, seed) for r in rows):
                    continue
                rows.append(row(candidate, family, seed, source, **sizes))  # type: ignore[arg-type]
                print(json.dumps(rows[-1]), flush=True)
                _write(arguments.out, rows)
    for trend in trends(rows):
        print(json.dumps(trend))


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    command = [word for word in sys.argv[1:] if not Path(word).is_dir()]  # no path of this machine
    result = {
        "command": shlex.join(["python", "benchmarks/small_data.py", "CIFAR10_FOLDER", *command]),
        "model": "DHVT and DualToken-ViT, small",
        "environment": environment(),
        "trends": trends(rows),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
