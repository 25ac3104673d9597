"""Fixtures of the whole suite: one seed, small models."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import typer.testing
from torch import nn

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 7}


pytest_plugins = ["seconds"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of an extra that is not installed are skipped."""
    for item in items:
        for module, extra in ((mark.args[0], mark.kwargs["of"]) for mark in item.iter_markers("extra")):
            if find_spec(module) is None:
                item.add_marker(pytest.mark.skip(reason=f"needs {module}: pip install 'leanvit[{extra}]'"))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through it again and again, during exports above all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # bindings complain of what is left at the end


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", metavar="DIR", help="golden cases for tests/parity (else LEANVIT_PARITY)")


@pytest.fixture(scope="package")
def one_thread() -> Iterator[None]:
    """One thread here and in the processes that are started: sums differ with their number, and bits are compared."""
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS")
    if variable is not None:
        os.environ["OMP_NUM_THREADS"] = variable


@pytest.fixture(autouse=True, scope="session")
def _short_timings() -> Iterator[None]:
    """What verbs time by default takes a sample as short as it can be: nobody reads these figures."""
    from leanvit.measure.comparing import compare
    from leanvit.verbs.dry_running import dry_run

    with pytest.MonkeyPatch.context() as patch:
        for verb, name, seconds in ((compare, "min_seconds", 1e-3), (dry_run, "seconds", 0.0)):
            assert name in verb.__kwdefaults__
            patch.setitem(verb.__kwdefaults__, name, seconds)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_tree_of_commands() -> Iterator[None]:
    """Typer's runner makes all commands anew for each call, which takes longer than most wrong calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.testing._get_command))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random (norms, biases, tokens, layer scales too), so that a wrong detail shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.2 * noise)
    return model.eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """`tiny()`, `tiny("deit3_small_patch16_224", depth=2)`: a small timm model with random parameters."""

    def make(name: str = "vit_tiny_patch16_224", **kwargs: object) -> nn.Module:
        return randomised(timm.create_model(name, **{**TINY, **kwargs}))

    return make


@pytest.fixture
def shared() -> Path:
    """The folder of shared data beside the checkout (or `LEANVIT_SHARED`); the test is skipped where there is none."""
    folder = Path(os.environ.get("LEANVIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no shared data beside the checkout (set LEANVIT_SHARED)")
    return folder
