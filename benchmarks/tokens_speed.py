"""Speed of token reduction on DeiT-S/224 shapes on a CPU, against its own MACs.

    python benchmarks/tokens_speed.py [--batch 8 --batch 1] [--rounds 15] [--threads N] [--runtime "pytorch eager"]

Efficiency is time saved / MACs saved, both against the dense model in the same runtime. Controls: the same network
written plainly (`sketch_vit.py`), and a free cut: tokens sliced off to the same lengths, so that its efficiency is what
the runtime gives for fewer tokens, and the distance to it is what choosing and merging cost. Weights and images are
random: speed does not depend on them, and nothing is said here about accuracy.

More runtimes are more entries of `RUNTIMES`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import bench
from bench import Column, Table
from leanvit.anatomy import OpenViT, State, Step, open_model
from leanvit.measure import count, paired_latency, ratio
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from sketch_vit import SketchViT

MODEL, SIZE = "deit_small_patch16_224", (3, 224, 224)
Models = dict[str, nn.Module]
ABOUT = bench.About(
    "Token methods and int8 on DeiT-S in every runtime",
    "[EViT](methods/evit.md) at keep rate 0.7, [ToMe](methods/tome.md) at r=13 and [int8](methods/int8.md), each "
    "against the dense network in the same runtime and precision. Controls: tokens sliced off for nothing to the same "
    "lengths (`cut`), the same network written plainly (`sketch`), NNCF's int8. Random weights: speed alone.",
    (
        Table(
            "rows",
            (
                *("batch", "runtime", "precision", "method", "macs_ratio"),
                *("images_per_s", "ratio_vs_dense_same_runtime", "efficiency"),
            ),
        ),
    ),
    {
        "ratio_vs_dense_same_runtime": Column("speed", "× dense in the same runtime", ".2f"),
    },
)


@dataclass(frozen=True)
class Candidate:
    """One row to be: a method in a runtime at a precision, and what runs it on a batch."""

    method: str
    runtime: str
    precision: str
    run: Callable[[Tensor], Any]


class Cut(Step):
    """Slices the sequence: fewer tokens for nothing."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return x[:, : self.tokens], state


def models() -> tuple[Models, Models]:
    """leanvit's models and the sketches, by method; all share one set of weights."""
    torch.manual_seed(0)
    source = timm.create_model(MODEL).eval()
    own: Models = {"dense": open_model(source), "evit": _with(source, EViT()), "tome": _with(source, ToMe())}
    for method in ("evit", "tome"):
        own[f"{method} lengths, cut"] = cut_like(source, own[method])
    return own, {name or "dense": SketchViT(source, name) for name in ("", "evit", "tome")}


def _with(source: nn.Module, method: Any) -> OpenViT:
    model = open_model(source)
    method.shape(model, method.learn(model))
    return model


def cut_like(source: nn.Module, reduced: Any) -> OpenViT:
    """A control: `source` with its sequence sliced to the lengths that a reduced model has."""
    with torch.no_grad():
        lengths = reduced.trace(torch.zeros(1, *SIZE))[1].tokens
    model = open_model(source)
    before = lengths[0] + 1
    for block, tokens in zip(model.blocks, lengths, strict=True):
        if tokens < before:
            block.between.append(Cut(tokens))
        before = tokens
    return model.eval()


def eager(own: Models, sketches: Models) -> Iterator[Candidate]:
    for method, model in own.items():
        yield Candidate(method, "pytorch eager", "f32", model)


def eager_sketch(own: Models, sketches: Models) -> Iterator[Candidate]:
    for method, model in sketches.items():
        yield Candidate(method, "pytorch eager, sketch", "f32", model)


def compiled(own: Models, sketches: Models) -> Iterator[Candidate]:
    for method in ("dense", "evit", "tome"):
        torch._dynamo.reset()
        yield Candidate(method, "torch.compile", "f32", torch.compile(copy.deepcopy(own[method]), dynamic=False))


RUNTIMES: dict[str, Callable[[Models, Models], Iterator[Candidate]]] = {
    "pytorch eager": eager,
    "pytorch eager, sketch": eager_sketch,
    "torch.compile": compiled,
}


def timed(
    candidates: list[Candidate], macs: dict[str, int], *, batch: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Rows of the candidates of one runtime, timed interleaved on one input."""
    images = torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(0))
    named = {f"{c.method}/{c.precision}": c for c in candidates}
    taken = paired_latency(
        {name: c.run for name, c in named.items()}, lambda _: images, batch=batch, rounds=rounds, min_seconds=seconds
    )
    found = []
    for name, c in named.items():
        speedup = ratio(taken[f"dense/{c.precision}"], taken[name]).median
        macs_ratio = macs[c.method] / macs["dense"]
        found.append(
            {
                "method": c.method,
                "runtime": c.runtime,
                "precision": c.precision,
                "batch": batch,
                "images_per_s": round(taken[name].images_per_s, 2),
                "ratio_vs_dense_same_runtime": round(speedup, 4),
                "macs_ratio": round(macs_ratio, 4),
                "efficiency": None if macs_ratio == 1 else round((1 - 1 / speedup) / (1 - macs_ratio), 3),
            }
        )
    return found


def measured(batches: list[int], runtimes: list[str], *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of every batch and runtime."""
    own, sketches = models()
    macs = {method: count(model, SIZE).macs for method, model in own.items()}
    return [
        row
        for batch in batches
        for runtime in runtimes
        for row in timed(list(RUNTIMES[runtime](own, sketches)), macs, batch=batch, rounds=rounds, seconds=seconds)
    ]


OPTIONS = bench.parser(
    __doc__,
    batch=[8, 1],
    rounds=15,
    seconds=0.5,
    threads=None,
    runtime=bench.Option(list(RUNTIMES), "may be repeated; default: all", choices=list(RUNTIMES)),
    out=None,
)


def main() -> None:
    given = OPTIONS.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = measured(given.batch, given.runtime, rounds=given.rounds, seconds=given.seconds)
    for row in rows:
        bench.log(row)
    bench.write_result(given.out, ABOUT, model=MODEL, rows=rows)


if __name__ == "__main__":
    main()
