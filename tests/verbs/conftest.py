"""A tiny run in two stages, published as the reference `leanvit/tiny`; made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_stages import ARGS, LIMIT, Stages

from leanvit.recipe import catalogue
from leanvit.verbs import publish, train


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("stages")
    first, second = folder / "a", folder / "b"
    typed = f"leanvit train vit_tiny_patch16_224 --data digits --out {first}"
    train(
        "vit_tiny_patch16_224",
        "digits",
        adapt=True,
        model_args=ARGS,
        settings={"epochs": 12, "batch_size": 20, "lr": 2e-3},
        limit=LIMIT,
        out=first,
        command=typed,
    )
    settings = {"epochs": 2, "batch_size": 20, "lr": 1e-4, "train_mode": "eval"}
    train(first, "digits", settings=settings, limit=LIMIT, out=second, command=f"leanvit train {first} --out {second}")
    published = publish(
        second,
        "digits",
        folder / "references" / "tiny",
        title="A tiny ViT",
        presets=["tiny", "tiny_finish"],
        licence="Apache-2.0",
        trained_on="a machine",
        limit=LIMIT,
        command=f"leanvit publish {second} --data digits",
    )
    return Stages(first, second, published)


@pytest.fixture
def named(stages: Stages, tmp_path: Path, monkeypatch) -> Stages:
    """`leanvit/tiny` is a reference; the working directory is empty."""
    monkeypatch.setattr(catalogue, "FOLDER", stages.published.folder.parent)
    monkeypatch.chdir(tmp_path)
    return stages
