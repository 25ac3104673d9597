"""LGViT's exits on a trained reference: kinds of heads at the same blocks, and what the rule is worth, several seeds.

    python benchmarks/lgvit_heads.py DATA --model RUN [--seeds 3] [--limit 10000] [--epochs 4]

Heads are trained on the frozen reference (stage 2), in four layouts: the published order, convolutional heads
everywhere, attention heads everywhere, and linear ones (what early exits were before). Each head is judged at its block
on all validation images: that is what static truncation there would give.

The threshold is chosen on held-out training images: the most accurate one at which images pass three quarters of the
blocks or fewer. Against it stands random exiting, the same share of images at each exit, and so the same cost, whatever
the image: its expected accuracy follows from the heads' accuracies. The same is asked of all thresholds of the curve
but those of its ends, a tenth of its length each.

A row a layout and seed, written as it comes; the same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.anatomy.exits.rules import Rule
from leanvit.data import Dataset, Preprocess
from leanvit.exits.calibration import Collected, Point, collect, curve, replay
from leanvit.exits.lgvit import LGViT
from leanvit.recipe import Data, compress
from reference_study import open_reference, over_seeds, smoke_reference, verdict

LAYOUTS = {"published": None, "convolution": "lph_dw", "attention": "gah2", "linear": "linear"}
SHARE = 0.75  # of the blocks, that images pass on average, at most: the specification's 9 of 12
OPTIONS = bench.parser(
    __doc__,
    data="",
    model="",
    seeds=3,
    limit=bench.Option(10_000, "training images, the held-out ones among them"),
    val_images=None,
    epochs=4,
    out=bench.RESULTS / "lgvit_heads.json",
    fresh=False,
    smoke=False,
)
ABOUT = bench.About(
    "Early exits",
    "[LGViT](methods/lgvit.md)'s heads against plain linear ones at the same blocks, and its rule against letting as "
    "many images leave blindly. `{settings[model]}`, {settings[limit]:,} training images, {settings[epochs]} epochs of "
    "the heads, the backbone frozen.",
    (
        Table("summary", ("name", "top1 after block *"), "Top-1 of each head and of the end on all validation images"),
        Table(
            "summary",
            ("name", "depth_over_mean_exit", "speedup_macs", "points_lost", "above_random"),
            "Under the rule, with the threshold that held-out training images chose",
        ),
        Table("trends", ("claim", "points", "verdict"), "What is expected"),
    ),
    {
        "name": Column("heads"),
        "top1 after block *": Column("after block *", "%", ".2f"),
        "depth_over_mean_exit": Column("depth / mean exit", form=".2f"),
        "speedup_macs": Column("MACs saved", "times", ".2f"),
        "points_lost": Column("lost", "points", ".2f"),
        "above_random": Column("above random exits, median", "points", ".2f"),
    },
)


def reference(arguments: argparse.Namespace) -> tuple[OpenModel, Preprocess, Dataset, Dataset]:
    """(dense model, preprocessing, all training images, validation images)."""
    if arguments.smoke:
        return smoke_reference(depth=3, epochs=4)
    return open_reference(arguments)


def method(layout: str, dense: OpenModel, arguments: argparse.Namespace) -> LGViT:
    """The published layers; one kind of head at all of them, or the published order."""
    kind, amp = LAYOUTS[layout], "fp32" if arguments.smoke else "bf16"
    exits = [layer for layer, _ in LGViT().rows(dense)]
    heads = None if kind is None else (kind,) * len(exits)
    return LGViT(exits=tuple(exits), heads=heads, epochs=arguments.epochs, amp=amp)


def row(study: tuple[Any, ...], layout: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Heads of one layout, trained, judged one by one and under the rule."""
    dense, preprocess, train, val = study
    start, asked = time.perf_counter(), method(layout, dense, arguments)
    lean = compress(dense, [asked], Data(train.limited(arguments.limit, seed=seed), preprocess, seed=seed))
    structure = lean.history.plans[-1].structure
    layers, macs = (*lean.exits.layers, len(lean.blocks)), structure["macs"]
    seen = collect(lean, val, preprocess, batch_size=256)
    alone = [percent(one.answer == seen.targets) for one in seen.exits] + [percent(seen.final == seen.targets)]
    points = curve(seen, asked.rule, asked.patience, layers, macs)
    return {
        "layout": layout,
        "seed": seed,
        "heads": [e["head"] for e in structure["exits"]],
        "layers": list(layers),
        "head_params": [sum(p.numel() for p in head.parameters()) for head in lean.exits.heads],
        "macs_over_dense": [round(n / structure["dense_macs"], 4) for n in macs],
        "top1_percent": [round(a, 3) for a in alone],
        "rule": ruled(seen, structure, alone, layers),
        "rule_above_random": spread(points, alone, layers),
        "curve": [[round(p.macs / structure["dense_macs"], 4), round(100 * p.top1, 3)] for p in points],
        "seconds": round(time.perf_counter() - start, 1),
    }


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def ruled(seen: Collected, structure: Any, alone: Sequence[float], layers: Sequence[int]) -> dict[str, Any]:
    """What the threshold gives on the validation images that held-out images chose for `SHARE` of the blocks."""
    few = [p for p in structure["curve"] if p["mean_layer"] <= SHARE * layers[-1]]
    threshold = max(few, key=lambda p: (p["top1"], -p["macs"]))["threshold"]
    rule = Rule(structure["rule"], (threshold,) * len(seen.exits), structure["patience"])
    found = replay(seen, rule, layers, structure["macs"])
    return {
        "threshold": threshold,
        "mean_layer": round(found.mean_layer, 3),
        "depth_over_mean_exit": round(layers[-1] / found.mean_layer, 4),
        "speedup_macs": round(structure["dense_macs"] / found.macs, 4),
        "top1_percent": round(100 * found.top1, 3),
        "points_lost": round(alone[-1] - 100 * found.top1, 3),
        "random_top1_percent": round(random_exits(found, alone), 3),
    }


