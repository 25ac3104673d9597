"""What the benchmarks of a trained reference share: the model with its data, recovery, and the columns of their rows.

A study has one dense model. Methods are applied to copies of it, trained on the same images from the same teacher (the
dense model) by the same recipe, and judged on the same validation images; dense runs beside every timed model.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanvit.anatomy import OpenModel
from leanvit.data import Dataset, Preprocess, loader
from leanvit.deploy import Options, export, load_artefact
from leanvit.measure import Predictions, accuracy, accuracy_change, count, paired_latency, predict, ratio
from leanvit.recipe import Data, compress, known_papers
from leanvit.recipe.protocol import Schedules
from leanvit.training import RECOVERY, FitConfig, fit, recover
from leanvit.verbs.models import load_model, open_split

SMOKE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 24, "depth": 1, "num_heads": 3}
SMOKE_NVIT = "nvit:macs=0.6,interval=2,max_steps=8,batch_size=16"


@dataclass(frozen=True)
class Study:
    """One dense model with what all of its rows share."""

    dense: OpenModel
    preprocess: Preprocess
    train: Dataset
    val: Dataset
    recovery: FitConfig  # of every method; the seed is the row's
    recover_images: int
    threads: int
    rounds: int
    folder: Path  # scratch: artefacts
    settings: dict[str, Any]  # what rows depend on
    kept: dict[Any, Any] = field(default_factory=dict)  # dense artefacts and answers, made once

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def open_study(arguments: argparse.Namespace, **settings: Any) -> Study:
    """The study that the options describe; `settings` are those of one benchmark."""
    if arguments.smoke:
        return _smoke_study(arguments, settings)
    return _study(arguments, *open_reference(arguments), settings)


def open_reference(arguments: argparse.Namespace) -> tuple[OpenModel, Preprocess, Dataset, Dataset]:
    """(dense model, its preprocessing, all training images, validation images) that the options name."""
    if not arguments.data or not arguments.model:
        raise SystemExit("give DATA and --model RUN, or --smoke")
    loaded = load_model(arguments.model)
    val = open_split(arguments.data, "val", limit=arguments.val_images).cached()
    return loaded.model.eval(), loaded.preprocess, open_split(arguments.data, "train").cached(), val


def smoke_reference(*, depth: int, epochs: int) -> tuple[OpenModel, Preprocess, Dataset, Dataset]:
    """A tiny ViT, trained on digits for seconds, so that accuracies are not noise; with its training and validation."""
    train, val = (open_split("digits", split).cached() for split in ("train", "val"))
    built = load_model("vit_tiny_patch16_224", model_args={**SMOKE, "depth": depth})
    config = FitConfig(epochs=epochs, batch_size=64, lr=4e-3)
    fit(built.model, train, preprocess=built.preprocess, config=config)
    return built.model.eval(), built.preprocess, train, val


def _smoke_study(arguments: argparse.Namespace, settings: dict[str, Any]) -> Study:
    dense, preprocess, train, val = smoke_reference(depth=1, epochs=12)
    arguments.recover_images, arguments.amp = min(arguments.recover_images, 128), "fp32"
    arguments.rounds = 3
    return _study(arguments, dense, preprocess, train, val, settings)


def _study(
    arguments: argparse.Namespace,
    dense: OpenModel,
    preprocess: Preprocess,
    train: Dataset,
    val: Dataset,
    settings: dict[str, Any],
) -> Study:
    config = replace(
        RECOVERY,
        epochs=arguments.recover_epochs,
        lr=arguments.lr,
        min_lr=min(RECOVERY.min_lr, arguments.lr),
        warmup_epochs=min(RECOVERY.warmup_epochs, arguments.recover_epochs / 4),
        amp=arguments.amp,
        augment="light",
    )
    images = min(arguments.recover_images, len(train))
    weights = sum(float(p.detach().double().abs().sum()) for p in dense.parameters())
    payload = {
        "reference": {"root": vars(dense.history.root), "sum_of_absolute_weights": weights} if dense.history else {},
        "train": train.spec,
        "val": val.spec,
        "val_images": len(val),
        "recover_images": images,
        "recovery": config.to_json(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        **settings,
    }
    return Study(
        dense.eval(),
        preprocess,
        train,
        val,
        config,
        images,
        arguments.threads,
        arguments.rounds,
        scratch_folder(),
        payload,
    )


def scratch_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="leanvit-bench-"))


def is_there(slug: str) -> bool:
    """Whether this leanvit carries a method."""
    return slug in known_papers()


# --- making models ---------------------------------------------------------------------------------------------------


class ImagesSeen:
    """Training callback: how many images the optimiser steps of a run have seen."""

    def __init__(self) -> None:
        self.images = 0

    def after_step(self, run: Any) -> None:
        self.images += run.config.batch_size * run.config.accumulate


def applied(study: Study, model: OpenModel, methods: Sequence[Any], seed: int) -> tuple[OpenModel, int]:
    """A copy of `model` with methods applied, and the images that they trained on (calibration is not training)."""
    seen = ImagesSeen()
    data = Data(study.train, study.preprocess, seed=seed, callbacks=(seen,))
    return compress(model, methods, data), seen.images


def recovered(
    study: Study, lean: nn.Module, seed: int, methods: Sequence[Any] = (), images: int | None = None
) -> tuple[Any, int]:
    """A copy of `lean`, trained by the study's recipe with the dense model as teacher, and the images it saw.

    images: of the training; by default those of the study's recipe (more are more epochs' worth of steps).
    """
    seen, model = ImagesSeen(), copy.deepcopy(lean)
    epochs, taken = study.recovery.epochs, study.train.limited(study.recover_images, seed=seed)
    if images is not None:  # the same schedule over more images: as many epochs, of a larger share of the data
        epochs = max(epochs, -(-images // len(study.train)))
        taken = study.train.limited(max(study.recovery.batch_size, round(images / epochs)), seed=seed)
    result = recover(
        model,
        study.dense,
        taken,
        preprocess=study.preprocess,
        config=replace(study.recovery, seed=seed, epochs=epochs),
        callbacks=[seen, *(c for m in methods if isinstance(m, Schedules) for c in m.callbacks(model))],
        convert=True,
    )
    return result.model.eval(), seen.images


# --- columns of a row ------------------------------------------------------------------------------------------------


def answers(study: Study, runner: Any) -> Predictions:
    return predict(runner, loader(study.val, study.preprocess, batch_size=256))


def dense_answers(study: Study) -> Predictions:
    if "answers" not in study.kept:
        study.kept["answers"] = answers(study, study.dense)
    return study.kept["answers"]


def quality(study: Study, runner: Any, prefix: str = "") -> dict[str, Any]:
    """`top1_percent` and `change_points` against dense on the same images, each with its 95 % interval."""
    given = answers(study, runner)
    top1, change = accuracy(given).percent(), accuracy_change(dense_answers(study), given)
    return {
        f"{prefix}top1_percent": round(top1.value, 3),
        f"{prefix}top1_interval": [round(top1.low, 3), round(top1.high, 3)],
        f"{prefix}change_points": round(change.value, 3),
        f"{prefix}change_interval": [round(change.low, 3), round(change.high, 3)],
    }


def size(study: Study, model: nn.Module) -> dict[str, Any]:
    """`params`, `macs` of the module that runs, and its share of the dense one's MACs."""
    cost, dense = count(model, study.preprocess.input_size), count(study.dense, study.preprocess.input_size)
    return {"params": cost.params, "macs": cost.macs, "macs_ratio": round(cost.macs / dense.macs, 4)}


