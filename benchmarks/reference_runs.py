"""EViT, ToMe, NViT, int8 and their compositions on a trained reference ViT: accuracy, MACs, measured speed.

    python benchmarks/reference_runs.py DATA --model RUN       # DATA: what the reference was trained on

Each row is one method, or a composition, and one seed: top-1 off the shelf and after recovery (all validation images,
paired with dense), parameters and MACs of the module that runs, and its speed beside dense in the same runtime. EViT's
controls drop as many tokens at random, or the most attended ones. ToMe runs at the r whose MACs are nearest to EViT's.
int8 follows the recovery and is judged in OpenVINO, where it is timed. The trends that the papers' specifications
measured are looked for and reported as they come out.

The default recovery is short, one pass over 5,000 images with distillation from dense, so that the 18 trainings of 3
seeds, NViT's three prune loops and the validations take about 25 minutes on two cores for a ViT of 2.7 M parameters on
32x32 images (it trains some 130 images/s in bf16). Longer: --recover-images, --recover-epochs.

Rows are written as they come; the same command goes on where it was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.measure import count
from leanvit.recipe import compress, make_method, parse_with
from reference_study import (
    SMOKE_NVIT,
    Study,
    applied,
    artefact,
    dense_artefact,
    is_there,
    open_study,
    over_seeds,
    quality,
    recovered,
    size,
    speed,
)

NVIT = "nvit:macs=0.5,interval=8,max_steps=160,batch_size=64"  # 10,000 images and 20 cuts to half the MACs
RATE, BATCH = 0.7, 8
BLOCK_SETS = ((1, 3), (2, 4))  # of the training-free trends: early and late, in a network of six blocks
OPTIONS = bench.parser(
    __doc__,
    **bench.REFERENCE,
    recover_images=5000,
    recover_epochs=1,
    nvit=NVIT,
    only=bench.Option([], "rows of these names; may be repeated", metavar="NAME"),
    out=bench.RESULTS / "reference_runs.json",
)
SPEEDS = {
    "torch f32: speedup vs dense f32/mean": "PyTorch",
    "openvino f32: speedup vs dense f32/mean": "OpenVINO f32",
    "openvino int8: speedup vs dense int8/mean": "OpenVINO int8, dense too",
    "openvino int8: speedup vs dense f32/mean": "OpenVINO int8, dense f32",
}
ABOUT = bench.About(
    "Methods and compositions on a reference",
    "Each alone, and together, recovered from the same teacher on the same images: {settings[recover_images]:,} of "
    "recovery and {settings[val_images]:,} of validation, batch 8. Accuracies are means over seeds with the least and "
    "the most; speeds are means, of times as fast as the dense network in the same runtime.",
    (
        Table(
            "summary",
            ("name", "macs_ratio/mean", "off_the_shelf_top1_percent", "top1_percent", "change_points", *SPEEDS),
        ),
        Table("trends", ("claim", "figures", "holds"), "What the papers lead to expect"),
    ),
    {
        "name": Column("methods"),
        "top1_percent": Column("recovered", "%", ".2f"),
        **{key: Column(heading, "× dense", ".2f") for key, heading in SPEEDS.items()},
        "figures": Column("means", form=".2f"),
    },
)


@dataclass(frozen=True)
class Plan:
    """One kind of row: methods before the recovery, and whether int8 follows it."""

    name: str
    methods: tuple[Any, ...]
    int8: Any = None


def plans(study: Study, nvit: str) -> list[Plan]:
    """Every kind of row that this leanvit carries the methods of."""
    evit, int8 = make_method("evit", {"keep_rate": RATE}), make_method("int8", {})
    tome = make_method("tome", {"r": nearest_r(study.dense, evit)})
    controls = [make_method("evit", {"keep_rate": RATE, "select": how}) for how in ("random", "lowest")]
    found = [
        Plan("evit", (evit,)),
        Plan("evit, random tokens", (controls[0],)),
        Plan("evit, lowest attention", (controls[1],)),
        Plan("tome", (tome,)),
        Plan("int8", (), int8),
        Plan("evit + int8", (evit,), int8),
        Plan("tome + int8", (tome,), int8),
    ]
    if is_there("nvit"):
        pruned = parse_with(nvit)
        found += [
            Plan("nvit", (pruned,)),
            Plan("nvit + evit", (pruned, evit)),
            Plan("nvit + int8", (pruned,), int8),
            Plan("nvit + evit + int8", (pruned, evit), int8),
        ]
    return found


def nearest_r(dense: OpenModel, evit: Any) -> int:
    """The r of ToMe whose MACs come nearest to EViT's."""
    input_size = dense.input_size()
    wanted = count(compress(dense, [evit]), input_size).macs
    patches = dense.patch_tokens()[0]
    candidates = range(1, max(2, patches // len(dense.blocks)))
    macs = {r: count(compress(dense, [make_method("tome", {"r": r})]), input_size).macs for r in candidates}
    return min(macs, key=lambda r: abs(macs[r] - wanted))


class Trainings:
    """Models of one seed, each made once: rows share prunings and recoveries."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.seed = study, seed
        self._shelf: dict[tuple[Any, ...], tuple[OpenModel, int]] = {(): (study.dense, 0)}
        self._recovered: dict[tuple[Any, ...], tuple[OpenModel, int]] = {(): (study.dense, 0)}

    def off_the_shelf(self, methods: tuple[Any, ...]) -> tuple[OpenModel, int]:
        """Before recovery, and the images that the methods themselves trained on."""
        if methods not in self._shelf:
            before, images = self.off_the_shelf(methods[:-1])
            model, more = applied(self.study, before, [methods[-1]], self.seed)
            self._shelf[methods] = model, images + more
        return self._shelf[methods]

    def after_recovery(self, methods: tuple[Any, ...]) -> tuple[OpenModel, int]:
        """After it, and all images trained on."""
        if methods not in self._recovered:
            lean, images = self.off_the_shelf(methods)
            model, more = recovered(self.study, lean, self.seed, methods)
            self._recovered[methods] = model, images + more
        return self._recovered[methods]


def measured(study: Study, plan: Plan, trainings: Trainings) -> dict[str, Any]:
    """One row."""
    start, seed = time.perf_counter(), trainings.seed
    off_the_shelf, _ = trainings.off_the_shelf(plan.methods)
    lean, images = trainings.after_recovery(plan.methods)
    row = {"method": plan.name, "seed": seed, "part": "recovered", "trained_images": images, **size(study, lean)}
    row["patch_tokens"] = lean.patch_tokens()
    slug = plan.name.replace(", ", "-").replace(" ", "")
    if plan.int8 is None:
        row |= quality(study, off_the_shelf, "off_the_shelf_") | quality(study, lean)
        row["speed"] = {
            "torch f32": speed(study, {"lean": lean, "dense f32": study.dense}, BATCH),
            "openvino f32": speed(
                study, {"lean": artefact(study, lean, slug, BATCH), "dense f32": dense_artefact(study, BATCH)}, BATCH
            ),
        }
    else:
        rounded = artefact(study, applied(study, lean, [plan.int8], seed)[0], slug, BATCH)
        rough = artefact(study, applied(study, off_the_shelf, [plan.int8], seed)[0], f"{slug}-rough", BATCH)
        row |= quality(study, rough, "off_the_shelf_") | quality(study, rounded)
        beside = {"dense int8": dense_artefact(study, BATCH, plan.int8), "dense f32": dense_artefact(study, BATCH)}
        row["speed"] = {"openvino int8": speed(study, {"lean": rounded, **beside}, BATCH)}
    made = zip(plan.methods, lean.history.plans[-len(plan.methods) :], strict=True)
    row["achieved"] = [m.achieved(lean, dict(p.structure)) for m, p in made]
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


# --- trends of the specifications -----------------------------------------------------------------------------------


def training_free(study: Study, depth: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Keys of EViT's rows without any training: which tokens go, where, how many."""
    if depth <= max(max(blocks) for blocks in BLOCK_SETS):
        return
    for blocks in BLOCK_SETS:
        for rate in (0.7, 0.5):
            for select, fuse in (("attention", True), ("attention", False), ("random", False), ("lowest", False)):
                for seed in range(seeds if select == "random" else 1):
                    yield {"blocks": list(blocks), "keep_rate": rate, "select": select, "fuse": fuse, "seed": seed}


def training_free_row(study: Study, key: dict[str, Any]) -> dict[str, Any]:
    model, _ = applied(study, study.dense, [make_method("evit", key)], seed=key["seed"])
    return {"method": "evit", "part": "training free", **key, **quality(study, model)}


def trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the specifications measured, looked for here: claim, figures (mean top-1 in percent), whether it holds."""
    return [*_training_free_trends(rows), *_recovered_trends(rows)]


def _training_free_trends(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    free = [r for r in rows if r["part"] == "training free"]
    mean = {(tuple(r["blocks"]), r["keep_rate"], r["select"], r["fuse"]): _mean(rows, **_key_of(r)) for r in free}
    for rate in sorted({r["keep_rate"] for r in free}, reverse=True):
        early, late = (mean[blocks, rate, "attention", True] for blocks in BLOCK_SETS)
        others = {how: mean[BLOCK_SETS[1], rate, how, False] for how in ("lowest", "random", "attention")}
        at = f"evit, rate {rate}, no training"
        yield _trend(f"{at}: later blocks help", late > early, late=late, early=early)
        yield _trend(f"{at}, late: top above lowest", late > others["lowest"], top=late, lowest=others["lowest"])
        yield _trend(f"{at}, late: top above random", late > others["random"], top=late, random=others["random"])
        dropped = others["attention"]
        yield _trend(f"{at}, late: fuse and drop within 1 point", abs(late - dropped) <= 1, fuse=late, drop=dropped)


def _recovered_trends(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    own = [r for r in rows if r["part"] == "recovered"]
    top1 = {name: _mean(own, method=name) for name in dict.fromkeys(r["method"] for r in own)}
    for other in ("evit, random tokens", "evit, lowest attention", "tome"):
        if "evit" in top1 and other in top1:
            holds = top1["evit"] > top1[other]
            yield _trend(f"after recovery: evit above {other}", holds, evit=top1["evit"], other=top1[other])
    for name in top1:
        change = over_seeds([r for r in own if r["method"] == name], "change_points")
        yield _trend(f"after recovery: {name} within 1 point of dense", change["mean"] >= -1, **change)
    for row in own:
        if row["method"] == "nvit":
            times = {runtime: found["speedup_vs"]["dense f32"][0] for runtime, found in row["speed"].items()}
            yield _trend(f"nvit, seed {row['seed']}: measured faster than dense", min(times.values()) > 1, **times)


def _key_of(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("blocks", "keep_rate", "select", "fuse", "part")}


def _mean(rows: list[dict[str, Any]], **key: Any) -> float | None:
    found = over_seeds([r for r in rows if all(r.get(k) == v for k, v in key.items())], "top1_percent")
    return found["mean"] if found else None


def _trend(claim: str, holds: bool, **figures: Any) -> dict[str, Any]:
    return {"claim": claim, "holds": bool(holds), "figures": figures}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each method over its seeds."""
    columns = ("off_the_shelf_top1_percent", "top1_percent", "change_points", "macs_ratio", "params")
    found = {}
    for name in dict.fromkeys(r["method"] for r in rows if r["part"] == "recovered"):
        own = [r for r in rows if r["method"] == name and r["part"] == "recovered"]
        found[name] = {c: over_seeds(own, c) for c in columns}
        for runtime in own[0]["speed"]:
            for other in own[0]["speed"][runtime]["speedup_vs"]:
                values = [{"v": r["speed"][runtime]["speedup_vs"][other][0]} for r in own]
                found[name][f"{runtime}: speedup vs {other}"] = over_seeds(values, "v")
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    if given.smoke:
        given.nvit = SMOKE_NVIT
    study = open_study(given, nvit=given.nvit)
    kept = bench.KeptRows(given.out, ABOUT, study.settings, fresh=given.fresh)
    try:
        chosen = plans(study, given.nvit)
        unknown = set(given.only) - {p.name for p in chosen}
        if unknown:
            raise SystemExit(f"--only {', '.join(unknown)}: there is {', '.join(p.name for p in chosen)}")
        run(study, kept, [p for p in chosen if not given.only or p.name in given.only], given.seeds)
    finally:
        study.close()
    print(given.out)


def run(study: Study, kept: bench.KeptRows, chosen: list[Plan], seeds: int) -> None:
    if kept.get(part="dense") is None:
        torch_speed = speed(study, {"dense f32": study.dense}, BATCH)
        dense = {"method": "dense", "part": "dense", **size(study, study.dense), "speed": {"torch f32": torch_speed}}
        kept.add({**dense, **quality(study, study.dense)})
    for key in training_free(study, len(study.dense.blocks), seeds):
        if kept.get(part="training free", **key) is None:
            kept.add(training_free_row(study, key))
    for seed in range(seeds):
        trainings = Trainings(study, seed)
        for plan in chosen:
            if kept.get(part="recovered", method=plan.name, seed=seed) is None:
                kept.add(measured(study, plan, trainings))
    kept.write(summary=summary(kept.rows), trends=trends(kept.rows))


if __name__ == "__main__":
    main()
