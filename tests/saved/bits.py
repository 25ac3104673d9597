"""A table of the bits that trainings and saved runs give: `python tests/saved/bits.py [--out FILE] [--compare FILE]`.

Made before and after a change of the core, on one machine, it shows that nothing else changed: `--compare` names the
rows that differ from the table in FILE and exits with 1. Five small trainings on the embedded digits give the sha256 of
weights, averages, resumable state and `train.jsonl` (timings aside; its first row, the recipe, by itself: a new field
of `FitConfig` shows there), ten runs of `tests/saved/runs` that of their tensors and float32 logits, and of the weights
file that saving them again writes. Values differ from machine to machine; twice on one they are the same.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from leanvit import Data, FitConfig, Int8, NViT, Preprocess, compress, fit, open_dataset, save
from leanvit.recipe import Recovery, load_run

SAVED = (
    "evit",
    "tome-swin",  # stored in float16
    "diffrate-eva",
    "sit",
    "stvit-swin",
    "nvit",
    "lgvit",
    "int8-swin",
    "int8-levit",  # a hybrid, traced
    "t2t_vit-ghost-int8",
)
DIGITS = Preprocess((1, 8, 8), (0.3,), (0.35,), "bicubic", 1.0, "center")
SHAPE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
DROPS = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
TWO = {"epochs": 2, "lr": 3e-3, "warmup_epochs": 0.5, "ema_decay": 0.9}
LABELS = ("odd", "prime", "large")
CUT = {"macs": 0.7, "head_group": 1, "qk_group": 2, "v_group": 2, "embed_group": 4, "mlp_group": 4, "interval": 1}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Names, dtypes, shapes and values, in the order of names."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def of_log(file: Path) -> dict[str, str]:
    """The recipe in its first row, and steps and epochs without their seconds."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    start, rest = timeless[:1], timeless[1:]
    return {"recipe": sha256(json.dumps(start).encode()), "train.jsonl": sha256(json.dumps(rest).encode())}


def vit(classes: int, **more: Any) -> Any:
    torch.manual_seed(0)
    return compress(timm.create_model("vit_tiny_patch16_224", **SHAPE, num_classes=classes, **more), [])


def trained(out: Path, classes: int, train: Any, val: Any, **settings: Any) -> dict[str, str]:
    """A training into `out`; the rows of its table."""
    found = learnt(out, classes, train, val, **settings)
    state = of_tensors(load_file(out / "training/state.safetensors"))
    return {**found, "state": state, **of_log(out / "train.jsonl")}


def learnt(out: Path, classes: int, train: Any, val: Any, **settings: Any) -> dict[str, str]:
    config = FitConfig(**{**TWO, **settings})
    model = vit(classes, **DROPS)
    result = fit(model, train, preprocess=DIGITS, config=config, out=out, validate=val, keep="best")
    return {"weights": of_tensors(result.model.state_dict()), "averages": of_tensors(result.ema.state_dict())}


def single_label(out: Path) -> dict[str, str]:
    train, val = open_dataset("digits", "train", limit=192), open_dataset("digits", "val", limit=64)
    settings = {"batch_size": 16, "mixup": 0.4, "cutmix": 1.0, "augment": "randaug", "label_smoothing": 0.1}
    return trained(out, 10, train, val, **settings, clip_grad=1.0, layer_decay=0.8)


def multi_label(out: Path) -> dict[str, str]:
    """Digits as pictures beside a table of what is true of them."""
    digits = open_dataset("digits", "train", limit=192)
    rows = []
    for number, (image, target, _) in enumerate(digits[i] for i in range(len(digits))):
        digit = int(digits.classes[target])
        image.save(out / f"{number}.png")
        rows.append([f"{number}.png", digit % 2, int(digit in (2, 3, 5, 7)), int(digit > 4)])
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", *LABELS], *rows])
    train, val = (open_dataset(str(out / "table.csv"), split) for split in ("train", "val"))
    return trained(out / "run", 3, train, val, batch_size=16)


def half_precision(out: Path) -> dict[str, str]:
    train, val = open_dataset("digits", "train", limit=192), open_dataset("digits", "val", limit=64)
    return trained(out, 10, train, val, batch_size=8, accumulate=2, amp="fp16", optimizer="sgd")