def artefact(study: Study, model: nn.Module, name: str, batch: int) -> Any:
    """The model exported to OpenVINO at a fixed batch, as a runner at f32 (int8 products where it is quantized)."""
    made = export(
        model, study.folder / f"{name}-{batch}", to="openvino", preprocess=study.preprocess, batch=batch, overwrite=True
    )
    return load_artefact(made, options=Options(precision="f32", threads=study.threads))


def dense_artefact(study: Study, batch: int, int8: Any = None) -> Any:
    """Dense in OpenVINO, quantized by the method `int8` where one is given; made once."""
    key = ("int8" if int8 is not None else "f32", batch)
    if key not in study.kept:
        model = study.dense if int8 is None else applied(study, study.dense, [int8], seed=0)[0]
        study.kept[key] = artefact(study, model, f"dense-{key[0]}", batch)
    return study.kept[key]


def speed(study: Study, candidates: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """The first candidate against the others, all timed interleaved on one input.

    {"batch", "median_ms": {name: ...}, "speedup_vs": {other: [median, q25, q75]}}
    """
    kept = torch.get_num_threads()
    torch.set_num_threads(study.threads)
    try:
        x = torch.randn(batch, *study.preprocess.input_size, generator=torch.Generator().manual_seed(0))
        taken = paired_latency(dict(candidates), lambda _: x, batch=batch, rounds=study.rounds)
    finally:
        torch.set_num_threads(kept)
    first, *others = candidates
    ratios = {other: ratio(taken[other], taken[first]) for other in others}
    return {
        "batch": batch,
        "median_ms": {name: round(t.median_s * 1e3, 4) for name, t in taken.items()},
        "speedup_vs": {o: [round(v, 4) for v in (r.median, r.q25, r.q75)] for o, r in ratios.items()},
    }


def over_seeds(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, float] | None:
    """Mean, smallest and largest of a column over seeds; None where no row has it."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values:
        return None
    return {"mean": round(statistics.fmean(values), 4), "min": min(values), "max": max(values), "seeds": len(values)}


def verdict(claim: str, points: Sequence[float]) -> dict[str, Any]:
    """A claim with its points, a seed each: it holds where all are above 0; one seed alone is called that."""
    said = "holds" if min(points) > 0 else "does not hold" if max(points) < 0 else "seeds disagree"
    said = said if len(points) > 1 else f"{said}, one seed"
    return {"claim": claim, "points": [round(p, 3) for p in points], "verdict": said}
