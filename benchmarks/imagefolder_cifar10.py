"""What a user does who follows the README with a folder of images: train, compress, measure, export, report.

    python benchmarks/imagefolder_cifar10.py CIFAR10_FOLDER        # parquet files train and test; about ten minutes

Writes 5,000 training and 1,000 test images of CIFAR-10 as an ImageFolder, runs the commands of the README on it with a
small ViT and few epochs, and keeps what `leanvit measure` found in benchmarks/results/imagefolder_cifar10.json.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Column, Table
from leanvit.data import open_dataset

OPTIONS = bench.parser(
    __doc__,
    cifar10=bench.Option(help="folder with the parquet files of CIFAR-10", positional=True, required=True),
)
ABOUT = bench.About(
    "The commands of the README on a folder of images",
    "5,000 training and 1,000 test images of CIFAR-10, a small ViT, few epochs.",
    (
        Table(
            "comparison/rows",
            ("name", "runtime", "precision", "top1_percent/value", "change_points/value", "latency_ms"),
        ),
        Table("steps", ("command", "seconds"), "How long each command takes"),
    ),
    {
        "name": Column("model"),
        "top1_percent/value": Column("top-1", "%", ".2f"),
        "change_points/value": Column("change", "points", "+.2f"),
        "latency_ms": Column("time of a batch (quartiles)", "ms", ".2f"),
        "command": Column("command", show="code"),
        "seconds": Column("time", "s", ".1f"),
    },
)
IMAGES = {"train": 5000, "val": 1000}
MODEL = "--model-arg depth=6 --model-arg embed_dim=128 --model-arg num_heads=4 --set lr=1e-3"
COMMANDS = (
    f"train vit_tiny_patch16_224 --data photos --adapt {MODEL} --epochs 8 --out runs/dense",
    "compress runs/dense --data photos --with evit:keep_rate=0.7 --with int8 --recover 2 --out runs/slim",
    "export runs/slim --to openvino --batch 8",
    "measure runs/slim --against runs/dense --data photos --runtime torch --runtime openvino",
    "report runs/slim runs/dense --out report.html",
)


def write_folder(source: str, target: Path) -> None:
    """`target/{train,val}/<class>/<key>.png` of the first images of each split."""
    for split, count in IMAGES.items():
        dataset = open_dataset(source, split)
        for i in range(count):
            sample = dataset[i]
            path = target / split / dataset.classes[sample.target] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sample.image.save(path)


def main() -> None:
    source = str(Path(OPTIONS.parse_args().cifar10).resolve())
    out = bench.RESULTS / "imagefolder_cifar10.json"
    steps = []
    with tempfile.TemporaryDirectory(prefix="leanvit-folder-") as folder:
        write_folder(source, Path(folder) / "photos")
        for command in COMMANDS:
            print(f"$ leanvit {command}", flush=True)
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "leanvit", *shlex.split(command)], cwd=folder, check=True)
            steps.append({"command": f"leanvit {command}", "seconds": round(time.perf_counter() - start, 1)})
        measured = max(Path(folder).glob("runs/slim/measure*.json"), key=lambda path: path.stat().st_mtime)
        page = (Path(folder) / "report.html").stat().st_size
        result = {"steps": steps, "page_bytes": page, "comparison": json.loads(measured.read_text())}
    bench.write_json(
        out, {**ABOUT.to_json(out.stem), "command": "python benchmarks/imagefolder_cifar10.py CIFAR10_FOLDER", **result}
    )
    print(out)


if __name__ == "__main__":
    main()
