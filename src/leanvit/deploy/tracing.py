"""A model as an exported graph, and the check that its outputs agree with PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from leanvit.tasks import Task, answers_of, shapes_of

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

TOLERANCE = 1e-4  # largest difference of a logit at f32, over the largest logit
TIES = 1e-3  # share of the answers of pixels that may differ at f32, where two classes are nearly equal
DRIFT = 0.1  # int8: norm of the difference over the norm of an image's logits; a broken graph is far beyond
CHECKED_IMAGES = 4


class Logits(nn.Module):
    """Images in, logits out: nothing else of a model's forward is exported. With `pixels`, images come as uint8.

    Of a model that gives a mapping, `heads` names what comes out, in this order.
    """

    def __init__(self, model: nn.Module, pixels: Preprocess | None = None, heads: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.heads = model, tuple(heads)
        device = _device(model)
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values, device=device)[:, None, None]) if values else None
            for values in ((pixels.mean, pixels.std) if pixels else (None, None))
        )

    def forward(self, images: Tensor) -> Any:
        if (
            self.mean is not None and self.std is not None
        ):  # (B, H, W, C) uint8 -> (B, C, H, W), in the order of Preprocess.normalize
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        found = self.model(images)
        return tuple(found[name] for name in self.heads) if self.heads else found


def trace(
    model: nn.Module | OpenModel,
    input_size: Sequence[int],
    batch: int | None,
    *,
    pixels: Preprocess | None = None,
    heads: Sequence[str] = (),
) -> ExportedProgram:
    """The model as one exported graph, images (batch, C, H, W) float32 -> logits. `batch` None: a free dimension.

    With `pixels`, images are (batch, H, W, C) uint8, and the graph begins with this preprocessing's normalisation.
    """
    example = torch.zeros(batch or 2, *input_size, device=_device(model))
    if pixels is not None:
        example = example.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
    dynamic = None if batch else {"images": {0: Dim("batch", min=1, max=65536)}}
    try:
        return torch.export.export(Logits(model, pixels, heads), (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises many kinds; the first line names the operation
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = f"a batch of {batch}" if batch else "any batch"
        raise Refused(f"torch.export cannot follow this model for {kind}: {reason}") from error


Outputs = np.ndarray | Mapping[str, np.ndarray]  # of several heads by name


def compare_logits(want: Outputs, got: Outputs, *, precision: str, task: Task | None = None) -> dict[str, Any]:
    """Differences of two outputs (B, ...): `max_error` over the largest logit, `drift` (norms), `same_answers`.

    `drift` is the median over the images: where a last bit decides which tokens stay, single images differ by more.
    Answers are those of the task, without one the arg-max over axis 1; decisions must be the same, but a few may be
    ties where an image has many (one of each pixel). Of a task that answers in numbers, the outputs alone count, and
    there is no `same_answers`. Of several heads, the worst counts.

    Raises `Refused` where they differ more than the precision allows.
    """
    errors = [_differences(one, other) for one, other in zip(*map(_parts, (want, got)), strict=True)]
    max_error, drift = (max(row[i] for row in errors) for i in (0, 1))
    equal = _equal_decisions(want, got, task)
    same, size = sum(int(one.sum()) for one in equal), sum(one.size for one in equal)
    least = sum(one.size - int(TIES * one.size) if one.ndim > 1 else one.size for one in equal)
    broken = drift > DRIFT if precision == "int8" else max_error > TOLERANCE or same < least
    if broken or not all(np.isfinite(one).all() for one in _parts(got)):
        accepted = f"drift {DRIFT}" if precision == "int8" else f"{TOLERANCE} and {least} answers"
        raise Refused(
            f"the exported {precision} model differs from PyTorch: {max_error:.2e} of the largest logit, drift "
            f"{drift:.2e}, {same} of {size} answers equal (accepted: {accepted})"
        )
    return {"max_error": max_error, "drift": drift, **({"same_answers": same} if equal else {})}


def _parts(outputs: Any) -> list[Any]:
    return list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]


def _differences(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """(largest difference over the largest logit, median over images of the norm of the difference over the norm)."""
    if want.shape != got.shape:
        raise Refused(f"the exported model gives {got.shape}, PyTorch gives {want.shape}")
    difference = np.abs(want - got)
    sizes = np.maximum(np.linalg.norm(want.reshape(len(want), -1), axis=1), 1e-12)
    drift = float(np.median(np.linalg.norm(difference.reshape(len(want), -1), axis=1) / sizes))
    return float(difference.max()) / max(float(np.abs(want).max()), 1e-12), drift


def _equal_decisions(want: Outputs, got: Outputs, task: Task | None) -> list[np.ndarray]:
    """Which answers are the same, an array of truth values for each kind of decision that a task makes."""
    if task is None:
        return [one.argmax(1) == other.argmax(1) for one, other in zip(*map(_parts, (want, got)), strict=True)]
    answers = [_parts(answers_of(task, _tensors(one), len(_parts(one)[0]))) for one in (want, got)]
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in zip(*answers, strict=True)]
    return [one == other for one, other in pairs if one.dtype.kind in "iub" and one.shape == other.shape]


def _tensors(outputs: Outputs) -> Any:
    if isinstance(outputs, Mapping):
        return {name: torch.from_numpy(one) for name, one in outputs.items()}
    return torch.from_numpy(outputs)


def check_arguments(model: nn.Module, preprocess: Preprocess, batch: int | None) -> None:
    """Raise `BadInput` for what `export` does not take."""
    if not isinstance(preprocess, Preprocess):
        raise BadInput(f"preprocess is a {type(preprocess).__name__}; accepted: leanvit.data.Preprocess")
    check("batch", batch, Count | None)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise BadInput(f"the model holds {', '.join(map(str, dtypes))}; accepted: float32, call model.float() first")


def check_outputs(outputs: Outputs, labels: Sequence[str], task: Task | None = None) -> None:
    """Raise `BadInput` for outputs that are not finite, or not what labels and task are of."""
    for logits in _parts(outputs):
        if logits.ndim < 2 and task is None:
            raise BadInput(f"the model gives {logits.shape}; accepted: logits (batch, classes, ...)")
        if not np.isfinite(logits).all():
            raise BadInput("the model's logits are not finite on random images")
    classes = classes_of(outputs)
    if task is not None and task.label_kind and (isinstance(outputs, Mapping) or outputs.ndim != 2):
        raise BadInput(f"the model gives {shapes_of(outputs)}; accepted: logits of {task.words}, (batch, classes)")
    if task is not None:
        answers_of(task, _tensors(outputs), len(_parts(outputs)[0]))
    if labels and classes and (task is None or task.label_kind) and len(labels) != classes:
        raise BadInput(f"labels has {len(labels)} names; the model has {classes} classes")


def classes_of(outputs: Outputs) -> int:
    """How many classes outputs (B, classes, ...) tell apart; 0 where they are several, or have no such axis."""
    return 0 if isinstance(outputs, Mapping) or outputs.ndim < 2 else int(outputs.shape[1])


def random_images(input_size: Sequence[int], batch: int | None, *, pixels: bool) -> Tensor:
    count = -(-CHECKED_IMAGES // batch) * batch if batch else CHECKED_IMAGES - 1  # not the number it was traced with
    keyed = torch.Generator().manual_seed(0)
    if pixels:
        channels, height, width = input_size
        return torch.randint(0, 256, (count, height, width, channels), generator=keyed, dtype=torch.uint8)
    return torch.randn(count, *input_size, generator=keyed)


def on_cpu(model: nn.Module, images: Tensor, batch: int | None) -> Outputs:
    """Its outputs for images, `batch` in a call, float32. Raises `BadInput` where they are no tensors."""
    pieces = [model(piece.to(_device(model))) for piece in images.split(batch or len(images))]
    if isinstance(pieces[0], Mapping):
        return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
    return _joined(pieces)


def _joined(pieces: Sequence[Any]) -> np.ndarray:
    for piece in pieces:
        if not isinstance(piece, Tensor):
            raise BadInput(f"the model gives a {type(piece).__name__}; accepted: one tensor, (batch, classes, ...)")
    return torch.cat([piece.float().cpu() for piece in pieces]).numpy()


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
