"""Samples per second of training, against timm's own script.

    python benchmarks/train_speed.py --timm-script pytorch-image-models/train.py --cifar10 FOLDER --photos SPEC

`train.py` is not in timm's wheel: take that of the installed version from huggingface/pytorch-image-models. FOLDER and
SPEC are data specs of leanvit; their first images are written as image folders that both sides read.

Both sides run as whole processes, interleaved, each round in the other order than the one before: same model, images,
batch, augmentation, optimiser, precision, loader workers and threads. Speed is images over seconds of the steps behind
the warm-up, from each side's own log of every step. A case takes one to two minutes at three turns; `--case`
(repeatable) runs some of them and keeps what else the result holds. Magnitude 7 of RandAugment: at 9, timm's own
posterize fails on Pillow 13.

    python benchmarks/train_speed.py --before CHECKOUT --cifar10 FOLDER --photos SPEC

sets this leanvit beside that of another checkout (of an earlier commit), in turns; it prints the ratios and keeps none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import bench
from bench import Column, Table
from leanvit.data import Augment, Preprocess, open_dataset

WARM_UP = 3  # steps: allocators, caches and the queue of loader workers are as they stay from here on
LIGHT = Augment(crop="resized")
STRONG = Augment(crop="resized", scale=(0.08, 1.0), auto_augment="rand-m7-mstd0.5-inc1", erase=0.25)
MIX = {"mixup": 0.8, "cutmix": 1.0}
SMOOTHING = 0.1
TIMM_STEP = re.compile(r"Train: \d+ \[ *\d+/.*?Time: [\d.]+s, +([\d.]+)/s")


@dataclass(frozen=True)
class Model:
    """A timm name with the arguments of its constructor, and what it is trained on."""

    name: str
    data: str  # "cifar10" or "photos"
    size: int
    batch: int
    steps: int
    kwargs: dict[str, Any]


MODELS = {
    "vit_32": Model(
        "vit_tiny_patch16_224",
        "cifar10",
        size=32,
        batch=128,
        steps=11,
        kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3},
    ),
    "deit_tiny_224": Model("deit_tiny_patch16_224", "photos", size=224, batch=16, steps=11, kwargs={}),
    "swin_small_32": Model(
        "swin_small_patch4_window7_224",
        "cifar10",
        size=32,
        batch=32,
        steps=11,
        kwargs={"img_size": 32, "patch_size": 2, "window_size": 4},
    ),
}


@dataclass(frozen=True)
class Case:
    """One comparison."""

    model: str
    augment: str  # "light" or "strong"; strong also mixes images
    amp: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.augment}/{self.amp}/workers{self.workers}"


CASES = (
    Case("vit_32", "light", "fp32", 0),
    Case("vit_32", "light", "bf16", 0),
    Case("vit_32", "strong", "fp32", 1),
    Case("vit_32", "strong", "bf16", 2),
    Case("deit_tiny_224", "light", "fp32", 0),
    Case("deit_tiny_224", "strong", "bf16", 1),
    Case("swin_small_32", "light", "fp32", 0),
)


# -- one side each -----------------------------------------------------------------------------------------------------


def timm_seconds(case: Case, folder: Path, classes: int, script: str) -> list[float]:
    """Seconds of each step of timm's script."""
    model, augment = MODELS[case.model], augment_of(case)
    kwargs = [f"{name}={value}" for name, value in model.kwargs.items()]
    with tempfile.TemporaryDirectory(prefix="leanvit-timm-") as out:
        command: list[object] = [sys.executable, script, "--data-dir", folder, "--val-split", "", "--output", out]
        command += ["--model", model.name, "--num-classes", classes, "--input-size", 3, model.size, model.size]
        command += ["--model-kwargs", *kwargs] if kwargs else []
        command += ["--batch-size", model.batch, "--workers", case.workers, "--device", "cpu", "--log-interval", 1]
        command += ["--opt", "adamw", "--lr", 5e-4, "--weight-decay", 0.05, "--epochs", 1, "--warmup-epochs", 0]
        command += ["--scale", *augment.scale, "--ratio", *augment.ratio, "--hflip", augment.hflip]
        command += ["--color-jitter", 0, "--train-interpolation", "bicubic", "--smoothing", SMOOTHING]
        command += ["--amp", "--amp-dtype", "bfloat16"] if case.amp == "bf16" else []
        if case.augment == "strong":
            command += ["--aa", augment.auto_augment, "--reprob", augment.erase]
            command += [part for name, value in MIX.items() for part in (f"--{name}", value)]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    rates = TIMM_STEP.findall(done.stderr + done.stdout)
    if done.returncode or len(rates) != model.steps:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stderr[-3000:]}\n{len(rates)} steps of {model.steps}")
    return [model.batch / float(rate) for rate in rates]


