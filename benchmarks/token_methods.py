"""Every token method and early exits side by side on a trained reference, at equal MACs, several seeds.

    python benchmarks/token_methods.py DATA --model RUN [--seeds 3] [--macs 0.65] [--limit 3000]
    python benchmarks/token_methods.py DATA --model RUN --method evit --method sit \\
        --method sit:token_weight=0,logit_weight=0 --method stvit --method stvit:generation=average \\
        --tolerance 0.05 --limit 10000 --recover-epochs 3 --recover-lr 5e-4 --no-controls --torch-only \\
        --out benchmarks/results/token_methods_longer.json

One `leanvit compare-methods` a seed: each method is set to the share of the MACs, judged off the shelf and after the
same recovery (nothing dropped out), and timed interleaved; with seed 0 also in OpenVINO, at f32 and int8. Beside the
methods stand the controls of their papers: EViT with random and with the least attended tokens, uniform rates for
DiffRate's learned ones, SiT without its distillation, averaged windows for the tokens that STViT generates. The trends
that the specifications name are reported as they come out. SiT and STViT begin with modules that know nothing: the
short recovery of the first line, at a low rate, is not for them.

A row a seed and method. Finished seeds, and finished methods of an interrupted one (in --work), are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
from bench import Column, Table
from leanvit.measure import Comparison
from leanvit.recipe import Recovery
from leanvit.report.side_by_side import macs_ratio
from leanvit.runs.compared import BASELINE, INT8, SideBySide
from leanvit.training import RECOVERY
from leanvit.verbs.comparing import compare_methods
from reference_study import SMOKE, over_seeds, verdict

METHODS = (
    "evit",
    "tome",
    "diffrate:max_steps=150,amp=bf16",
    "diffrate:search=prune",
    "diffrate:search=merge",
    "sit",
    "sit:token_weight=0,logit_weight=0",
    "stvit",
    "stvit:generation=average",
    "lgvit:epochs=2,amp=bf16",
)
RUNTIMES = ("openvino",)
# Without dropout of any kind: a reference that learned with patches left out would recover on parts of images.
RECOVERY_SETTINGS = {"augment": "light", "train_mode": "eval"}
OPTIONS = bench.parser(
    __doc__,
    data="",
    model="",
    method=bench.Option(list(METHODS), "as `leanvit compare-methods --with` takes it; may be repeated"),
    macs=0.65,
    tolerance=bench.Option(0.03, "of the share of the MACs"),
    controls=bench.Option(True, "leave out EViT with random and lowest tokens"),
    seeds=3,
    limit=bench.Option(3000, "images of each split"),
    recover_epochs=1,
    torch_only=bench.Option(False, "no OpenVINO and no int8 beside PyTorch"),
    recover_lr=bench.Option(RECOVERY.lr, "peak learning rate of the recovery"),
    work=bench.Option(Path("runs/token_methods"), "folder of the comparisons"),
    out=bench.RESULTS / "token_methods.json",
    fresh=False,
    smoke=False,
)
HOW = (
    " `{settings[model]}` at {settings[macs]:g} of its MACs, {settings[limit]:,} images of each split, epochs of "
    "recovery: {settings[recover_epochs]}."
)
ABOUT = bench.About(
    "Token methods at equal MACs",
    "Off the shelf and after the same short recovery, on a small reference. Means over the seeds, with the least and "
    f"the most.{HOW}",
    (
        Table(
            "summary",
            (
                *("name", "macs_ratio/mean", "off_the_shelf_top1_percent", "top1_percent", "change_points"),
                *(f"speedup, {way}/mean" for way in ("torch f32", "openvino f32", "openvino int8")),
            ),
        ),
        Table("trends", ("claim", "points", "verdict"), "What the papers lead to expect"),
    ),
    {
        "name": Column("method"),
        "top1_percent": Column("at the end", "%", ".2f"),
        **{
            f"speedup, {way}/mean": Column(f"{way}, seed 0" if "openvino" in way else way, "× dense", ".2f")
            for way in ("torch f32", "openvino f32", "openvino int8")
        },
    },
    {
        "token_methods_longer": (
            "Token methods with modules that learn from nothing",
            "SiT and STViT begin with modules that know nothing, so all get a longer recovery here, at a higher rate; "
            f"SiT without its distillation and averaged windows are their controls.{HOW}",
        ),
        "token_methods_search": (
            "DiffRate after a longer search",
            f"Rates that are learned with frozen weights against uniform ones.{HOW}",
        ),
    },
)


def run_seed(arguments: argparse.Namespace, seed: int) -> tuple[SideBySide, Comparison]:
    """The comparison of one seed; goes on with an interrupted one."""
    folder = arguments.work / f"seed-{seed}"
    amp, timed = "fp32" if arguments.smoke else "bf16", seed == 0 and not (arguments.smoke or arguments.torch_only)
    found = compare_methods(
        arguments.model,
        arguments.data,
        arguments.method,
        macs=arguments.macs,
        tolerance=arguments.tolerance,
        controls=arguments.controls,
        recovery=Recovery(
            epochs=arguments.recover_epochs,
            lr=arguments.recover_lr,
            batch_size=64,
            settings=RECOVERY_SETTINGS | {"amp": amp},
        ),
        runtimes=RUNTIMES if timed else (),
        int8=timed,
        model_args=SMOKE if arguments.smoke else None,
        limit=arguments.limit,
        seed=seed,
        out=folder,
        resume=(folder / "about.json").is_file(),
        rounds=3 if arguments.smoke else 9,
        log=lambda line: print(f"seed {seed}  {line}", flush=True),
    )
    return found.result, found.comparison


def rows_of(result: SideBySide, comparison: Comparison, seed: int) -> Iterator[dict[str, Any]]:
    """A row for the dense model and for each method."""
    dense = comparison.row(BASELINE)
    yield {"method": BASELINE, "seed": seed, "macs_ratio": 1.0, "top1_percent": _rounded(dense.score.value)}
    for one in result.standings:
        row = comparison.row(one.name)
        off_the_shelf, after = one.off_the_shelf_percent, row.score
        yield {
            "method": one.name,
            "seed": seed,
            "knobs": one.knobs,
            "macs_ratio": round(macs_ratio(comparison, one.name), 4),
            "off_the_shelf_top1_percent": _rounded(off_the_shelf.value),
            "top1_percent": _rounded(after.value),
            "change_points": None if row.change_points is None else _rounded(row.change_points.value),
            "change_interval": None
            if row.change_points is None
            else [_rounded(row.change_points.low), _rounded(row.change_points.high)],
            "speedup": dict(_speeds(comparison, one.name)),
            "learns": one.learns,
            "recovered": one.recovered,
            "seconds": one.seconds,
        }


def _speeds(comparison: Comparison, name: str) -> Iterator[tuple[str, list[float]]]:
    """(runtime and precision, [median, quartiles]) of a method against the dense model in the same."""
    known = {row.name for row in comparison.rows}
    ways = {"torch f32": "{}", "openvino f32": "{} (openvino)", "openvino int8": f"{{}} {INT8} (openvino)"}
    for runtime, row in ways.items():
        end, dense = row.format(name), row.format(BASELINE)
        if end in known and comparison.row(end).samples_s:
            spread = comparison.ratio(dense, end)
            yield runtime, [round(v, 4) for v in (spread.median, spread.q25, spread.q75)]


def _rounded(value: float) -> float:
    return round(value, 3)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each method over its seeds."""
    columns = ("macs_ratio", "off_the_shelf_top1_percent", "top1_percent", "change_points")
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        found[name] = {column: over_seeds(own, column) for column in columns if own[0].get(column) is not None}
        for runtime in own[0].get("speedup", {}):
            found[name][f"speedup, {runtime}"] = over_seeds(
                [{"v": row["speedup"][runtime][0]} for row in own if runtime in row["speedup"]], "v"
            )
    return found


