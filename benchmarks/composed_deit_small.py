"""NViT, EViT and int8 composed on DeiT-S/224 shapes in OpenVINO, against dense int8; accuracy on a trained reference.

    python benchmarks/composed_deit_small.py                                  # speed alone
    python benchmarks/composed_deit_small.py DATA --model RUN                 # and the accuracy of the same preset

The preset is one recipe file (examples/composed.toml) for both parts. All networks of a part are timed interleaved on
one input, batch 8, on one thread:

    dense int8    the whole network, quantized by the same method
    sketch int8   the control: uniform narrower widths that nobody searched for (4 heads of 48, MLPs of 640), EViT
    ours          the recipe
    eager fp32    dense in PyTorch: a change of runtime, so a row of its own

Weights of DeiT-S are random (speed does not depend on them, the widths that NViT leaves do a little): there NViT
trains for a few steps on random pictures, only to decide. Nothing is said about the accuracy of DeiT-S. The second part
prunes, recovers and quantizes the reference by the same recipe, and judges what OpenVINO answers on all validation
images.

Rows are written as they come, latency tables too; the same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.anatomy.surgery.widths import set_attention_widths, set_mlp_width
from leanvit.data import Dataset, Preprocess, keyed
from leanvit.deploy.block_latency import measure_table
from leanvit.recipe import Root, create, load_recipe, make_method, parse_with
from leanvit.training import RECOVERY
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
    scratch_folder,
    size,
    speed,
)

RECIPE = Path(__file__).parents[1] / "examples" / "composed.toml"
BATCH = 8
PICTURES = 64  # random ones, for calibration and for NViT's few steps
BRIEFLY = {"interval": 2, "max_steps": 16, "batch_size": 8}  # NViT's steps on random pictures
OPTIONS = bench.parser(
    __doc__,
    **bench.REFERENCE,
    recover_images=25_000,
    recover_epochs=3,
    recipe=bench.Option(RECIPE, "of both parts"),
    table=bench.Option(help="latency table of DeiT-S (default: measured, kept beside --out)", kind=Path),
    reference_table=bench.Option(help="likewise, of the reference", kind=Path),
    out=bench.RESULTS / "composed_deit_small.json",
)
SPREAD = ("median", "q25", "q75")
ABOUT = bench.About(
    "Composed for speed",
    "[NViT](methods/nvit.md) to half of the latency, then [EViT](methods/evit.md) at 0.7, then int8: the recipe "
    "`examples/composed.toml`, in OpenVINO. The sketch is the control, uniform widths that nobody searched for (4 "
    "heads of 48, MLPs of 640) with the same EViT and int8. The recovery is ten passes over the training images, about "
    "half of what the reference was trained with; the dense network, its teacher, gets no more training.",
    (
        Table(
            "rows",
            (
                *("ours/macs_ratio", "sketch/macs_ratio"),
                *(f"median_ms/{name}" for name in ("ours int8", "sketch int8", "dense int8", "eager fp32")),
                *("speedup_vs/sketch int8", "speedup_vs/dense int8"),
                *("sketch_speed/speedup_vs/dense int8", "speedup_vs/eager fp32"),
            ),
            "`deit_small_patch16_224` of random weights, batch 8",
            {"part": "speed"},
        ),
        Table(
            "rows",
            (
                *("seed", "macs_ratio", "trained_images", "off_the_shelf_top1_percent"),
                *("top1_percent", "change_points", "speed/speedup_vs/dense int8"),
            ),
            "The same recipe on the reference, judged by the answers of OpenVINO int8 on "
            "{settings[accuracy][val_images]:,} images",
            {"part": "accuracy"},
        ),
    ),
    {
        "ours/macs_ratio": Column("MACs of the recipe", "of dense", ".3f"),
        "sketch/macs_ratio": Column("MACs of the sketch", "of dense", ".3f"),
        "median_ms/ours int8": Column("the recipe, int8", "ms", ".1f"),
        "median_ms/sketch int8": Column("the sketch, int8", "ms", ".1f"),
        "median_ms/dense int8": Column("dense, int8", "ms", ".1f"),
        "median_ms/eager fp32": Column("dense in PyTorch, f32", "ms", ".1f"),
        "speedup_vs/sketch int8": Column(
            "the recipe is faster than the sketch by (quartiles)", form=".2f", each=SPREAD
        ),
        "speedup_vs/dense int8": Column("the recipe is faster than dense int8 by (quartiles)", form=".2f", each=SPREAD),
        "sketch_speed/speedup_vs/dense int8": Column(
            "the sketch is faster than dense int8 by (quartiles)", form=".2f", each=SPREAD
        ),
        "speedup_vs/eager fp32": Column(
            "the recipe is faster than dense in PyTorch at f32 by (quartiles): a change of runtime and of precision",
            form=".2f",
            each=SPREAD,
        ),
        "top1_percent": Column("recovered", "%", ".2f"),
        "speed/speedup_vs/dense int8": Column("× dense int8 (quartiles)", form=".2f", each=SPREAD),
    },
)


@dataclass(frozen=True)
class Sketch:
    """The control's widths, the same in every block."""

    heads: int = 4
    head_dim: int = 48
    mlp: int = 640


