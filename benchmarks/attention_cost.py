"""HiLo against the other ways to make attention cheap, one layer of each at equal width, in turns.

    python benchmarks/attention_cost.py [--batch 1 --batch 32] [--threads 2] [--rounds 15]

The grids are those of a 224x224 image at strides 4, 8 and 16, with LITv2-S's channels and heads there. The paper
(arXiv 2205.13213) says that HiLo is 1.4 times as fast on a CPU as spatial reduction attention and 1.6 times as fast as
attention in local windows, for one layer on a grid of 14x14: `claims` holds what is found for that grid, at each batch.

    hilo            LITv2's layer, 0.9 of the heads on the pooled grid, windows of 2x2 (a deployed layer: fused)
    hilo s=4        the same with windows of 4x4
    spatial reduction   PVT v2's: keys and values from a strided convolution (8, 4, 2 by stride), timm's class
    windows 7x7     Swin's, with its table of relative positions and without shift, timm's class
    full            every token to every token, timm's class: the fused kernel, or with a map of scores (unfused)
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import Attention
from timm.models.pvt_v2 import Attention as SpatialReduction
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from leanvit.files import write_atomic
from leanvit.measure import count, environment, paired_latency, ratio
from leanvit.models.hilo import HiLoAttention

CLAIMS = {"spatial reduction": 1.4, "windows 7x7": 1.6}  # how many times as fast HiLo is said to be
CLAIMED_GRID = 14


@dataclass(frozen=True)
class Place:
    """Where a layer stands in the network: a grid of `side` x `side` tokens."""

    side: int
    dim: int
    heads: int
    reduction: int  # side of PVT v2's reduction there


PLACES = (Place(56, 96, 3, 8), Place(28, 192, 6, 4), Place(14, 384, 12, 2))
SMOKE = (Place(14, 24, 6, 2),)


class Windows(nn.Module):
    """Attention in windows of 7x7 tokens: (B, N, C) -> (B, N, C)."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.side, self.size = place.side, (7, 7)
        self.attn = WindowAttention(place.dim, place.heads, window_size=self.size)

    def forward(self, x: Tensor) -> Tensor:
        windows = window_partition(x.unflatten(1, (self.side, self.side)), self.size)
        y = self.attn(windows.flatten(1, 2)).unflatten(1, self.size)
        return window_reverse(y, self.size, self.side, self.side).flatten(1, 2)


class Reduced(nn.Module):
    """Spatial reduction attention: (B, N, C) -> (B, N, C)."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.grid = (place.side, place.side)
        self.attn = SpatialReduction(place.dim, place.heads, sr_ratio=place.reduction, linear_attn=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, self.grid)


def layers(place: Place) -> dict[str, nn.Module]:
    """One layer of each kind, with a bias on q, k and v, by name."""
    torch.manual_seed(0)
    grid = (place.side, place.side)
    hilo = {"num_heads": place.heads, "alpha": 0.9, "qkv_bias": True, "grid_size": grid}
    found = {
        "hilo": HiLoAttention(place.dim, window_size=2, **hilo),
        "hilo s=4": HiLoAttention(place.dim, window_size=4, **hilo),
        "spatial reduction": Reduced(place),
        "windows 7x7": Windows(place),
        "full": Attention(place.dim, place.heads, qkv_bias=True),
        "full, unfused": Attention(place.dim, place.heads, qkv_bias=True),
    }
    found["full, unfused"].fused_attn = False
    for layer in (found["hilo"], found["hilo s=4"]):
        layer.fuse()
    return {name: layer.eval() for name, layer in found.items()}


def measured(place: Place, batch: int, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one grid at one batch; `hilo_is_faster` is the median and quartiles of the rounds' own ratios."""
    kinds, size = layers(place), (place.side**2, place.dim)
    x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    taken = paired_latency(kinds, lambda _: x, batch=batch, rounds=rounds, min_seconds=seconds)
    rows = []
    for name, layer in kinds.items():
        faster = ratio(taken[name], taken["hilo"])
        rows.append(
            {
                "grid": f"{place.side}x{place.side}",
                "channels": place.dim,
                "heads": place.heads,
                "batch": batch,
                "attention": name,
                "params": (cost := count(layer, size)).params,
                "macs": cost.macs,
                "median_ms": round(1000 * taken[name].median_s, 4),
                "hilo_is_faster": [round(v, 4) for v in (faster.q25, faster.median, faster.q75)],
            }
        )
    return rows


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's two claims beside what was found on their grid."""
    found = []
    for row in rows:
        said = CLAIMS.get(row["attention"])
        if said is not None and row["grid"] == f"{CLAIMED_GRID}x{CLAIMED_GRID}":
            low, median, high = row["hilo_is_faster"]
            verdict = "reproduced" if low >= said else "refuted" if high < said else "within the spread"
            about = {key: row[key] for key in ("attention", "grid", "batch")}
            found.append({**about, "claimed": said, "found": median, "quartiles": [low, high], "verdict": verdict})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default 1 and 32")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default 2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="least length of a sample")
    parser.add_argument("--smoke", action="store_true", help="one narrow grid, three short rounds: no figures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.smoke else arguments.threads)
    rounds, seconds = (3, 1e-4) if arguments.smoke else (arguments.rounds, arguments.seconds)
    rows = []
    for place in SMOKE if arguments.smoke else PLACES:
        for batch in arguments.batch or ([1] if arguments.smoke else [1, 32]):
            new = measured(place, batch, rounds=rounds, seconds=seconds)
            for row in new:
                print(
                    f"{row['grid']:6} batch {batch:3}  {row['attention']:18}{row['macs'] / 1e6:9.1f} MMACs"
                    f"{row['median_ms']:11.3f} ms   hilo x{row['hilo_is_faster'][1]:.2f}"
                )
            rows += new
    result = {
        "command": shlex.join(["python", "benchmarks/attention_cost.py", *sys.argv[1:]]),
        "model": "one layer of attention, LITv2-S's widths",
        "environment": environment(),
        "claims": claims(rows),
        "rows": rows,
    }
    for claim in result["claims"]:
        print(f"{claim['attention']}, batch {claim['batch']}: {claim['claimed']}x said, {claim['found']:.2f}x found")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
