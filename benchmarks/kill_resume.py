"""Kills trainings at random moments and resumes them: are the weights those of the run that was left alone?

    python benchmarks/kill_resume.py [--kills 50] [--seed 0]

A small ViT on the embedded digits. For each setting (mixup and cutmix, averaged weights, accumulation; one process and
two) a run is trained without interruption. Then it is trained again and again: SIGKILL hits all its processes at a
random moment (somewhere in a step, a save or a validation, wherever it happens to be), it is resumed, killed
once more with some luck, and finished. Model, averaged weights and optimiser in the saved state are compared bit by
bit (CPU, fp32).
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import random
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

import bench
from bench import Column, Table
from leanvit.data import Preprocess, open_dataset
from leanvit.training import FitConfig, fit
from leanvit.training.checkpoint import STATE, read_position

OPTIONS = bench.parser(__doc__, kills=bench.Option(50, "how many"), seed=0)
ABOUT = bench.About(
    "Killed and resumed trainings",
    "Whether a training that was killed at random moments and resumed is bit-identical to an uninterrupted one.",
    (Table("trials", ("setting", "processes", "killed_at", "identical")),),
    {
        "killed_at": Column("killed behind step"),
        "identical": Column("bit-identical"),
    },
)
IMAGES, SPLIT_SEED = 160, 0
PLAIN = FitConfig(epochs=3, batch_size=16, lr=3e-3, clip_grad=1.0, augment="light", save_every=3)
SETTINGS = {
    "plain": PLAIN,
    "mixup, cutmix": replace(PLAIN, mixup=0.4, cutmix=1.0),
    "ema": replace(PLAIN, ema_decay=0.95),
    "mixup, cutmix, ema, 2x accumulation": replace(PLAIN, mixup=0.4, cutmix=1.0, ema_decay=0.95, accumulate=2),
}
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Trial:
    """One run that was killed and resumed until it was whole."""

    setting: str
    processes: int
    killed_at: list[int]  # the step of the last state on the disk, at each kill; -1 before the first
    identical: bool


def train(rank: int, size: int, store: str, config: FitConfig, out: str, resume: bool) -> None:
    """One process of a run, from its beginning to its end."""
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 24, "depth": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_heads=3, drop_path_rate=0.2, proj_drop_rate=0.1, **shape)
    preprocess = Preprocess((1, 8, 8), (0.3,), (0.4,), "bicubic", 1.0, "center")
    data, val = (open_dataset("digits", split, seed=SPLIT_SEED, limit=IMAGES) for split in ("train", "val"))
    fit(model, data, preprocess=preprocess, config=config, validate=val, out=out, resume=resume)
    if size > 1:
        torch.distributed.destroy_process_group()


def run(size: int, config: FitConfig, out: Path, *, kill_after: float | None = None) -> float | None:
    """Start or resume a run; kill it after some seconds. Returns its seconds, None if it was killed before its end."""
    resume = (out / STATE).is_file()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, f"{folder}/store", config, str(out), resume)
        started = [SERVER.Process(target=train, args=(rank, *arguments)) for rank in range(size)]
        begun = time.perf_counter()
        for process in started:
            process.start()
        started[0].join(kill_after)
        seconds = time.perf_counter() - begun
        if kill_after is not None:
            for process in started:
                process.kill()
        for process in started:
            process.join()
    codes = {process.exitcode for process in started}
    if codes - {0, -signal.SIGKILL}:
        raise SystemExit(f"a process ended with {codes}")
    return None if codes != {0} else seconds


def digest(out: Path) -> str:
    """Of every tensor in the state: model, objective, averaged weights, optimiser."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(out / STATE).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def trial(setting: str, size: int, expected: str, seconds: float, draw: random.Random) -> Trial:
    """Kill at random moments of a run of some seconds, resume each time, compare what it ends with."""
    killed_at = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for _ in range(draw.choice((1, 1, 2))):
            if run(size, SETTINGS[setting], out, kill_after=draw.uniform(0.1, 0.95) * seconds) is None:
                state = out / STATE
                killed_at.append(read_position(state).progress["step"] if state.is_file() else -1)
        run(size, SETTINGS[setting], out)
        return Trial(setting, size, killed_at, digest(out) == expected)


def undisturbed(setting: str, size: int) -> tuple[str, float]:
    """(digest, seconds) of the run that nothing kills."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(size, SETTINGS[setting], Path(folder) / "run")
        assert seconds is not None
        return digest(Path(folder) / "run"), seconds


def main() -> None:
    given = OPTIONS.parse_args()
    SERVER.set_forkserver_preload(["torch", "timm", "sklearn.datasets", "leanvit.training"])
    draw = random.Random(given.seed)
    undisturbed("plain", 1)  # starts the server, which is in no later run's time
    whole = {(setting, size): undisturbed(setting, size) for setting in SETTINGS for size in (1, 2)}
    trials: list[Trial] = []
    for setting, size in itertools.cycle(whole):
        if sum(len(t.killed_at) for t in trials) >= given.kills:
            break
        done = trial(setting, size, *whole[setting, size], draw)
        if done.killed_at:  # else it was quicker than the kill, and proves nothing
            trials.append(done)
            print(done, flush=True)
    bench.write_result(
        bench.RESULTS / "kill_resume.json",
        ABOUT,
        seed=given.seed,
        kills=sum(len(t.killed_at) for t in trials),
        all_identical=all(t.identical for t in trials),
        settings={name: config.to_json() for name, config in SETTINGS.items()},
        trials=[vars(t) for t in trials],
    )
    print(f"all bit-identical: {all(t.identical for t in trials)}")


if __name__ == "__main__":
    main()
