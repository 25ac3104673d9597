"""One trend: arms side by side on one data set, several seeds, the first arm held against each of the others.

    python benchmarks/trends.py benchmarks/trends/evit_tokens.toml [--data SPEC] [--seeds 3]
    python benchmarks/trends.py benchmarks/trends/evit_tokens.toml --smoke            # digits, seconds: no figures

A trend is a table in a TOML file; benchmarks/trends/evit_tokens.toml says what each line is. With a `reference`, arms
are methods on it, recovered; without, they are timm models that are trained from nothing. A row an arm and seed; a run
that was killed goes on. Trends come out as they come out: `holds` is true or false.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

import bench
import leanvit.backbones  # noqa: F401 (registers the names)
from bench import Column, Table
from leanvit.data import Augment, Preprocess, keyed, open_dataset
from leanvit.errors import BadInput
from leanvit.measure import count
from leanvit.recipe import parse_with
from leanvit.training import FitConfig, fit, top1_accuracy
from reference_study import Study, applied, open_study, quality, recovered, size

RECIPE = {"batch_size": 100, "lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1}  # of models trained from nothing
SMOKE_IMAGES = (100, 40)
OPTIONS = bench.parser(
    __doc__,
    trend=bench.Option(help="TOML file of the trend", kind=Path, positional=True, required=True),
    data=bench.Option(help="data spec (default: the trend's)"),
    seeds=bench.Option(help="how many, from 0 (default: the trend's)", kind=int),
    fresh=False,
    smoke=False,
    out=bench.Option(help="the result (default: results/NAME.json beside this script)", kind=Path),
)
COLUMNS = {
    "top1_percent": Column("top-1, seed by seed", "%", ".2f"),
    "train_seconds": Column("training, mean", "s", ".0f"),
    "than": Column("against"),
    "asked_at_least": Column("asked at least", "points", "+.1f"),
}
AGAINST = Table("trends", ("than", "points", "mean", "asked_at_least", "holds"), "The first against the others")
TABLES = (Table("summary", ("arm", "macs_ratio", "params", "top1_percent", "mean")), AGAINST)


@dataclass(frozen=True)
class Arm:
    """One of what is compared: methods on the reference, or a model that is trained from nothing."""

    name: str
    methods: tuple[str, ...] = ()  # as `leanvit compress --with` takes them
    model: str = ""  # timm's name
    pixels: int = 0  # a side of its images
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    at_least: float | None = None  # points that the first arm is asked to be ahead of this one, in the mean

    def built(self, seed: int, **data: Any) -> nn.Module:
        with keyed.global_rng(seed, "weights"):
            model: nn.Module = timm.create_model(self.model, img_size=self.pixels, **self.kwargs, **data)
        return model


@dataclass(frozen=True)
class Trend:
    """Arms, the first of which is held against the others, and what they learn."""

    arms: tuple[Arm, ...]
    images: tuple[int, int]  # for training and for the test
    epochs: int
    title: str = ""
    about: str = ""
    reference: str = ""
    data: str = ""
    seeds: int = 3
    pixels: int = 0


def read(path: Path) -> Trend:
    """The trend of a TOML file. Raises `BadInput` for a name that no trend and no arm has, or that is missing."""
    payload = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        arms = tuple(Arm(**{"pixels": payload.get("pixels", 0), **arm}) for arm in payload["arms"])
        return Trend(**{**payload, "arms": arms, "images": tuple(payload["images"])})
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error}; benchmarks/trends/evit_tokens.toml shows what a trend has") from None


def trained(arm: Arm, seed: int, source: str, images: Sequence[int], epochs: int) -> dict[str, Any]:
    """One model, trained from nothing: its size, its top-1, how long it took."""
    train, test = (open_dataset(source, split, limit=n) for split, n in zip(("train", "val"), images, strict=True))
    channels = train.channels
    model = arm.built(seed, in_chans=channels, num_classes=len(train.classes))
    preprocess = Preprocess(
        (channels, arm.pixels, arm.pixels),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
    )
    augment = Augment(crop="pad", padding=3 / 32)
    config = FitConfig(**RECIPE, epochs=epochs, augment=augment, seed=seed)  # type: ignore[arg-type]
    cost = count(model, preprocess.input_size)
    start = time.perf_counter()
    fit(model, train.cached(), preprocess=preprocess, config=config, convert=True)
    seconds = time.perf_counter() - start
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": cost.macs,
        "top1_percent": round(100 * top1_accuracy(model, test, preprocess=preprocess), 3),
        "train_seconds": round(seconds, 1),
    }


def compressed(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    """The reference with the arm's methods, recovered: its size, its top-1 before and after."""
    methods = [parse_with(text) for text in arm.methods]
    lean, images = applied(study, study.dense, methods, seed)
    before = quality(study, lean, "off_the_shelf_")
    lean, more = recovered(study, lean, seed, methods)
    return {"trained_images": images + more, **size(study, lean), **before, **quality(study, lean)}