def methods_of(recipe: Path, *, smoke: bool) -> tuple[Any, ...]:
    """The recipe's methods. The smoke run's NViT aims at MACs: a latency table takes minutes."""
    if not smoke:
        return load_recipe(recipe).methods
    rest = make_method("evit", {"keep_rate": 0.7}), make_method("int8", {"images": 64})
    return (parse_with(SMOKE_NVIT), *rest) if is_there("nvit") else rest


def with_table(study: Study, methods: tuple[Any, ...], path: Path) -> tuple[Any, ...]:
    """The methods, NViT's latency read from the table at `path`: measured once, so that every seed and a run that goes
    on predict alike. A table that is named in the recipe stays."""
    made = []
    for m in methods:
        if m.slug == "nvit" and m.latency is not None and m.table is None:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial.json")
                table = measure_table(
                    study.dense, runtime=m.runtime, batch=m.batch, threads=study.threads, partial=partial
                )
                table.save(path)
                partial.unlink(missing_ok=True)
            m = replace(m, table=str(path))
        made.append(m)
    return tuple(made)


# --- speed, on shapes ------------------------------------------------------------------------------------------------


def shapes_study(arguments: argparse.Namespace) -> Study:
    """DeiT-S of random weights with random pictures, as a study: there is nothing to recover or to be right about."""
    root = Root("deit_small_patch16_224", {})
    if arguments.smoke:
        small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 10}
        root = Root("vit_tiny_patch16_224", small)
    with keyed.global_rng(0, "weights"):
        dense = create(root).eval()
    pictures = random_pictures(dense)
    return Study(
        dense,
        Preprocess.of(dense),
        pictures,
        pictures,
        RECOVERY,
        0,
        arguments.threads,
        3 if arguments.smoke else arguments.rounds,
        scratch_folder(),
        {},
    )


def random_pictures(model: OpenModel) -> Dataset:
    channels, height, width = model.input_size()
    noise = keyed.numpy("pictures")
    pixels = noise.integers(0, 256, (PICTURES, height, width, channels), dtype=np.uint8)
    return Dataset(
        name="random pictures",
        spec="random pictures",
        split="train",
        classes=[str(i) for i in range(model.num_classes)],
        keys=tuple(str(i) for i in range(PICTURES)),
        targets=noise.integers(0, model.num_classes, PICTURES),
        rows=np.arange(PICTURES),
        images=[Image.fromarray(p) for p in pixels],
        channels=channels,
        image_size=(height, width),
    )


def speed_row(study: Study, methods: tuple[Any, ...], widths: Sketch) -> dict[str, Any]:
    """All four networks, timed interleaved."""
    start = time.perf_counter()
    briefly = tuple(replace(m, **BRIEFLY) if m.slug == "nvit" else m for m in methods)
    int8 = next(m for m in methods if m.slug == "int8")
    lean, _ = applied(study, study.dense, briefly, seed=0)
    control = sketch(study, widths, [m for m in methods if m.slug != "nvit"])
    timed = {
        "ours int8": artefact(study, lean, "ours", BATCH),
        "dense int8": dense_artefact(study, BATCH, int8),
        "sketch int8": artefact(study, control, "sketch", BATCH),
        "eager fp32": study.dense,
    }
    found = speed(study, timed, BATCH)
    swapped = {"sketch int8": timed["sketch int8"], "dense int8": timed["dense int8"]}
    return {
        "part": "speed",
        "model": study.dense.history.root.name if study.dense.history else "",
        "runtime": "OpenVINO, f32 hint, int8 products; eager fp32: PyTorch",
        **found,
        "sketch_speed": speed(study, swapped, BATCH),
        "ours": size(study, lean) | {"patch_tokens": lean.patch_tokens(), "achieved": achieved(methods, lean)},
        "sketch": size(study, control) | {"widths": vars(widths)},
        "dense": size(study, study.dense),
        "seconds": round(time.perf_counter() - start, 1),
    }


