"""`demo`: the whole way on embedded data, through the same verbs that a user types. Minutes on two cores."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanvit.measure import Comparison
from leanvit.measure.latency import Spread
from leanvit.recipe import Recovery, parse_with
from leanvit.recipe.store import JSON_NAME
from leanvit.report import write_report
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder
from leanvit.runs.locking import LOCK
from leanvit.training.checkpoint import STATE
from leanvit.training.world import join_world
from leanvit.verbs.compressing import compress
from leanvit.verbs.exporting import export
from leanvit.verbs.measuring import measure
from leanvit.verbs.models import Log, silent
from leanvit.verbs.training import train

if TYPE_CHECKING:
    from rich.table import Table

DATA = "digits"
MODEL = "vit_tiny_patch16_224"
# 8x8 digits at twice their size, cut into 64 patches: room for token reduction, wide enough for int8 to pay. Larger
# initial weights, q/k norm and patch dropout let so few images and steps teach a ViT at all.
MODEL_ARGS: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 2,
    "depth": 4,
    "embed_dim": 128,
    "num_heads": 4,
    "qk_norm": True,
    "weight_init": "jax",
    "patch_drop_rate": 0.4,
}
TRAINING: dict[str, Any] = {
    "epochs": 16,
    "batch_size": 16,
    "lr": 2e-3,
    "betas": [0.9, 0.95],
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "clip_grad": 1.0,
}
EVIT = "evit:keep_rate=0.5,blocks=[0,1,2]"
TOME = "tome:r=8"
INT8 = "int8"
RECOVER = 2  # epochs
BATCH = 32  # of latency and artefacts
ROUNDS = 15  # of latency
LIMIT: int | None = None  # images of each split
DENSE = "dense"
LEAN: dict[str, tuple[str, ...]] = {"evit": (EVIT,), "tome": (TOME,), "int8": (INT8,), "evit-int8": (EVIT, INT8)}
RECOVERED = ("evit", "evit-int8")


@dataclass(frozen=True)
class Demonstration:
    """What the demo gave."""

    folder: Path
    page: Path
    comparison: Comparison
    seconds: float
    commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "page": str(self.page),
            "seconds": round(self.seconds, 1),
            "model": f"{MODEL} {json.dumps(MODEL_ARGS)}",
            "data": DATA,
            "batch": BATCH,
            "commands": list(self.commands),
            "rows": [_summary(self.comparison, row) for row in self.comparison.rows],
            "comparison": json.loads(self.comparison.to_json()),
        }

    def table(self, *, wide: bool = False) -> Table:
        """A rich table: five columns, or all that was measured."""
        return self.comparison.table(wide=wide)


def demo(
    out: str | Path | None = None,
    *,
    epochs: int | None = None,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Demonstration | None:
    """Train a small ViT on handwritten digits; compress it by EViT, ToMe, int8, and EViT with int8; export each to
    OpenVINO; measure all in PyTorch and OpenVINO, interleaved; write the report page.

    Under torchrun all processes make the same call and train together; the first one exports, measures and gets the
    result, the others None.

    Args:
        out: folder of the runs and the page; default: `runs/demo`, or the next free number.
        epochs: of training; fewer is faster and worse.
        overwrite: replace an earlier demo in `out`.

    Raises:
        BadInput: `out` is taken.
    """
    watch = Stopwatch("demo", command)
    holds = tuple(Path(DENSE, name) for name in (JSON_NAME, STATE, LOCK))
    world = join_world()
    log = log if world.first else silent
    folder = world.from_first(partial(new_folder, out, "demo", overwrite=overwrite, holds=holds))
    training = {**TRAINING, **({} if epochs is None else {"epochs": epochs})}
    runs = {name: folder / name for name in (DENSE, *LEAN)}
    typed: list[str] = []

    def step(*words: str | Path) -> str:
        typed.append(shlex.join(["leanvit", *map(str, words)]))
        log(f"\n$ {typed[-1]}   [{watch.seconds:.0f} s]")
        return typed[-1]

    train(
        MODEL,
        DATA,
        settings=training,
        adapt=True,
        model_args=MODEL_ARGS,
        limit=LIMIT,
        out=runs[DENSE],
        overwrite=overwrite,
        log=log,
        command=step(*_train_words(training, runs[DENSE])),
    )
    for name, methods in LEAN.items():
        epochs_after = RECOVER if name in RECOVERED else 0
        compress(
            runs[DENSE],
            [parse_with(text) for text in methods],
            DATA,
            recovery=Recovery(epochs=epochs_after) if epochs_after else None,
            measured=False,
            limit=LIMIT,
            out=runs[name],
            overwrite=overwrite,
            log=log,
            command=step(*_compress_words(runs[DENSE], methods, epochs_after, runs[name])),
        )
    if not world.first:  # nobody waits for what the first one exports and measures
        return None
    for run in runs.values():
        words = ("export", run, "--to", "openvino", "--batch", str(BATCH))
        export(run, to="openvino", batch=BATCH, log=log, command=step(*words))
    last = runs["evit-int8"]
    others = [run for run in runs.values() if run != last]
    comparison = measure(
        last,
        DATA,
        against=others,
        runtimes=("torch", "openvino"),
        latency_batch=BATCH,
        rounds=ROUNDS,
        limit=LIMIT,
        log=log,
        command=step(*_measure_words(last, others)),
    ).comparison
    page = folder / "report.html"
    step("report", last, *others, "--out", page)
    return Demonstration(
        folder, write_report([last, *others], page, overwrite=overwrite), comparison, watch.seconds, tuple(typed)
    )


def _train_words(training: dict[str, Any], run: Path) -> list[str | Path]:
    arguments = [word for key, value in MODEL_ARGS.items() for word in ("--model-arg", f"{key}={json.dumps(value)}")]
    settings = [word for key, value in training.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["train", MODEL, "--data", DATA, "--adapt", *arguments, *settings, "--out", run]


def _compress_words(dense: Path, methods: Sequence[str], recover: int, run: Path) -> list[str | Path]:
    chosen = [word for method in methods for word in ("--with", method)]
    recovery = ["--recover", str(recover)] if recover else []
    return ["compress", dense, "--data", DATA, *chosen, *recovery, "--no-measure", "--out", run]


def _measure_words(run: Path, others: Sequence[Path]) -> list[str | Path]:
    against = [word for other in others for word in ("--against", other)]
    runtimes = ["--runtime", "torch", "--runtime", "openvino"]
    return ["measure", run, *against, "--data", DATA, *runtimes, "--batch", str(BATCH)]


def _summary(comparison: Comparison, row: Any) -> dict[str, Any]:
    """One row, short: what the table and the benchmark's readers look for."""
    faster: Spread | None = row.speedup_vs_baseline
    change = row.change_points
    return {
        "method": row.model,
        "runtime": comparison.runtime_label(row),
        "precision": row.precision,
        "batch": comparison.latency_batch,
        "top1_percent": row.score.value,
        "top1_interval": [row.score.low, row.score.high],
        "change_points": None if change is None else change.value,
        "change_interval": None if change is None else [change.low, change.high],
        "latency_ms": row.latency_ms.median if row.latency_ms else None,
        "speedup_same_runtime": None if faster is None else faster.median,
        "speedup_quartiles": None if faster is None else [faster.q25, faster.q75],
    }