def compressed(out: Path) -> dict[str, str]:
    """NViT, a recovery distilled from the dense model, int8."""
    digits, log = open_dataset("digits", "train", limit=192), out / "recovery.jsonl"
    recovery = Recovery(epochs=2, lr=1e-3, batch_size=16, settings={"ema_decay": 0.9}, log=log)
    cut = NViT(**CUT, max_steps=8, prune_per_step=4, batch_size=16)
    lean = compress(vit(10), [cut, Int8(images=16)], Data(digits, DIGITS, batch_size=16), recovery=recovery)
    folder = save(lean, out / "run", preprocess=DIGITS)
    plans = json.loads((folder / "leanvit.json").read_text(encoding="utf-8"))["plans"]
    return {
        "weights": of_tensors(lean.state_dict()),
        "plans": sha256(json.dumps(plans).encode()),
        "loaded": of_tensors(load_run(folder).model.state_dict()),
        **of_log(log),
    }


def start_two(out: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--as-one-of-two", str(out)]
    ranks = [{**said, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [subprocess.Popen(command, env=variables) for variables in ranks]


def worker(out: Path) -> None:
    """What each of two processes does, joined by torchrun's variables; the first writes log and state."""
    train, val = open_dataset("digits", "train", limit=96), open_dataset("digits", "val", limit=33)
    work = trained if os.environ["RANK"] == "0" else learnt
    found = work(out / "run", 10, train, val, batch_size=12, accumulate=2, mixup=0.4)
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


def of_two(processes: list[subprocess.Popen[bytes]], out: Path) -> dict[str, str]:
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("one of the two processes failed")
    first, second = (json.loads((out / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    return {**first, **{f"{key} (second)": digest for key, digest in second.items()}}


@torch.no_grad()
def loaded(name: str, out: Path) -> dict[str, str]:
    shutil.unpack_archive(Path(__file__).parent / "runs" / f"{name}.zip", out / "run")
    run = load_run(out / "run")
    images = torch.randn(2, *run.preprocess.input_size, generator=torch.Generator().manual_seed(0))
    again = save(run.model, out / "again", stored_as=run.stored_as)
    written = json.loads((again / "leanvit.json").read_text(encoding="utf-8"))
    plans = [[plan.slug, dict(plan.knobs), dict(plan.structure)] for plan in run.model.history.plans]
    return {
        "weights": of_tensors(run.model.state_dict()),
        "logits": of_tensors({"logits": run.model(images)}),
        "plans": sha256(json.dumps(plans).encode()),
        "saved again": written["weights"]["sha256"],
    }


def table(folder: Path) -> dict[str, str]:
    """`training or run / what`: sha256."""
    places = {name: folder / name for name in ("single-label", "multi-label", "fp16", "nvit-int8", "two", *SAVED)}
    for place in places.values():
        place.mkdir()
    processes = start_two(places["two"])
    found = {
        "single-label": single_label(places["single-label"]),
        "multi-label": multi_label(places["multi-label"]),
        "fp16": half_precision(places["fp16"]),
        "nvit-int8": compressed(places["nvit-int8"]),
        **{name: loaded(name, places[name]) for name in SAVED},
        "two": of_two(processes, places["two"]),
    }
    return {f"{name} / {what}": digest for name, row in found.items() for what, digest in row.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table here, as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a table made before; exit 1 if a row differs")
    parser.add_argument("--as-one-of-two", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.as_one_of_two:
        worker(given.as_one_of_two)
        return 0
    with TemporaryDirectory() as folder:
        found = table(Path(folder))
    width = max(map(len, found))
    print("\n".join(f"{name:{width}}  {digest}" for name, digest in found.items()))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not given.compare:
        return 0
    before = json.loads(given.compare.read_text(encoding="utf-8"))
    different = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    for name in different:
        print(f"differs: {name}: {before.get(name, 'absent')} before, {found.get(name, 'absent')} now")
    print(f"{len(different)} of {len({**before, **found})} rows differ from {given.compare}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
