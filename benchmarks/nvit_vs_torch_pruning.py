"""NViT against torch-pruning's group Taylor on a trained reference ViT, at equal MACs and at equal measured latency.

    pip install leanvit[bench]
    python benchmarks/nvit_vs_torch_pruning.py DATA --model RUN        # DATA: what the reference was trained on

Everyone starts from the same dense network, and sees as many training images in all: NViT trains while it prunes, so
torch-pruning, which cuts at once, recovers longer by those images. Same recipe, same teacher (dense), same validation
images. torch-pruning runs in four ways (uniform and bottleneck as in its ViT results, isomorphic and global ranking),
each at the MACs of NViT's network, counted on both real modules, and each at its measured latency (batch 64, torch
f32). Its ratio is searched by bisection; its best row is the one to beat.

A dense smaller ViT of the same MACs, trained from scratch, stands beside: pruning must be worth more than that. It sees
`--scratch-images` images (and the dense network as its teacher); how much of the reference's own training that is, is
in the row where `--reference-images` tells what the reference saw.

Rows are written as they come; the same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.errors import LeanvitError
from leanvit.measure import count
from leanvit.recipe import Root, create, load, parse_with, save
from leanvit.tasks.objectives import SoftDistillation
from leanvit.training import fit
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
from torch_pruning_vit import VARIANTS, Variant, prune, task_gradients, widths

NVIT = "nvit:macs=0.5,interval=8,max_steps=160,batch_size=64"
BATCHES = (1, 64)
CLOSE = 0.02  # relative: how near MACs and latency are brought to NViT's
STEPS = 9  # of the bisection; head widths and round numbers make the cost a staircase
Goal = Callable[[nn.Module], float]  # the cost of a model over the cost wanted
OPTIONS = bench.parser(
    __doc__,
    **bench.REFERENCE,
    recover_images=10000,
    recover_epochs=1,
    nvit=NVIT,
    variant=bench.Option([v.name for v in VARIANTS], "of torch-pruning", choices=[v.name for v in VARIANTS]),
    at=bench.Option(["macs", "latency"], "equal what (default: both)", choices=("macs", "latency")),
    macs=bench.Option(0.5, "share of dense, where there is no NViT to follow"),
    scratch_images=bench.Option(100_000, "of the smaller network"),
    reference_images=bench.Option(help="how many the reference was trained on, to tell the share", kind=int),
    out=bench.RESULTS / "nvit_vs_torch_pruning.json",
)
SPEEDS = {f"{way}: speedup": way for way in ("torch f32, batch 64", "openvino f32, batch 1")}
ABOUT = bench.About(
    "Pruning against torch-pruning",
    "[NViT](methods/nvit.md) and the group Taylor criterion of torch-pruning, from the same network, with as many "
    "training images each; and a narrower network trained from nothing on more images, a twentieth of what the "
    "reference saw. Latency is that of PyTorch at batch 64; these rows were made two at a time on one machine.",
    (
        Table(
            "summary",
            (
                *("name", "top1_percent/seeds", "macs_ratio/mean", "trained_images/mean"),
                *("one_shot_top1_percent", "top1_percent", "change_points", *SPEEDS),
            ),
        ),
        Table("summary", ("name", "points", "best")),
        Table("rows", ("method", "export_ok", "reload_ok"), where={"seed": 0, "at": "macs"}),
    ),
    {
        "name": Column("network"),
        "top1_percent/seeds": Column("seeds"),
        "trained_images/mean": Column("training images", form=",.0f"),
        "top1_percent": Column("at the end", "%", ".2f"),
        **{key: Column(heading, "× dense", ".2f") for key, heading in SPEEDS.items()},
        "points": Column("lead of the means over seeds", "points", "+.2f"),
        "best": Column("best of torch-pruning"),
        "method": Column("network"),
        "export_ok": Column("exports"),
        "reload_ok": Column("loads again without a pickled module"),
    },
)


def nvit_row(study: Study, nvit: str, seed: int) -> dict[str, Any]:
    """NViT pruned and recovered."""
    start = time.perf_counter()
    method = parse_with(nvit)
    off_the_shelf, pruning_images = applied(study, study.dense, [method], seed)
    lean, images = recovered(study, off_the_shelf, seed, [method])
    row = columns(study, "nvit", seed, off_the_shelf, lean, pruning_images + images)
    row |= {"pruning_images": pruning_images, "achieved": method.achieved(lean, dict(lean.history.plans[-1].structure))}
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def rival_row(
    study: Study, variant: Variant, seed: int, at: str, goal: Callable[[nn.Module], float], images: int
) -> Any:
    """torch-pruning where `goal` (cost over the wanted cost) is 1, recovered on `images` images."""
    start = time.perf_counter()
    gradients = task_gradients(study.dense, study.train, study.preprocess, seed=seed)
    off_the_shelf, ratio, reached = bisect(lambda share: prune(study.dense, gradients, variant, share), goal)
    lean, seen = recovered(study, off_the_shelf, seed, images=images)
    row = columns(study, f"torch-pruning, {variant.name}", seed, off_the_shelf, lean, seen)
    row |= {"at": at, "pruning_ratio": round(ratio, 5), "cost_over_wanted": round(reached, 4), "widths": widths(lean)}
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def bisect(make: Callable[[float], nn.Module], goal: Goal) -> tuple[nn.Module, float, float]:
    """The model whose `goal` comes nearest to 1, its ratio and its goal. More pruned is less of `goal`."""
    low, high, found = 0.0, 0.97, []
    for _ in range(STEPS):
        ratio = (low + high) / 2
        model = make(ratio)
        reached = goal(model)
        found.append((abs(reached - 1), ratio, reached, model))
        if found[-1][0] < CLOSE / 4:
            break
        low, high = (ratio, high) if reached > 1 else (low, ratio)
    _, ratio, reached, model = min(found, key=lambda f: f[0])
    return model, ratio, reached


def columns(
    study: Study, name: str, seed: int, off_the_shelf: nn.Module, lean: nn.Module, images: int
) -> dict[str, Any]:
    """What every row has."""
    slug = name.replace(", ", "-").replace(" ", "")
    row = {"method": name, "seed": seed, "at": "macs", "trained_images": images, **size(study, lean)}
    row |= quality(study, off_the_shelf, "one_shot_") | quality(study, lean)
    row["speed"] = {
        f"torch f32, batch {batch}": speed(study, {"lean": lean, "dense": study.dense}, batch) for batch in BATCHES
    }
    row["export_ok"], row["export_error"], runner = exported(study, lean, slug)
    if runner is not None:
        row["speed"]["openvino f32, batch 1"] = speed(study, {"lean": runner, "dense": dense_artefact(study, 1)}, 1)
    row["reload_ok"], row["reload"] = reloads(study, lean)
    return row


def exported(study: Study, model: nn.Module, slug: str) -> tuple[bool, str, Any]:
    """Whether the model exports whole (equality with PyTorch is part of it), why not, and its runner."""
    try:
        return True, "", artefact(study, model, slug, 1)
    except LeanvitError as error:
        return False, str(error), None


@torch.no_grad()
def reloads(study: Study, model: nn.Module) -> tuple[bool, str]:
    """Whether the model comes back from disk without pickled code, with the same answers; and how it was tried."""
    x = torch.randn(2, *study.preprocess.input_size, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        if isinstance(model, OpenModel):
            save(model, Path(folder) / "run")
            return torch.equal(load(Path(folder) / "run").eval()(x), model(x)), "run folder: safetensors and plan"
        weights = Path(folder) / "weights.pt"
        torch.save(model.state_dict(), weights)
        try:
            assert study.dense.history is not None
            fresh = create(study.dense.history.root)
            fresh.load_state_dict(torch.load(weights, weights_only=True), strict=True)
        except RuntimeError:
            return False, "state dict: sizes no longer fit the architecture; only the pickled module comes back"
    return True, "state dict"


# --- a dense smaller network -----------------------------------------------------------------------------------------


def smaller(study: Study, macs: int) -> OpenModel:
    """A ViT of the reference's make whose embedding is as narrow as the MACs ask (heads as many, so narrower too)."""
    assert study.dense.history is not None
    root = study.dense.history.root
    heads = study.dense.blocks[0].attn.heads
    kwargs = {k: v for k, v in root.kwargs.items() if k != "patch_drop_rate"}  # each image counts whole
    roots = [Root(root.name, {**kwargs, "embed_dim": heads * w}) for w in range(2, study.dense.embed_dim // heads, 2)]
    costs = [count(create(r, device="meta"), study.preprocess.input_size).macs for r in roots]
    nearest = min(range(len(roots)), key=lambda i: abs(costs[i] - macs))
    return create(roots[nearest])


def scratch_row(study: Study, macs: int, seed: int, images: int, reference_images: int | None) -> dict[str, Any]:
    """The smaller dense network, trained from random weights on `images` images."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = smaller(study, macs)
    epochs = max(1, round(images / len(study.train)))
    taken = study.train.limited(max(study.recovery.batch_size, round(images / epochs)), seed=seed)
    config = replace(
        study.recovery,
        epochs=epochs,
        lr=1e-3,
        min_lr=1e-5,
        warmup_epochs=epochs / 10,
        weight_decay=0.05,
        train_mode="train",
        seed=seed,
    )
    objective = SoftDistillation(study.dense, teacher_preprocess=study.preprocess, alpha=0.5, temperature=2.0)
    fit(model, taken, preprocess=study.preprocess, config=config, objective=objective, convert=True)
    seen = epochs * (len(taken) // config.batch_size) * config.batch_size
    row = columns(study, "dense smaller, from scratch", seed, model.eval(), model, seen)
    row["share_of_reference_training"] = round(seen / reference_images, 4) if reference_images else None
    row["embed"] = model.embed_dim
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


# --- the run ---------------------------------------------------------------------------------------------------------


def run(study: Study, kept: bench.KeptRows, given: argparse.Namespace) -> None:
    for seed in range(given.seeds):
        ours = kept.get(method="nvit", seed=seed)
        if ours is None and is_there("nvit"):
            ours = kept.add(nvit_row(study, given.nvit, seed))
        wanted = ours["macs"] if ours else round(given.macs * macs_of(study, study.dense))
        goals = {"macs": macs_goal(study, wanted)} | ({"latency": latency_goal(study, ours)} if ours else {})
        for at, goal in ((k, v) for k, v in goals.items() if k in given.at):
            for variant in (v for v in VARIANTS if v.name in given.variant):
                if kept.get(method=f"torch-pruning, {variant.name}", seed=seed, at=at) is None:
                    images = ours["trained_images"] if ours else None
                    kept.add(rival_row(study, variant, seed, at, goal, images))
        if kept.get(method="dense smaller, from scratch", seed=seed) is None:
            kept.add(scratch_row(study, wanted, seed, given.scratch_images, given.reference_images))
    kept.write(summary=summary(kept.rows))


def macs_of(study: Study, model: nn.Module) -> int:
    return count(model, study.preprocess.input_size).macs


def macs_goal(study: Study, wanted: int) -> Goal:
    return lambda model: macs_of(study, model) / wanted


def latency_goal(study: Study, ours: dict[str, Any]) -> Goal:
    """Latency over NViT's, both as a share of dense measured in the same run (torch f32, the largest batch)."""
    share = 1 / ours["speed"][f"torch f32, batch {BATCHES[-1]}"]["speedup_vs"]["dense"][0]

    def over(model: nn.Module) -> float:
        taken = speed(study, {"lean": model, "dense": study.dense}, BATCHES[-1])
        return 1 / taken["speedup_vs"]["dense"][0] / share

    return over


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each way over its seeds, and NViT's lead over the best of torch-pruning at each kind of equality."""
    found: dict[str, Any] = {}
    for name, at in dict.fromkeys((r["method"], r["at"]) for r in rows):
        own = [r for r in rows if (r["method"], r["at"]) == (name, at)]
        columns = ("one_shot_top1_percent", "top1_percent", "change_points", "params", "macs_ratio", "trained_images")
        found[f"{name} (equal {at})"] = {c: over_seeds(own, c) for c in columns} | {
            f"{runtime}: speedup": over_seeds([{"v": r["speed"][runtime]["speedup_vs"]["dense"][0]} for r in own], "v")
            for runtime in own[0]["speed"]
        }
    ours = found.get("nvit (equal macs)")
    for at in ("macs", "latency"):
        theirs = {
            n: v["top1_percent"]["mean"] for n, v in found.items() if n.startswith("torch") and f"equal {at}" in n
        }
        if ours and theirs:
            best = max(theirs, key=theirs.__getitem__)
            lead = round(ours["top1_percent"]["mean"] - theirs[best], 3)
            found[f"nvit minus best torch-pruning, equal {at}"] = {"points": lead, "best": best}
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    if given.smoke:
        given.nvit, given.scratch_images = SMOKE_NVIT, 256
    payload = {k: getattr(given, k) for k in ("nvit", "macs", "scratch_images", "reference_images")}
    study = open_study(given, **payload, rival="torch-pruning")
    try:
        run(study, bench.KeptRows(given.out, ABOUT, study.settings, fresh=given.fresh), given)
    finally:
        study.close()
    print(given.out)


if __name__ == "__main__":
    main()
