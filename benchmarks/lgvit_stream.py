"""LGViT on a stream of real images at batch 1, in OpenVINO or ONNX Runtime: counted speed-up beside the measured one.

    python benchmarks/lgvit_stream.py DATA --model RUN --lgvit points=1,epochs=3
    python benchmarks/lgvit_stream.py PHOTOS --untrained deit_small_patch16_224 --out OUT
    python benchmarks/lgvit_stream.py --smoke

Heads are trained on the run (a dense reference) and the threshold is chosen on held-out training images. Then dense and
exiting artefacts answer the same validation images one by one, interleaved: image by image the order alternates, and
each image's times are a pair. The speed-up is the ratio of sums over the stream; its quartiles are over blocks of
images. The second line does the same with a network of a usual size with random weights: heads stay untrained, and on
half of the images each exit gets the threshold that lets 15 % of those inside leave; the other half is the stream. Its
answers mean nothing, and are not kept; where an image leaves still depends on the image.

Written beside: the counted ratio of mean MACs (heads included), depth / mean exit (which ignores heads), accuracy of
both, where images left. The claim, that measured and counted agree within 15 %, is kept with its verdict either way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel
from leanvit.data import Dataset, Preprocess, loader
from leanvit.deploy import Options, export, load_artefact
from leanvit.exits.calibration import collect
from leanvit.exits.lgvit import LGViT
from leanvit.measure import Spread, count
from leanvit.recipe import Data, compress, parse_with
from leanvit.verbs.models import load_model, open_split
from reference_study import smoke_reference

TOLERANCE = 0.15  # of the measured speed-up against the counted one
BLOCKS = 10  # parts of the stream, for quartiles
TRAINED, SMOKE_KNOBS = "points=1,epochs=3", "epochs=2,batch_size=16,points=2"
LEAVING = 0.15  # of the images that reach an exit, where the heads are untrained
OPTIONS = bench.parser(
    __doc__,
    data=None,
    model=None,
    untrained=bench.Option(help="a timm name: random weights, for its cost alone", metavar="MODEL"),
    lgvit=bench.Option(TRAINED, "knobs of lgvit, of a trained reference"),
    images=None,
    stream=bench.Option(1000, "validation images that are timed"),
    to=bench.Option("openvino", choices=("openvino", "onnx")),
    threads=1,
    seed=0,
    out=bench.RESULTS / "lgvit_stream.json",
    smoke=False,
)
ABOUT = bench.About(
    "Early exits, image by image",
    "Counted speed-up (mean MACs, heads included) beside the measured one; a small network on small images, so what "
    "comes with every graph weighs much.",
    (
        Table(
            "",
            (
                *("model", "weights", "runtime", "images", "top1_percent/dense", "top1_percent/lgvit"),
                *("depth_over_mean_exit", "counted_speedup", "measured_speedup", "measured_quartiles"),
                *("measured_over_counted", "verdict"),
            ),
        ),
    ),
    {
        "top1_percent/dense": Column("top-1, dense", "%", ".1f"),
        "top1_percent/lgvit": Column("top-1, with exits", "%", ".1f"),
        "depth_over_mean_exit": Column("depth / mean exit", form=".2f"),
        "counted_speedup": Column("counted speed-up", "times", ".2f"),
        "measured_speedup": Column("measured speed-up", "times", ".2f"),
        "measured_quartiles": Column("quartiles of the measured", "times", ".2f", each=("q25", "", "q75")),
        "measured_over_counted": Column("measured / counted", form=".2f"),
        "verdict": Column("within 15 %"),
    },
    {
        "lgvit_stream_deit_small": (
            "Early exits of a usual size, image by image",
            "The same on photos at 224x224. Untrained: its cost alone is of interest, and 15 % of the images that "
            "reach an exit leave there.",
        )
    },
)


def reference(arguments: argparse.Namespace) -> tuple[OpenModel, Preprocess, Dataset, Dataset]:
    """(dense model, preprocessing, training images, validation images)."""
    if arguments.smoke:
        dense, preprocess, train, val = smoke_reference(depth=4, epochs=4)
        return dense, preprocess, train, val.limited(40)
    if not arguments.data or bool(arguments.model) == bool(arguments.untrained):
        raise SystemExit("give DATA and one of --model RUN and --untrained MODEL, or --smoke")
    loaded = load_model(arguments.model or arguments.untrained)
    if arguments.untrained:  # the seed gives its weights in `main`
        photos = open_split(arguments.data, "val", limit=2 * arguments.stream)
        half = len(photos) // 2
        apart, timed_ones = (photos.take(part).cached() for part in (np.arange(half), np.arange(half, len(photos))))
        return loaded.model.eval(), loaded.preprocess, apart, timed_ones
    train = open_split(arguments.data, "train", limit=arguments.images).cached()
    return loaded.model, loaded.preprocess, train, open_split(arguments.data, "val", limit=arguments.stream).cached()


def with_graded_exits(dense: OpenModel, data: Data) -> OpenModel:
    """Untrained heads; at each exit `LEAVING` of the images that reach it are sure enough to leave."""
    lean = compress(dense, [LGViT(epochs=0, held_out=0)], data)
    seen = collect(lean, data.dataset, data.preprocess, batch_size=16)
    inside, thresholds = torch.ones(len(seen), dtype=torch.bool), []
    for exit_ in seen.exits:
        thresholds.append(float(exit_.confidence[inside].double().quantile(1 - LEAVING)))
        inside &= ~(exit_.confidence > thresholds[-1])
    return compress(dense, [LGViT(epochs=0, held_out=0, threshold=tuple(thresholds))], data)  # the seed's heads again


def timed(runner: Any, image: Tensor) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    logits = runner(image)
    return time.perf_counter() - begun, logits


def stream(runners: dict[str, Any], images: list[Tensor], warmup: int = 5) -> tuple[dict[str, list[float]], dict]:
    """Seconds of each image and the answers, by runner; who goes first changes with every image."""
    names = list(runners)
    for image in images[:warmup]:
        for name in names:
            runners[name](image)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, list[int]] = {name: [] for name in names}
    with runners["lgvit"].exits.recording() as work:
        for i, image in enumerate(images):
            for name in names if i % 2 == 0 else reversed(names):
                taken, logits = timed(runners[name], image)
                seconds[name].append(taken)
                answers[name].append(int(logits.argmax()))
    return seconds, {"answers": answers, "work": work}


def block_ratios(dense: list[float], lean: list[float]) -> Spread:
    """Of the sums in consecutive parts of the stream."""
    size = max(1, len(dense) // BLOCKS)
    cuts = range(0, len(dense) - size + 1, size)
    return Spread.of([sum(dense[i : i + size]) / sum(lean[i : i + size]) for i in cuts])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    dense, preprocess, train, val = reference(arguments)
    torch.set_num_threads(arguments.threads)
    data = Data(train, preprocess, seed=arguments.seed)
    if arguments.untrained:
        lean = with_graded_exits(dense, data)
    else:
        lean = compress(dense, [parse_with(f"lgvit:{SMOKE_KNOBS if arguments.smoke else arguments.lgvit}")], data)
    batch = next(iter(loader(val, preprocess, batch_size=len(val))))
    images, targets = list(batch.images.split(1)), batch.targets.tolist()
    with tempfile.TemporaryDirectory(prefix="leanvit-") as folder:
        options = Options(threads=arguments.threads)
        runners = {
            name: load_artefact(
                export(model, Path(folder) / name, to=arguments.to, preprocess=preprocess, batch=1), options=options
            )
            for name, model in (("dense", dense), ("lgvit", lean))
        }
        seconds, found = stream(runners, images)
    work = found["work"]
    counted = count(dense, dense.input_size()).macs / work.mean_macs
    measured = sum(seconds["dense"]) / sum(seconds["lgvit"])
    spread = block_ratios(seconds["dense"], seconds["lgvit"])
    off = measured / counted - 1
    right = {n: sum(a == t for a, t in zip(given, targets, strict=True)) for n, given in found["answers"].items()}
    plan = lean.history.plans[-1]
    return {
        "what": "images one by one through dense and exiting artefacts, in turns",
        "model": dense.history.root.name if dense.history else "a small ViT",
        "weights": "random" if arguments.untrained else "trained",
        "runtime": arguments.to,
        "threads": arguments.threads,
        "images": len(images),
        "knobs": dict(plan.knobs),
        "thresholds": list(plan.structure["thresholds"]),
        "top1_percent": None if arguments.untrained else {name: 100 * n / len(targets) for name, n in right.items()},
        "left_after_block": dict(zip(map(str, work.layers), work.shares, strict=True)),
        "counted_speedup": counted,
        "depth_over_mean_exit": work.layers[-1] / work.mean_layer,
        "measured_speedup": measured,
        "measured_quartiles": [spread.q25, spread.median, spread.q75],
        "measured_over_counted": measured / counted,
        "claim": "measured and counted speed-up agree within 15 %",
        "verdict": "reproduced" if abs(off) <= TOLERANCE else "not reproduced",
    }


def main() -> None:
    given = OPTIONS.parse_args()
    torch.manual_seed(given.seed)
    found = measure(given)
    bench.write_result(given.out, ABOUT, **found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
