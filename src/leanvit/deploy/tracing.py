"""A model as an exported graph, and the check that its outputs agree with PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from leanvit import __version__
from leanvit.data import Preprocess
from leanvit.deploy.runtimes import packages_of
from leanvit.errors import BadInput, Refused
from leanvit.knobs import Count, check

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

TOLERANCE = 1e-4  # largest difference of a logit at f32, over the largest logit
TIES = 1e-3  # share of the answers of pixels that may differ at f32, where two classes are nearly equal
DRIFT = 0.1  # int8: norm of the difference over the norm of an image's logits; a broken graph is far beyond
CHECKED_IMAGES = 4


class Logits(nn.Module):
    """Images in, logits out: nothing else of a model's forward is exported. With `pixels`, images come as uint8."""

    def __init__(self, model: nn.Module, pixels: Preprocess | None = None) -> None:
        super().__init__()
        self.model = model
        device = _device(model)
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values, device=device)[:, None, None]) if values else None
            for values in ((pixels.mean, pixels.std) if pixels else (None, None))
        )

    def forward(self, images: Tensor) -> Tensor:
        if (
            self.mean is not None and self.std is not None
        ):  # (B, H, W, C) uint8 -> (B, C, H, W), in the order of Preprocess.normalize
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.model(images)


def trace(
    model: nn.Module | OpenModel, input_size: Sequence[int], batch: int | None, *, pixels: Preprocess | None = None
) -> ExportedProgram:
    """The model as one exported graph, images (batch, C, H, W) float32 -> logits. `batch` None: a free dimension.

    With `pixels`, images are (batch, H, W, C) uint8, and the graph begins with this preprocessing's normalisation.
    """
    example = torch.zeros(batch or 2, *input_size, device=_device(model))
    if pixels is not None:
        example = example.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
    dynamic = None if batch else {"images": {0: Dim("batch", min=1, max=65536)}}
    try:
        return torch.export.export(Logits(model, pixels), (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises many kinds; the first line names the operation
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = f"a batch of {batch}" if batch else "any batch"
        raise Refused(f"torch.export cannot follow this model for {kind}: {reason}") from error


def compare_logits(want: np.ndarray, got: np.ndarray, *, precision: str) -> dict[str, Any]:
    """Differences of two logits (B, classes, ...): `max_error` over the largest logit, `drift` (norms), `same_answers`.

    `drift` is the median over the images: where a last bit decides which tokens stay, single images differ by more. An
    answer is the arg-max over the classes: one of an image, or one of each pixel, of which a few may be ties.

    Raises `Refused` where they differ more than the precision allows.
    """
    if want.shape != got.shape:
        raise Refused(f"the exported model gives {got.shape}, PyTorch gives {want.shape}")
    difference = np.abs(want - got)
    max_error = float(difference.max()) / max(float(np.abs(want).max()), 1e-12)
    sizes = np.maximum(np.linalg.norm(want.reshape(len(want), -1), axis=1), 1e-12)
    drift = float(np.median(np.linalg.norm(difference.reshape(len(want), -1), axis=1) / sizes))
    equal = want.argmax(1) == got.argmax(1)
    same, least = int(equal.sum()), equal.size - int(TIES * equal.size) if equal.ndim > 1 else equal.size
    broken = drift > DRIFT if precision == "int8" else max_error > TOLERANCE or same < least
    if broken or not np.isfinite(got).all():
        accepted = f"drift {DRIFT}" if precision == "int8" else f"{TOLERANCE} and {least} answers"
        raise Refused(
            f"the exported {precision} model differs from PyTorch: {max_error:.2e} of the largest logit, drift "
            f"{drift:.2e}, {same} of {equal.size} answers equal (accepted: {accepted})"
        )
    return {"max_error": max_error, "drift": drift, "same_answers": same}


def check_arguments(model: nn.Module, preprocess: Preprocess, batch: int | None) -> None:
    """Raise `BadInput` for what `export` does not take."""
    if not isinstance(preprocess, Preprocess):
        raise BadInput(f"preprocess is a {type(preprocess).__name__}; accepted: leanvit.data.Preprocess")
    check("batch", batch, Count | None)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise BadInput(f"the model holds {', '.join(map(str, dtypes))}; accepted: float32, call model.float() first")


def check_logits(logits: np.ndarray, labels: Sequence[str]) -> None:
    if logits.ndim < 2:
        raise BadInput(f"the model gives {logits.shape}; accepted: logits (batch, classes, ...)")
    if not np.isfinite(logits).all():
        raise BadInput("the model's logits are not finite on random images")
    if labels and len(labels) != logits.shape[1]:
        raise BadInput(f"labels has {len(labels)} names; the model has {logits.shape[1]} classes")


def random_images(input_size: Sequence[int], batch: int | None, *, pixels: bool) -> Tensor:
    count = -(-CHECKED_IMAGES // batch) * batch if batch else CHECKED_IMAGES - 1  # not the number it was traced with
    keyed = torch.Generator().manual_seed(0)
    if pixels:
        channels, height, width = input_size
        return torch.randint(0, 256, (count, height, width, channels), generator=keyed, dtype=torch.uint8)
    return torch.randn(count, *input_size, generator=keyed)


def on_cpu(model: nn.Module, images: Tensor) -> Tensor:
    """Its output for images, float32. Raises `BadInput` where that is no tensor."""
    output = model(images.to(_device(model)))
    if not isinstance(output, Tensor):
        raise BadInput(f"the model gives a {type(output).__name__}; accepted: one tensor, (batch, classes, ...)")
    return output.float().cpu()


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


class evaluating:
    """Eval mode inside; every submodule gets its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]

    def __enter__(self) -> None:
        for module, _ in self.modes:
            module.training = False

    def __exit__(self, *exc: object) -> None:
        for module, training in self.modes:
            module.training = training


def provenance(model: nn.Module, runtime: str) -> dict[str, Any]:
    """Provenance fields of an artefact: root, methods, versions."""
    history = getattr(model, "history", None)
    return {
        "root": history.root.name if history else "",
        "methods": tuple(plan.slug for plan in history.plans) if history else (),
        "made_with": {name: version(name) for name in ("torch", "timm", *packages_of(runtime))}
        | {"leanvit": __version__},
    }
