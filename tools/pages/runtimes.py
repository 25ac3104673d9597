"""Which method reaches which runtime: a table in docs/runtimes.md that is made by doing it.

`make pages` exports a small model with each combination of methods to each
runtime, runs the artefact and compares it with PyTorch on images; a test does the same and holds the file to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from leanvit.anatomy import OpenModel
from leanvit.cards import paper
from leanvit.data import Preprocess, keyed, loader, open_dataset
from leanvit.deploy import RUNTIMES, Artefact, export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Root, compat, compress, create
from leanvit.recipe.learning import Data
from leanvit.recipe.registry import make_method, shaping_methods

BEGIN = "<!-- runtimes: made by `make pages` -->"
END = "<!-- end of runtimes -->"
INT8 = "int8"
HEADINGS = {"openvino": "OpenVINO", "onnx": "ONNX Runtime", "torch": "torch.export"}
EQUAL = 1e-4  # largest difference of a logit at f32, over the largest logit
AGREE = 0.95  # answers that an artefact must share with PyTorch, of all images
IMAGES = 64


@dataclass(frozen=True)
class Cell:
    """What became of one model in one runtime."""

    model: str
    runtime: str
    precision: str  # as the artefact states it; empty: refused
    max_error: float  # largest difference of a logit on the images, over the largest logit
    agreement: float  # answers shared with PyTorch, 0 to 1
    integers: tuple[int, int] | None  # (products in integers, all products), where something runs in integers
    refused: str = ""

    def text(self) -> str:
        """The cell of the table. Figures that differ between machines are left out."""
        if self.refused:
            return f"refused: {self.refused}"
        if self.integers:
            return f"{self.precision}, {self.integers[0]} of {self.integers[1]} products in integers"
        return f"{self.precision}, equal" if self.max_error <= EQUAL else f"{self.precision}, agrees"


def rows() -> list[str]:
    """The rows of the table: methods whose cards give them one, alone, and before int8 where they may stand there."""
    slugs = [slug for slug in shaping_methods() if paper(slug).knobs.exported is not None]
    before_int8 = [slug for slug in slugs if slug != INT8 and compat.cell(slug, INT8).verdict == "yes"]
    return ["dense", *slugs, *(f"{slug} + {INT8}" for slug in before_int8)]


def cells(models: Iterable[str] | None = None, runtimes: Iterable[str] = RUNTIMES) -> list[Cell]:
    """Export each model (default: of all rows) to each runtime, run it, compare it. About two seconds a cell.

    Raises `Refused` if an artefact answers differently from PyTorch on more than 5 % of the images.
    """
    images = _images()
    made = []
    for name in rows() if models is None else models:
        model = build(name)
        with torch.no_grad():
            want = model(images)
        made += [_cell(name, runtime, model, images, want) for runtime in runtimes]
    return made


def build(name: str) -> OpenModel:
    """The small model of a row: one block on 32 x 32 pixels in 4 x 4 patches, random weights, its methods applied."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 1}
    with keyed.global_rng(0, "outlets"):
        model = create(Root("vit_tiny_patch16_224", {**sizes, "in_chans": 1, "num_classes": 10})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    data = Data(open_dataset("digits", "train", limit=100), _PREPROCESS)
    slugs = [] if name == "dense" else name.split(" + ")
    return compress(model, [make_method(slug, paper(slug).knobs.exported or {}) for slug in slugs], data)


def table(made: Iterable[Cell]) -> str:
    """Cells as a markdown table: a row for each model, a column for each runtime."""
    made = list(made)
    runtimes = list(dict.fromkeys(cell.runtime for cell in made))
    lines = ["| methods | " + " | ".join(HEADINGS[o] for o in runtimes) + " |", "|---" * (len(runtimes) + 1) + "|"]
    for name in dict.fromkeys(cell.model for cell in made):
        texts = [next(c.text() for c in made if (c.model, c.runtime) == (name, o)) for o in runtimes]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def renewed(text: str, made: Iterable[Cell]) -> str:
    """The text of docs/runtimes.md with the table between its markers made anew. Raises `BadInput` without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(made)}\n{END}{after}"


_PREPROCESS = Preprocess(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))


def _images() -> torch.Tensor:
    validation = open_dataset("digits", "val", limit=IMAGES)
    return torch.cat([batch.images for batch in loader(validation, _PREPROCESS, batch_size=IMAGES)])


def _cell(name: str, runtime: str, model: OpenModel, images: torch.Tensor, want: torch.Tensor) -> Cell:
    batch = IMAGES if "int8" in name else None  # both kinds of export are walked, the quicker one by half of the rows
    with tempfile.TemporaryDirectory(prefix="leanvit-") as folder:
        try:
            artefact: Artefact = export(model, Path(folder) / "a", to=runtime, preprocess=_PREPROCESS, batch=batch)
        except Refused as error:
            return Cell(name, runtime, "", float("inf"), 0.0, None, str(error))
        got = load_artefact(artefact)(images)
    agreement = float((got.argmax(1) == want.argmax(1)).float().mean())
    if agreement < AGREE:
        raise Refused(f"{name} in {runtime} gives PyTorch's answer for {agreement:.0%} of {len(images)} images only")
    counted = (artefact.check["integer_products"], artefact.check["products"]) if "products" in artefact.check else None
    largest = float((got - want).abs().max() / want.abs().max())
    return Cell(name, runtime, artefact.precision, largest, agreement, counted)
