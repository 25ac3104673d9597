"""A whole chain of verbs on a tiny model, run once: what the tests of each verb look at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from leanvit.cli.main import app

TINY = ["--model-arg", "depth=3", "--model-arg", "embed_dim=48", "--model-arg", "num_heads=3"]


@dataclass
class Chain:
    """Results of the commands and the folder that they worked in."""

    folder: Path
    results: dict[str, Result]


Invoke = Callable[..., Result]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Runs the program in this process."""
    return run


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """train -> compress -> measure -> export -> report, with --json, on 80 digits."""
    folder = tmp_path_factory.mktemp("chain")
    dense, slim = folder / "dense", folder / "slim"
    digits = ["--data", "digits", "--limit", "80", "--json"]
    train = [
        "train",
        "vit_tiny_patch16_224",
        *digits,
        "--adapt",
        *TINY,
        "--epochs",
        "1",
        "--batch-size",
        "20",
        "--out",
        dense,
    ]
    methods = ["--with", "evit:keep_rate=0.6,blocks=[1]", "--with", "int8:images=32"]
    results = {
        "train": run(*train),
        "compress": run("compress", dense, *digits, *methods, "--recover", "1", "--batch", "2", "--out", slim),
        "export": run("export", slim, "--to", "openvino", "--batch", "2", "--json"),
    }
    speed = ["--batch", "2", "--rounds", "3", "--runtime", "torch", "--runtime", "openvino"]
    results["measure"] = run("measure", slim, "--against", dense, *digits, *speed)
    results["report"] = run("report", slim, dense, "--json")
    return Chain(folder, results)