def random_exits(point: Point, alone: Sequence[float]) -> float:
    """Expected top-1 (%) where as many images leave at each exit, drawn blindly."""
    return sum(share * top1 for share, top1 in zip(point.shares, alone, strict=True))


def spread(points: Sequence[Point], alone: Sequence[float], layers: Sequence[int]) -> dict[str, float]:
    """Points of top-1 above random exiting, over the thresholds at which images part: not the ends of the curve."""
    margin = 0.1 * (layers[-1] - layers[0])
    inner = [p for p in points if layers[0] + margin < p.mean_layer < layers[-1] - margin]
    gaps = [100 * p.top1 - random_exits(p, alone) for p in inner] or [0.0]
    return {
        "least": round(min(gaps), 3),
        "median": round(float(torch.tensor(gaps).median()), 3),
        "most": round(max(gaps), 3),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each layout over its seeds, exit by exit."""
    found: dict[str, Any] = {}
    for layout in dict.fromkeys(r["layout"] for r in rows):
        own = [r for r in rows if r["layout"] == layout]
        exits = own[0]["layers"]
        found[layout] = {
            f"top1 after block {n}": over_seeds([{"v": r["top1_percent"][i]} for r in own], "v")
            for i, n in enumerate(exits)
        }
        for column in ("points_lost", "speedup_macs", "depth_over_mean_exit"):
            found[layout][column] = over_seeds([r["rule"] for r in own], column)
        found[layout]["above_random"] = over_seeds([r["rule_above_random"] for r in own], "median")
    return found


def trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of the specification, seed by seed."""
    of = {(r["layout"], r["seed"]): r for r in rows}
    seeds = sorted(seed for seed in {r["seed"] for r in rows} if all((layout, seed) in of for layout in LAYOUTS))
    if not seeds:
        return []
    exits = rows[0]["layers"][:-1]
    found = [
        verdict(
            f"{kind} heads above linear ones after block {n} of {rows[0]['layers'][-1]}",
            [of[kind, s]["top1_percent"][i] - of["linear", s]["top1_percent"][i] for s in seeds],
        )
        for kind in ("convolution", "attention")
        for i, n in enumerate(exits)
    ]
    lost = [of["published", s]["rule"]["points_lost"] for s in seeds]
    found.append(
        verdict("at three quarters of the blocks, at most 1 point lost (what is left of it)", [1 - v for v in lost])
    )
    for layout in LAYOUTS:
        gaps = [of[layout, s]["rule_above_random"]["least"] for s in seeds]
        found.append(verdict(f"above random exiting all along the curve, {layout} heads", gaps))
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    if given.smoke:
        given.limit, given.epochs, given.seeds = 200, 1, 1
    study = reference(given)
    settings = {key: getattr(given, key) for key in ("model", "data", "limit", "val_images", "epochs")}
    kept = bench.KeptRows(given.out, ABOUT, settings, fresh=given.fresh)
    for seed in range(given.seeds):
        for layout in LAYOUTS:
            if kept.get(layout=layout, seed=seed) is None:
                kept.add(row(study, layout, seed, given))
    kept.write(summary=summary(kept.rows), trends=trends(kept.rows))
    for trend in trends(kept.rows):
        print(trend)


if __name__ == "__main__":
    main()
