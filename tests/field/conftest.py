"""People's folders, tables, pictures and weights, small: colours give the classes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from leanvit import verbs

SMALL = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
NAME = "vit_tiny_patch16_224"
SETTINGS = {"epochs": 8, "batch_size": 8, "lr": 5e-3, "augment": None}
_COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3))


def picture(kind: int, number: int = 0) -> Image.Image:
    noise = np.random.default_rng(1000 * kind + number).integers(-15, 15, (16, 16, 3))
    return Image.fromarray((_COLOURS[kind] + noise).clip(0, 255).astype(np.uint8))


def folder(root: Path, names: list[str], each: int = 6, ending: str = "png") -> Path:
    """A folder of class folders: the class of that place in `names` has that colour."""
    for kind, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            picture(kind, number).save(root / name / f"{number}.{ending}", "PNG" if ending == "png" else "JPEG")
    return root


def table(file: Path, rows: list[tuple[object, ...]], mark: str = ",") -> Path:
    file.write_text("".join(mark.join(map(str, row)) + "\n" for row in rows))
    return file


def weights(file: Path, held: object) -> Path:
    torch.save(held, file)
    return file


def built(**more: object) -> torch.nn.Module:
    return timm.create_model(NAME, **{**SMALL, "num_classes": 10, **more})


def trained(home: Path, data: Path, **more: object) -> verbs.Trained:
    given = {"settings": SETTINGS, "model_args": SMALL, "adapt": True, **more}
    return verbs.train(NAME, str(data), out=home / "run", **given)


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `data/` of two classes, cat and dog, and `run/`, which knows them."""
    home = tmp_path_factory.mktemp("pets")
    trained(home, folder(home / "data", ["cat", "dog"], each=16))
    return home


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes that are numbers, as folders (`data/`) and as a table (`data.csv`), and `run/`."""
    home = tmp_path_factory.mktemp("numbers")
    folder(home / "data", [str(n) for n in range(12)], each=8)
    paths = [(f"data/{n}/{i}.png", n) for n in range(12) for i in range(8)]
    table(home / "data.csv", [("image", "label"), *paths])
    trained(home, home / "data", settings={**SETTINGS, "epochs": 25, "batch_size": 16})
    return home