@torch.no_grad()
def sketch(study: Study, widths: Sketch, methods: list[Any]) -> OpenModel:
    """Dense cut to uniform widths (weights random again), then the other methods of the recipe."""
    assert study.dense.history is not None
    model = create(study.dense.history.root).eval()
    for block in model.blocks:
        set_attention_widths(block.attn, heads=widths.heads, qk_dim=widths.head_dim, v_dim=widths.head_dim)
        set_mlp_width(block.mlp, widths.mlp)
    with keyed.global_rng(0, "sketch"):
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
    return applied(study, model, methods, seed=0)[0]


def achieved(methods: tuple[Any, ...], model: OpenModel) -> list[dict[str, Any]]:
    plans = model.history.plans[-len(methods) :]
    return [{"method": m.slug, **m.achieved(model, dict(p.structure))} for m, p in zip(methods, plans, strict=True)]


# --- accuracy, on a trained reference --------------------------------------------------------------------------------


def accuracy_row(study: Study, methods: tuple[Any, ...], seed: int) -> dict[str, Any]:
    """The recipe on the reference, recovered before int8, as OpenVINO runs it."""
    start = time.perf_counter()
    int8 = next(m for m in methods if m.slug == "int8")
    before = [m for m in methods if m.slug != "int8"]
    off_the_shelf, pruning_images = applied(study, study.dense, before, seed)
    lean, images = recovered(study, off_the_shelf, seed, before)
    rounded = applied(study, lean, [int8], seed)[0]
    ours, dense_int8 = artefact(study, rounded, "reference", BATCH), dense_artefact(study, BATCH, int8)
    timed = {"ours int8": ours, "dense int8": dense_int8, "eager fp32": study.dense}
    return {
        "part": "accuracy",
        "seed": seed,
        "trained_images": pruning_images + images,
        **size(study, lean),
        **quality(study, off_the_shelf, "off_the_shelf_"),
        **quality(study, lean, "f32_"),
        **quality(study, dense_int8, "dense_int8_"),
        **quality(study, ours),
        "speed": speed(study, timed, BATCH),
        "achieved": achieved(methods, rounded),
        "seconds": round(time.perf_counter() - start, 1),
    }


# --- the run ---------------------------------------------------------------------------------------------------------


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the claim; accuracy and its own speed are means over seeds."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["part"] == "speed":
            found["ratio_vs_dense_int8"] = row["speedup_vs"]["dense int8"][0]
            found["sketch_ratio_vs_dense_int8"] = row["sketch_speed"]["speedup_vs"]["dense int8"][0]
            found["ratio_vs_eager_fp32"] = row["speedup_vs"]["eager fp32"][0]
    own = [row for row in rows if row["part"] == "accuracy"]
    if own:
        found["accuracy_drop_points"] = round(-over_seeds(own, "change_points")["mean"], 3)
        found["accuracy_change_points_over_seeds"] = over_seeds(own, "change_points")
        ratios = [{"v": row["speed"]["speedup_vs"]["dense int8"][0]} for row in own]
        found["reference_ratio_vs_dense_int8"] = over_seeds(ratios, "v")
    return found


def main() -> None:
    given = OPTIONS.parse_args()
    methods = methods_of(given.recipe, smoke=given.smoke)
    settings = {"methods": [repr(m) for m in methods], "briefly": BRIEFLY}
    with_reference = given.smoke or bool(given.data and given.model)
    study = open_study(given, **settings) if with_reference else None
    payload = {"accuracy": study.settings if study else None, "threads": given.threads, **settings}
    kept = bench.KeptRows(given.out, ABOUT, payload, fresh=given.fresh)
    if kept.get(part="speed") is None:
        shapes = shapes_study(given)
        widths = Sketch(heads=2, head_dim=4, mlp=40) if given.smoke else Sketch()
        try:
            table = given.table or given.out.with_name(f"{given.out.stem}_table_shapes.json")
            kept.add(speed_row(shapes, with_table(shapes, methods, table), widths))
        finally:
            shapes.close()
    print(headline(kept.rows), flush=True)
    if study:
        try:
            table = given.reference_table or given.out.with_name(f"{given.out.stem}_table_reference.json")
            methods = with_table(study, methods, table)
            for seed in range(given.seeds):
                if kept.get(part="accuracy", seed=seed) is None:
                    kept.add(accuracy_row(study, methods, seed))
        finally:
            study.close()
    kept.write(**headline(kept.rows))
    print(given.out)


if __name__ == "__main__":
    main()