def summary(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Rows that differ in their seed alone (`keys` name an arm) as one: top-1 seed by seed, its mean, the mean time."""
    found = []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        top1 = [row["top1_percent"] for row in own]
        one = {k: own[0][k] for k in ("params", "macs", "macs_ratio") if k in own[0]}
        one |= {"top1_percent": top1, "mean": round(statistics.fmean(top1), 4)}
        if "train_seconds" in own[0]:
            one["train_seconds"] = round(statistics.fmean(row["train_seconds"] for row in own), 1)
        found.append({**dict(zip(keys, key, strict=True)), **one})
    return found


def against(top1: Mapping[tuple[str, int], float], arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """The first arm against each other one: points of top-1 (by arm and seed), seed by seed and in the mean."""
    first, *others = arms
    for other in others:
        seeds = sorted(seed for name, seed in top1 if name == first.name and (other.name, seed) in top1)
        if seeds:
            points = [round(top1[first.name, seed] - top1[other.name, seed], 3) for seed in seeds]
            mean = round(statistics.mean(points), 3)
            holds = None if other.at_least is None else mean >= other.at_least
            payload = {"than": other.name, "points": points, "mean": mean}
            yield {**payload, "asked_at_least": other.at_least, "holds": holds}


def study_of(trend: Trend, smoke: bool) -> Study:
    images, val_images = trend.images
    payload = {"data": trend.data, "model": trend.reference, "val_images": val_images, "smoke": smoke}
    payload |= {"recover_images": images, "recover_epochs": trend.epochs}
    return open_study(argparse.Namespace(**{**bench.REFERENCE, **payload}))


def made(trend: Trend, study: Study | None, arm: Arm, seed: int) -> dict[str, Any]:
    if study:
        return compressed(study, arm, seed)
    return trained(arm, seed, trend.data, trend.images, trend.epochs)


def main() -> None:
    given = OPTIONS.parse_args()
    trend = read(given.trend)
    trend = replace(trend, data=given.data or trend.data, seeds=given.seeds or trend.seeds)
    if given.smoke:
        trend = replace(trend, data="digits", images=SMOKE_IMAGES, epochs=1, seeds=1)
    study = study_of(trend, given.smoke) if trend.reference else None
    payload = study.settings if study else {"data": trend.data, "recipe": RECIPE}
    settings = {**payload, "arms": [vars(arm) for arm in trend.arms], "images": trend.images, "epochs": trend.epochs}
    out = given.out or bench.RESULTS / f"{given.trend.stem}.json"
    about = bench.About(trend.title, trend.about, TABLES, COLUMNS)
    kept = bench.KeptRows(out, about, {"model": trend.reference or "several", **settings}, fresh=given.fresh)
    try:
        for seed in range(trend.seeds):  # a seed of all arms before the next: what is there early is comparable
            for arm in trend.arms:
                if kept.get(arm=arm.name, seed=seed) is None:
                    kept.add({"arm": arm.name, "seed": seed, **made(trend, study, arm, seed)})
    finally:
        if study:
            study.close()
    top1 = {(row["arm"], row["seed"]): row["top1_percent"] for row in kept.rows}
    kept.write(summary=summary(kept.rows, "arm"), trends=list(against(top1, trend.arms)))
    print(json.dumps(kept.content["trends"], indent=1))


if __name__ == "__main__":
    main()
