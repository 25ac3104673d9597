"""Time saved by each token method on DeiT-S/224 shapes at equal MACs, against the MACs that it saves.

    python benchmarks/token_methods_speed.py [--macs 0.63] [--threads 1]      # about 15 minutes

Efficiency is time saved / MACs saved, both against the dense model in the same runtime, timed interleaved; "cut" is the
control: tokens sliced off for nothing to the lengths that a method leaves, so that its efficiency is what the runtime
gives for fewer tokens. Weights and images are random: speed does not depend on them. Nothing is said about accuracy.
DiffRate's lists, which a search would find, are the published ones of DeiT-S at 2.9 GMACs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import nn

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.deploy import Options, export, load_artefact
from leanvit.measure import count, paired_latency, ratio
from leanvit.recipe import at_macs, compress, make_method
from tokens_speed import cut_like

MODEL = "deit_small_patch16_224"
DIFFRATE = {  # the published schedule of DeiT-S at 2.9 GMACs: 0.63 of its MACs
    "prune": [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
    "merge": [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
}
ASKED = {"evit": 0.95, "tome": 0.9, "diffrate": 0.95, "sit": 0.95, "stvit": 0.95}  # efficiency at batch 8
OPTIONS = bench.parser(
    __doc__,
    macs=0.63,
    method=bench.Option(list(ASKED), "may be repeated; default: all", choices=list(ASKED)),
    threads=1,
    rounds=11,
    out=bench.RESULTS / "token_methods_speed.json",
    fresh=False,
    smoke=False,
)
ABOUT = bench.About(
    "Time saved, MACs saved",
    "Token methods on DeiT-S shapes at one share of its MACs. `cut` is the control: tokens sliced off for nothing, to "
    "the lengths that the method leaves.",
    (Table("rows", ("batch", "runtime", "method", "macs_ratio", "median_ms", "speedup", "efficiency", "asked")),),
    {
        "speedup": Column("times as fast (quartiles)", form=".2f", each=("median", "q25", "q75")),
        "asked": Column("asked", form="g"),
    },
)


def models(share: float, wanted: list[str], *, smoke: bool) -> dict[str, OpenModel]:
    """The dense model, each method on it, and its control, all with the same weights."""
    torch.manual_seed(0)
    source = timm.create_model(MODEL, **({"depth": 4} if smoke else {})).eval()
    dense = compress(source, [])
    found = {"dense": dense}
    for slug in wanted:
        fixed = slug == "diffrate" and not smoke
        method = make_method(slug, DIFFRATE) if fixed else at_macs(dense, slug, share, _knobs(slug))
        found[slug] = compress(dense, [method])
        if all(a >= b for a, b in zip(found[slug].patch_tokens(), found[slug].patch_tokens()[1:], strict=False)):
            found[f"{slug} lengths, cut"] = cut_like(source, found[slug])
    return found


def _knobs(slug: str) -> dict[str, Any]:
    return {"search": "prune"} if slug == "diffrate" else {}


def rows(
    found: dict[str, OpenModel], runtime: str, batch: int, *, threads: int, rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for each model in one runtime, timed interleaved."""
    macs = {name: count(model, model.input_size()).macs for name, model in found.items()}
    x = torch.randn(batch, *found["dense"].input_size(), generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(prefix="leanvit-bench-") as folder:
        runners = {name: _runner(model, name, runtime, batch, Path(folder), threads) for name, model in found.items()}
        taken = paired_latency(runners, lambda _: x, batch=batch, rounds=rounds, min_seconds=seconds)
    for name in found:
        faster, share = ratio(taken["dense"], taken[name]), macs[name] / macs["dense"]
        efficiency = None if share == 1 else round((1 - 1 / faster.median) / (1 - share), 3)
        yield {
            "method": name,
            "runtime": runtime,
            "batch": batch,
            "macs_ratio": round(share, 4),
            "median_ms": round(taken[name].median_s * 1e3, 3),
            "speedup": [round(v, 4) for v in (faster.median, faster.q25, faster.q75)],
            "efficiency": efficiency,
            "asked": ASKED.get(name) if batch == 8 else None,
        }


def _runner(model: nn.Module, name: str, runtime: str, batch: int, folder: Path, threads: int) -> Any:
    if runtime == "torch":
        return model
    made = export(model, folder / name.replace(" ", "-"), to="openvino", preprocess=Preprocess.of(model), batch=batch)
    return load_artefact(made, options=Options(precision="f32", threads=threads))


def main() -> None:
    given = OPTIONS.parse_args()
    torch.set_num_threads(given.threads)
    rounds, seconds, batches = (3, 0.01, (1,)) if given.smoke else (given.rounds, 0.2, (8, 1))
    settings = {"model": MODEL, "macs": given.macs, "threads": given.threads, "rounds": rounds}
    kept = bench.KeptRows(given.out, ABOUT, settings, fresh=given.fresh)
    found = models(given.macs, given.method, smoke=given.smoke)
    for batch in batches:
        for runtime in ("torch", "openvino"):
            if kept.get(batch=batch, runtime=runtime) is None:
                kept.add(*rows(found, runtime, batch, threads=given.threads, rounds=rounds, seconds=seconds))


if __name__ == "__main__":
    main()