def leanvit_seconds(case: Case, folder: Path, checkout: Path | None = None) -> list[float]:
    """Seconds of each step of `fit`, in a process of its own; in another checkout, where one is given."""
    script = Path(__file__) if checkout is None else checkout / "benchmarks" / "train_speed.py"
    command = [sys.executable, str(script), "--train", case.name, "--folder", str(folder)]
    environment = os.environ | ({} if checkout is None else {"PYTHONPATH": str(checkout / "src")})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class StepTimes:
    """Seconds of each step, its wait for data included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def start(self, run: object) -> None:
        self._last = time.perf_counter()

    def after_step(self, run: object) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def train(case: Case, folder: Path) -> list[float]:
    """What `leanvit train` does, on one epoch of `folder`; but images are decoded anew in each step, as timm does."""
    import timm

    from leanvit.anatomy import open_model
    from leanvit.training import FitConfig, fit

    dataset = open_dataset(str(folder), "train")
    shape = MODELS[case.model]
    model = open_model(timm.create_model(shape.name, num_classes=len(dataset.classes), **shape.kwargs))
    config = FitConfig(
        epochs=1,
        batch_size=shape.batch,
        lr=5e-4,
        weight_decay=0.05,
        label_smoothing=SMOOTHING,
        augment=augment_of(case),
        amp=case.amp,
        workers=case.workers,
        **(MIX if case.augment == "strong" else {}),
    )
    times = StepTimes()
    with tempfile.TemporaryDirectory(prefix="leanvit-train-") as out:
        fit(model, dataset, preprocess=Preprocess.of(model), config=config, callbacks=[times], out=out)
    return times.seconds


def augment_of(case: Case) -> Augment:
    return STRONG if case.augment == "strong" else LIGHT


# -- interleaved -------------------------------------------------------------------------------------------------------


def write_folder(spec: str, count: int, target: Path) -> int:
    """`target/train/<class>/<number>`: the first `count` images of `spec`, as PNG up to 64 pixels, else as JPEG.

    Returns the number of classes.
    """
    dataset = open_dataset(spec, None).limited(count)
    if len(dataset) < count:
        sys.exit(f"{spec} has {len(dataset)} images: {count} are needed")
    for number, sample in enumerate(dataset):
        kind = {"suffix": ".png"} if max(sample.image.size) <= 64 else {"suffix": ".jpg", "quality": 90}
        path = (target / "train" / f"{sample.target:04d}" / f"{number:05d}").with_suffix(str(kind.pop("suffix")))
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(path, **kind)
    return len(list((target / "train").iterdir()))


def compared(case: Case, other: str, sides: dict[str, Callable[[], list[float]]], *, turns: int) -> dict[str, Any]:
    """The case's row: images per second of each side and turn, and the ratio to the other side of each turn."""
    shape = MODELS[case.model]
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            seconds = sides[name]()[WARM_UP:]
            speeds[name].append(round(shape.batch * len(seconds) / sum(seconds), 2))
    ratios = [ours / theirs for ours, theirs in zip(speeds["leanvit"], speeds[other], strict=True)]
    ratio = {"median": round(median(ratios), 4), "turns": [round(ratio, 4) for ratio in ratios]}
    return {"case": case.name, "images_per_s": speeds, f"leanvit_vs_{other}": ratio}


