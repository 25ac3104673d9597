"""Time saved by each token method on DeiT-S/224 shapes at equal MACs, against the MACs that it saves.

    python benchmarks/token_methods_speed.py [--macs 0.63] [--threads 1]      # about 15 minutes

Efficiency is time saved / MACs saved, both against the dense model in the same runtime, timed in turns; "cut" is the
control: tokens sliced off for nothing to the lengths that a method leaves, so that its efficiency is what the runtime
gives for fewer tokens. Weights and images are random: speed does not depend on them. Nothing is said about accuracy.
DiffRate's lists, which a search would find, are the published ones of DeiT-S at 2.9 GMACs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import nn

from kept_rows import KeptRows
from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.deploy import Options, export, load_artefact
from leanvit.measure import count, paired_latency, ratio
from leanvit.recipe import at_macs, compress, make_method
from tokens_speed import cut_like

OUT = Path(__file__).parent / "results" / "token_methods_speed.json"
MODEL = "deit_small_patch16_224"
DIFFRATE = {  # the published schedule of DeiT-S at 2.9 GMACs: 0.63 of its MACs
    "prune": [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
    "merge": [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
}
ASKED = {"evit": 0.95, "tome": 0.9, "diffrate": 0.95, "sit": 0.95, "stvit": 0.95}  # efficiency at batch 8


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
    """A row for each model in one runtime, timed in turns."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=0.63, help="share of the dense model's")
    parser.add_argument("--method", action="append", choices=list(ASKED), help="may be repeated; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--fresh", action="store_true", help="forget the rows that --out holds")
    parser.add_argument("--smoke", action="store_true", help="four blocks, batch 1, one round each")
    parser.add_argument("--seeds", type=int, default=1, help=argparse.SUPPRESS)  # what every smoke test gives
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds, seconds, batches = (3, 0.01, (1,)) if arguments.smoke else (arguments.rounds, 0.2, (8, 1))
    settings = {"model": MODEL, "macs": arguments.macs, "threads": arguments.threads, "rounds": rounds}
    kept = KeptRows(arguments.out, settings, fresh=arguments.fresh)
    found = models(arguments.macs, arguments.method or list(ASKED), smoke=arguments.smoke)
    for batch in batches:
        for runtime in ("torch", "openvino"):
            if kept.get(batch=batch, runtime=runtime) is not None:
                continue
            made = list(rows(found, runtime, batch, threads=arguments.threads, rounds=rounds, seconds=seconds))
            kept.rows.extend(made)
            kept.write()
            for row in made:
                print(
                    f"batch {batch}  {runtime:9} {row['method']:22} MACs x{row['macs_ratio']:.3f}  "
                    f"x{row['speedup'][0]:.3f}  efficiency {row['efficiency']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
