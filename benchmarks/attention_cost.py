"""HiLo against the other ways to make attention cheap, one layer of each at equal width, interleaved.

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

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from timm.models.pvt_v2 import Attention as SpatialReduction
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

import bench
from bench import Column, Table
from leanvit.measure import count, paired_latency, ratio
from leanvit.models.hilo import HiLoAttention

CLAIMS = {"spatial reduction": 1.4, "windows 7x7": 1.6}  # how many times as fast HiLo is said to be
CLAIMED_GRID = 14
ORDER = ("q25", "median", "q75")
OPTIONS = bench.parser(
    __doc__, batch=[1, 32], threads=2, rounds=15, seconds=0.3, smoke=False, out=bench.RESULTS / "attention_cost.json"
)
ABOUT = bench.About(
    "One layer of attention",
    "[HiLo](methods/litv2.md) against the other ways to make attention cheap, at equal width, on the grids of a "
    "224x224 image.",
    (
        Table("rows", ("grid", "channels", "batch", "attention", "macs", "median_ms", "hilo_is_faster")),
        Table(
            "claims",
            ("attention", "grid", "batch", "fewer_macs", "claimed", "found", "quartiles", "verdict"),
            "The paper's claims for one layer of HiLo on a CPU, against another attention",
        ),
    ),
    {
        "median_ms": Column("time", "ms", ".3f"),
        "hilo_is_faster": Column("HiLo is faster by (quartiles)", form=".2f", each=ORDER),
        "fewer_macs": Column("times fewer MACs", form=".2f"),
        "claimed": Column("claimed", form=".2f"),
        "found": Column("found", form=".2f"),
        "quartiles": Column("quartiles", form=".2f", each=("q25", "q75")),
    },
)


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
    macs = {(row["grid"], row["attention"]): row["macs"] for row in rows}
    for row in rows:
        said = CLAIMS.get(row["attention"])
        if said is not None and row["grid"] == f"{CLAIMED_GRID}x{CLAIMED_GRID}":
            low, median, high = row["hilo_is_faster"]
            verdict = "reproduced" if low >= said else "refuted" if high < said else "within the spread"
            about = {key: row[key] for key in ("attention", "grid", "batch")}
            fewer = round(row["macs"] / macs[row["grid"], "hilo"], 4)
            payload = {"claimed": said, "found": median, "quartiles": [low, high], "verdict": verdict}
            found.append({**about, "fewer_macs": fewer, **payload})
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    places, batches, rounds, seconds = PLACES, given.batch, given.rounds, given.seconds
    torch.set_num_threads(1 if given.smoke else given.threads)
    if given.smoke:
        places, batches, rounds, seconds = SMOKE, [1], 3, 1e-4
    rows = []
    for place in places:
        for batch in batches:
            rows += measured(place, batch, rounds=rounds, seconds=seconds)
            for row in rows[-len(layers(place)) :]:
                bench.log(row)
    bench.write_result(
        given.out, ABOUT, model="one layer of attention, LITv2-S's widths", claims=claims(rows), rows=rows
    )


if __name__ == "__main__":
    main()
