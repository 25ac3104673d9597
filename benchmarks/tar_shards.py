"""Tar shards by index: what it takes to open a large set, to read an epoch on two processes, and to resume one.

    python benchmarks/tar_shards.py --before CHECKOUT

generates shards of tiny images in a temporary folder (or in --folder, where they stay) and measures this leanvit, and
that of another checkout (of an earlier commit) where one is given. Each figure is taken in a process of its own, which
counts what it reads by /proc/self/io and its memory above what it had after the imports.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import bench
from bench import Column, Table
from leanvit.data import Preprocess, loader, open_dataset

SIDE = 8  # pixels
CLASSES = 100
PICTURES = 64  # different ones
BATCH = 256
PREPROCESS = Preprocess((3, SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)
MIB = 2**20


def write_shards(folder: Path, shards: int, rows: int) -> str:
    """`rows` pairs of PNG and class in `shards` tars, unless they are there; returns their pattern."""
    pictures = [_png(number) for number in range(PICTURES)]
    bounds = np.linspace(0, rows, shards + 1).astype(int)
    for shard in range(shards):
        path = folder / f"train-{shard:04d}.tar"
        if path.exists():
            continue
        with path.open("wb") as file:
            for row in range(bounds[shard], bounds[shard + 1]):
                file.write(_member(f"{row:08d}.png", pictures[row % PICTURES]))
                file.write(_member(f"{row:08d}.cls", str(row % CLASSES).encode()))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
    return f"wds:{folder}/train-{{0000..{shards - 1:04d}}}.tar"


def _png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


# --- one figure, in a process of its own ------------------------------------------------------------------------------


def opened(spec: str, part: str) -> dict[str, float]:
    """Seconds to open the shards."""
    begun = time.perf_counter()
    open_dataset(spec, "train")
    return {"open_s": time.perf_counter() - begun}


def epoch(spec: str, part: str) -> dict[str, float]:
    """One process of two reads its share of a training epoch (`part`: 0 or 1)."""
    stream = open_dataset(spec, "train")
    begun, read = time.perf_counter(), read_bytes()
    images = sum(map(len, loader(stream, PREPROCESS, batch_size=BATCH, train=True, share=(int(part), 2))))
    return {"images": images, "read_bytes": read_bytes() - read, "epoch_s": time.perf_counter() - begun}


def resumed(spec: str, part: str) -> dict[str, float]:
    """An epoch that is resumed in the middle; `part`: "first" ends with the first batch that is left."""
    stream = open_dataset(spec, "train")
    batches = len(stream) // BATCH // 2
    begun, read = time.perf_counter(), read_bytes()
    left = iter(loader(stream, PREPROCESS, batch_size=BATCH, train=True, skip=batches))
    images = len(next(left))
    first = time.perf_counter() - begun
    images += sum(map(len, left)) if part == "rest" else 0
    return {"images": images, "read_bytes": read_bytes() - read, "first_batch_s": first}


FIGURES: dict[str, Callable[[str, str], dict[str, float]]] = {"open": opened, "epoch": epoch, "resume": resumed}


def read_bytes() -> int:
    """What this process has read so far, from files and caches alike."""
    return int(Path("/proc/self/io").read_text().split()[1])


def memory(name: str) -> int:
    """VmRSS or VmHWM, bytes."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


def measured(figure: str, spec: str, part: str) -> dict[str, float]:
    """A figure, with the peak of the memory above what the imports take, in MiB."""
    import pyarrow.compute  # noqa: F401
    import webdataset  # noqa: F401

    open_dataset("digits", "val")  # what the first data set imports
    before = memory("VmRSS")
    found = FIGURES[figure](spec, part)
    return found | {"memory_mib": (memory("VmHWM") - before) / MIB}