CLAIMS = (  # (what the specifications expect, better, worse, column)
    ("EViT above random tokens", "evit", "evit-select-random", "top1_percent"),
    ("EViT above the least attended tokens", "evit", "evit-select-lowest", "top1_percent"),
    ("learned rates above uniform pruning", "diffrate", "diffrate-search-prune", "off_the_shelf_top1_percent"),
    ("learned rates above uniform merging", "diffrate", "diffrate-search-merge", "off_the_shelf_top1_percent"),
    ("SiT with its distillation above cross-entropy alone", "sit", "sit-token_weight-0-logit_weight-0", "top1_percent"),
    ("SiT above EViT", "sit", "evit", "top1_percent"),
    ("STViT above averaged windows", "stvit", "stvit-generation-average", "top1_percent"),
    ("STViT above EViT", "stvit", "evit", "top1_percent"),
)


def trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences in points, seed by seed."""
    found = []
    for claim, better, worse, column in CLAIMS:
        values = {name: _by_seed(rows, name, column) for name in (better, worse)}
        seeds = sorted(values[better].keys() & values[worse].keys())
        if not seeds:
            continue
        found.append(verdict(claim, [values[better][seed] - values[worse][seed] for seed in seeds]))
    return found


def _by_seed(rows: list[dict[str, Any]], name: str, column: str) -> dict[int, float]:
    return {row["seed"]: row[column] for row in rows if row["method"] == name}


def main() -> None:
    given = OPTIONS.parse_args()
    if given.smoke:
        given.data, given.model = "digits", "vit_tiny_patch16_224"
        given.method, given.limit, given.seeds, given.tolerance = ["evit", "tome"], 70, 1, 0.5
    if not given.data or not given.model:
        OPTIONS.error("give DATA and --model RUN, or --smoke")
    settings = {key: getattr(given, key) for key in ("model", "data", "macs", "limit", "recover_epochs", "recover_lr")}
    kept = bench.KeptRows(given.out, ABOUT, {**settings, "methods": given.method}, fresh=given.fresh)
    for seed in range(given.seeds):
        if kept.get(seed=seed) is None:
            result, comparison = run_seed(given, seed)
            kept.add(*rows_of(result, comparison, seed))
            kept.write(summary=summary(kept.rows), trends=trends(kept.rows), left_out=result.left_out)
    for name, columns in summary(kept.rows).items():
        print(f"{name:28}", {k: v["mean"] for k, v in columns.items() if v})
    for trend in trends(kept.rows):
        print(trend)


if __name__ == "__main__":
    main()
