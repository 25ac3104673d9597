"""leanvit's parts in other people's loops: the examples end bit-identical to the plain loop of docs/training.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leanvit.data import Preprocess, loader, open_dataset
from leanvit.recipe import create, load, load_run, save
from leanvit.recipe.roots import Root
from leanvit.training import SoftDistillation

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOT = Root("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 24,
                                     "depth": 1, "num_heads": 3})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Runs `lean` and `dense`, and `plain`: lean after three epochs of the plain loop."""
    at = tmp_path_factory.mktemp("loops")
    for seed, name in enumerate(("lean", "dense")):
        torch.manual_seed(seed)
        model = create(ROOT)
        save(model, at / name, preprocess=Preprocess.of(model))
    lean, dense = load_run(at / "lean"), load_run(at / "dense")
    objective = SoftDistillation(dense.model, teacher_preprocess=dense.preprocess)
    objective.bind(lean.model, lean.preprocess)
    optimizer = torch.optim.AdamW(lean.model.parameters(), lr=1e-4)
    data = open_dataset("digits", "train")
    for epoch in range(3):
        for batch in loader(data, lean.preprocess, batch_size=64, train=True, epoch=epoch, drop_last=True):
            objective(lean.model, batch, 0, {}).total.backward()
            optimizer.step()
            optimizer.zero_grad()
    save(lean.model, at / "plain", preprocess=lean.preprocess)
    return at


def trained(folder: Path, words: list[str], out: str) -> dict[str, torch.Tensor]:
    arguments = [str(folder / "lean"), str(folder / "dense"), "digits", str(folder / out)]
    done = subprocess.run(
        [sys.executable, *words, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return load(folder / out).state_dict()


ACCELERATE, LIGHTNING = (pytest.mark.extra(loop, of="loops") for loop in ("accelerate", "lightning"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    "loop", [pytest.param("accelerate", marks=ACCELERATE), pytest.param("lightning", marks=LIGHTNING)]
)
def test_another_loop_ends_with_the_bits_of_the_plain_one(folder: Path, loop: str) -> None:
    plain, before = load(folder / "plain").state_dict(), load(folder / "lean").state_dict()
    found = trained(folder, [str(EXAMPLES / f"with_{loop}.py")], loop)
    assert all(torch.equal(value, plain[name]) for name, value in found.items())
    assert not torch.equal(before["head.weight"], plain["head.weight"])
    assert {path.name for path in folder.iterdir()} <= {"lean", "dense", "plain", "accelerate", "lightning", "two"}


@pytest.mark.e2e
@ACCELERATE
def test_two_processes_of_accelerate_train_as_one(folder: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    found = trained(folder, [*launch, str(EXAMPLES / "with_accelerate.py")], "two")
    for name, value in load(folder / "plain").state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_every_loop_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("with_*.py")} == {"with_accelerate", "with_lightning"}