def in_process(figure: str, spec: str, part: str, checkout: Path | None) -> dict[str, float]:
    """`measured` in a new process, by the leanvit of a checkout."""
    source = (checkout or Path(__file__).parents[1]) / "src"
    command = [sys.executable, __file__, "--figure", figure, "--spec", spec, "--part", part]
    environment = os.environ | {"PYTHONPATH": f"{source}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{figure}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- all figures ------------------------------------------------------------------------------------------------------


def row_of(name: str, spec: str, size: int, checkout: Path | None, openings: int) -> dict[str, Any]:
    """The figures of one side; `openings`: how often the shards are opened."""

    def figure(what: str, part: str = "") -> dict[str, float]:
        return in_process(what, spec, part, checkout)

    opening = [figure("open") for _ in range(openings)]
    shares = [figure("epoch", str(number)) for number in range(2)]
    rest = figure("resume", "rest")
    return {
        "side": name,
        "open_s": [one["open_s"] for one in opening],
        "epoch_s": [one["epoch_s"] for one in shares],
        "images": [one["images"] for one in shares],
        "read_of_set": sum(one["read_bytes"] for one in shares) / size,
        "memory_mib": max(one["memory_mib"] for one in (*opening, *shares, rest)),
        "resumed_images": rest["images"],
        "resumed_read_of_set": rest["read_bytes"] / size,
        "first_batch_s": rest["first_batch_s"],
    }


OPTIONS = bench.parser(
    __doc__,
    before=bench.Option(help="checkout of an earlier leanvit", kind=Path),
    folder=bench.Option(help="where the shards lie, or are made", kind=Path),
    shards=bench.Option(200, "how many"),
    rows=bench.Option(1_000_000, "samples in all"),
    out=bench.RESULTS / "tar_shards.json",
    smoke=False,
    figure=bench.Option(help=argparse.SUPPRESS, choices=list(FIGURES)),
    spec=bench.Option("", argparse.SUPPRESS),
    part=bench.Option("", argparse.SUPPRESS),
)
ABOUT = bench.About(
    "Tar shards by index",
    "{settings[rows]:,} tiny images in {settings[shards]} shards, each figure in a process of its own. Two processes "
    "read an epoch; an epoch is resumed in the middle. Read: bytes of all reads over bytes of the set.",
    (
        Table(
            "rows",
            ("side", "open_s", "memory_mib", "read_of_set", "epoch_s", "resumed_read_of_set", "first_batch_s"),
        ),
    ),
    {
        "side": Column("leanvit"),
        "open_s": Column("opening", "s", ".1f", show="median"),
        "memory_mib": Column("memory above imports", "MiB", ".0f"),
        "read_of_set": Column("read by two processes", "of the set", ".2f"),
        "epoch_s": Column("a process's epoch", "s", ".0f", show="median"),
        "resumed_read_of_set": Column("read by a resumed half", "of the set", ".2f"),
        "first_batch_s": Column("first batch of the half", "s", ".1f"),
    },
)


def main() -> None:
    given = OPTIONS.parse_args()
    if given.figure:
        print(json.dumps(measured(given.figure, given.spec, given.part)))
        return
    shards, rows = (4, 2000) if given.smoke else (given.shards, given.rows)
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory(prefix="leanvit-shards-") as folder:
        begun = time.perf_counter()
        spec = write_shards(Path(folder), shards, rows)
        generated = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in Path(folder).glob("train-*.tar"))
        for index in Path(folder).glob("*.index"):
            index.unlink()
        sides = [row_of("before", spec, size, given.before, 1)] if given.before else []
        indexing = in_process("open", spec, "", None)
        sides.append(row_of("by index", spec, size, None, 1 if given.smoke else 3))
        kept = sum(path.stat().st_size for path in Path(folder).glob("*.index"))
    for row in sides:
        bench.log(row)
    bench.write_result(
        given.out,
        ABOUT,
        settings={"shards": shards, "rows": rows, "bytes": size, "batch": BATCH, "side": SIDE},
        generating_s=generated,
        indexing_s=indexing["open_s"],
        index_bytes=kept,
        rows=sides,
    )


if __name__ == "__main__":
    main()
