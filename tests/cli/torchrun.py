"""The program as torchrun starts it: two processes of their own, whose text goes to files."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from leanvit.data import Preprocess
from leanvit.recipe import Root, create, save

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_as_torchrun

__all__ = ["RECOVER", "assert_close", "command_line", "dense_run", "dying", "run_as_torchrun", "said", "weights"]

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1, "num_classes": 10}
RECOVER = ("--recover", "1", "--recover-batch", "10", "--recover-set", "save_every=1")


def dense_run(folder: Path) -> Path:
    """The folder, with a small model for digits in `dense`."""
    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL)).eval()
    save(model, folder / "dense", preprocess=Preprocess.of(model), classes=list("0123456789"))
    return folder


def command_line(said: Path, *words: str, dies: int = 0) -> None:
    """The program in a process of its own, which may die after so many steps; its text goes to files."""
    rank = os.environ.get("RANK", "alone")
    for name in ("stdout", "stderr"):
        setattr(sys, name, (said / f"{name}-{rank}").open("w"))
    sys.argv = ["leanvit", *words]
    if dies:
        from leanvit.verbs import compressing

        compressing.progress = lambda log: (DiesAfter(dies),)  # type: ignore[assignment]
    from leanvit.cli.main import main

    main()


def dying(said: Path, steps: int, *words: str) -> None:
    command_line(said, *words, dies=steps)


class DiesAfter:
    def __init__(self, steps: int) -> None:
        self.left = steps

    def after_step(self, run: Any) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("weights-*.safetensors")
    return load_file(file)


def assert_close(run: Path, other: Path, *, but: str = " ") -> None:
    """The weights of two runs; `but`: the end of the names of those that may differ."""
    mine, its = weights(run), weights(other)
    assert mine.keys() == its.keys()
    for name in (name for name in mine if not name.endswith(but)):
        torch.testing.assert_close(mine[name].float(), its[name].float(), atol=1e-5, rtol=0, msg=name)


def said(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("std*")}