BY_NAME = {case.name: case for case in CASES}
OPTIONS = bench.parser(
    __doc__,
    timm_script=bench.Option(help="timm's train.py"),
    before=bench.Option(help="checkout of an earlier leanvit, in the place of timm's script", kind=Path),
    cifar10=bench.Option(help="data spec of 32x32 images"),
    photos=bench.Option(help="data spec of photographs"),
    case=bench.Option(list(BY_NAME), "may be repeated; default: all", choices=list(BY_NAME)),
    turns=bench.Option(3, "of each side"),
    note=bench.Option("", "what a reader must know of the script; stands in the result"),
    threads=bench.Option(len(os.sched_getaffinity(0)), "of torch, on both sides"),
    fresh=False,
    train=bench.Option(help=argparse.SUPPRESS, choices=list(BY_NAME)),  # one side, one turn
    folder=bench.Option(help=argparse.SUPPRESS, kind=Path),
)
ABOUT = bench.About(
    "Training against timm's script",
    "Processes, interleaved: same model, images, batch, augmentation, optimiser, precision, workers, threads.",
    (
        Table(
            "rows",
            (
                *("case", "images_per_s/timm", "images_per_s/leanvit"),
                *("leanvit_vs_timm/median", "leanvit_vs_timm/turns"),
            ),
        ),
    ),
    {
        "case": Column("model / augmentation / precision / workers"),
        "images_per_s/timm": Column("timm", "images/s", ".1f", show="median"),
        "images_per_s/leanvit": Column("leanvit", "images/s", ".1f", show="median"),
        "leanvit_vs_timm/median": Column("leanvit × timm", form=".2f"),
        "leanvit_vs_timm/turns": Column("turn by turn", form=".2f"),
    },
)


def cases(given: argparse.Namespace) -> Iterator[tuple[Case, Path, int]]:
    """The cases that are asked for, each with a folder of its images and the number of their classes."""
    for case in (BY_NAME[name] for name in given.case):
        shape = MODELS[case.model]
        spec = getattr(given, shape.data) or OPTIONS.error(f"--{shape.data} is needed for {case.name}")
        with tempfile.TemporaryDirectory(prefix="leanvit-speed-") as folder:
            yield case, Path(folder), write_folder(spec, shape.batch * shape.steps, Path(folder))


def main() -> None:
    given = OPTIONS.parse_args()
    if given.train:
        print(json.dumps(train(BY_NAME[given.train], given.folder)))
        return
    if not given.timm_script and not given.before:
        OPTIONS.error("--timm-script is needed, timm's train.py; or --before, another checkout")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.before:
        for case, folder, _ in cases(given):
            sides = {"before": partial(leanvit_seconds, case, folder, given.before)}
            row = compared(
                case, "before", sides | {"leanvit": partial(leanvit_seconds, case, folder)}, turns=given.turns
            )
            print(json.dumps(row), flush=True)
        return
    digest = hashlib.sha256(Path(given.timm_script).read_bytes()).hexdigest()
    settings = {"script": {"sha256": digest, "note": given.note}, "threads": given.threads}
    kept = bench.KeptRows(bench.RESULTS / "train_speed.json", ABOUT, settings, fresh=given.fresh)
    for case, folder, classes in cases(given):
        sides = {"timm": partial(timm_seconds, case, folder, classes, given.timm_script)}
        row = compared(case, "timm", sides | {"leanvit": partial(leanvit_seconds, case, folder)}, turns=given.turns)
        kept.rows[:] = [r for r in kept.rows if r["case"] != case.name]
        kept.add(row)
        kept.rows.sort(key=lambda r: list(BY_NAME).index(r["case"]))


if __name__ == "__main__":
    main()
