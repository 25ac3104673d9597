"""The verb `export`: a model becomes an artefact, and is compared with PyTorch before the artefact exists."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from leanvit import __version__
from leanvit.anatomy.exits.running import Exits
from leanvit.data import Preprocess
from leanvit.data.classes import own_names
from leanvit.deploy.artefact import INPUT_TYPES, Artefact, check_target, write_artefact
from leanvit.deploy.running import Options, open_runtime, packages_of, require_runtime, runtime_module
from leanvit.errors import BadInput, Refused, unknown
from leanvit.given import require_model

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

TOLERANCE = 1e-4  # largest difference of a logit at f32, over the largest logit
DRIFT = 0.1  # int8: norm of the difference over the norm of an image's logits; a broken graph is far beyond
CHECKED_IMAGES = 4
OPSETS = (17, 18, 19, 20)  # of ONNX


class _Logits(nn.Module):
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


def export(
    model: nn.Module,
    out: str | Path,
    *,
    to: str = "openvino",
    preprocess: Preprocess | None = None,
    batch: int | None = None,
    input_type: str = "float",
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Artefact:
    """Write a model as an artefact and check it against PyTorch at f32 on random images.

    A model with early exits becomes one graph for each part between them (`deploy.segments`).

    A float model must agree to 1e-4 of its largest logit and in every arg-max. An int8 model rounds: where the two
    runtimes differ in a last bit, a value may fall on the next step, so it is held to a drift that only a broken graph
    passes, and is judged by paired accuracy and agreement on real images (`leanvit.measure.compare`).

    Args:
        model: an opened model, or any module (B, C, H, W) -> (B, classes).
        out: folder to make.
        to: "openvino", "onnx" or "torch".
        preprocess: travels with the artefact and gives the input size.
        batch: images in one call; None: any number (the fixed one is faster).
        input_type: "float" takes what the model takes, (B, C, H, W) float32, normalised; "u8" takes (B, H, W, C) uint8,
            resized and cropped: the normalisation is in the graph.
        labels: class names in the order of the logits; default: the model's own (`model.classes`).
        multi_label: whether each class is a question by itself; it travels with the artefact, for `predict`.
            Default: as the model says (`model.multi_label`).
        opset: of ONNX, 17 to 20; None: PyTorch's choice. `operators.json` beside the graph lists what it uses.
        overwrite: replace an artefact that is there.

    Raises:
        BadInput: an argument is not what is accepted (checked before any work).
        MissingExtra: the runtime's packages are not installed (named with the pip command).
        Refused: the model cannot be exported whole, or the result differs from PyTorch (nothing is left on disk).
    """
    require_model(model)
    if preprocess is None:
        raise BadInput(
            "preprocess is missing: it travels with the artefact. leanvit.recipe.load_run(PATH).preprocess is that of "
            "a run, leanvit.Preprocess.of(model) that of a timm model"
        )
    labels = own_names(model, labels, argument="labels")
    multi_label = bool(getattr(model, "multi_label", False)) if multi_label is None else multi_label
    if isinstance(getattr(model, "exits", None), Exits):
        from leanvit.deploy.segments import export_segments

        return export_segments(
            model,
            out,
            to=to,
            preprocess=preprocess,
            batch=batch,
            input_type=input_type,
            labels=labels,
            multi_label=multi_label,
            opset=opset,
            overwrite=overwrite,
        )
    out = Path(out)
    check_opset(opset, to)
    require_runtime(to)
    if input_type not in INPUT_TYPES:
        raise unknown("input type", str(input_type), INPUT_TYPES)
    check_arguments(model, preprocess, batch)
    _refuse_segmented(model)
    check_target(out, overwrite=overwrite)
    rounded = not getattr(getattr(model, "ops", None), "float_weights", True)
    runtime = runtime_module(to)
    pixels = preprocess if input_type == "u8" else None
    with evaluating(model), torch.no_grad():
        program = trace(model, preprocess.input_size, batch, pixels=pixels)
        images = random_images(preprocess.input_size, batch, pixels=pixels is not None)
        whole = _Logits(model, pixels)
        want = torch.cat([_on_cpu(whole, piece) for piece in images.split(batch or len(images))]).numpy()
    check_logits(want, labels)

    def fill(folder: Path) -> dict[str, Any]:
        runtime.write_files(program, folder, **wanted(opset))
        call = open_runtime(to, folder, Options(precision="f32"))
        got = np.concatenate([np.array(call(piece.numpy())) for piece in images.split(batch or len(images))])
        check = compare_logits(want, got, precision="int8" if rounded else "f32")
        products = runtime.integer_products(folder) if rounded else None
        counted = {"integer_products": products[0], "products": products[1]} if products else {}
        version_of = {"opset": runtime.opset_of(folder)} if to == "onnx" else {}
        return {**check, "images": len(images), "at": "f32", **counted, **version_of}

    artefact = Artefact(
        path=out,
        runtime=to,
        precision=runtime.INT8 if rounded else "f32",
        batch=batch,
        preprocess=preprocess,
        num_classes=want.shape[1],
        labels=tuple(labels),
        input_type=input_type,
        multi_label=multi_label,
        **provenance(model, to),
    )
    return write_artefact(artefact, fill, overwrite=overwrite)


def check_opset(opset: int | None, to: str) -> None:
    """Raise `BadInput` unless an opset is one that ONNX files are written in, and asked of them."""
    if opset is None:
        return
    if to != "onnx":
        raise BadInput(f"opset is {opset!r}, which ONNX has, but the runtime is {to}; leave it out, or export to onnx")
    if isinstance(opset, bool) or opset not in OPSETS:
        raise BadInput(f"opset is {opset!r}; accepted: {', '.join(map(str, OPSETS))}")


def wanted(opset: int | None) -> dict[str, Any]:
    """What `write_files` of a runtime is told of the opset: only ONNX's has one."""
    return {} if opset is None else {"opset": opset}


def provenance(model: nn.Module, runtime: str) -> dict[str, Any]:
    """Fields of an artefact that say where it comes from: root, methods, versions."""
    history = getattr(model, "history", None)
    return {
        "root": history.root.name if history else "",
        "methods": tuple(plan.slug for plan in history.plans) if history else (),
        "made_with": {name: version(name) for name in ("torch", "timm", *packages_of(runtime))}
        | {"leanvit": __version__},
    }


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
        return torch.export.export(_Logits(model, pixels), (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises many kinds; the first line says which operation it was
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = f"a batch of {batch}" if batch else "any batch"
        raise Refused(f"torch.export cannot follow this model for {kind}: {reason}") from error


def compare_logits(want: np.ndarray, got: np.ndarray, *, precision: str) -> dict[str, Any]:
    """Differences of two logits (B, classes): `max_error` over the largest logit, `drift` (norms), `same_answers`.

    `drift` is the median over the images: where a last bit decides which tokens stay, single images differ by more.

    Raises `Refused` where they differ more than the precision allows.
    """
    if want.shape != got.shape:
        raise Refused(f"the exported model gives {got.shape}, PyTorch gives {want.shape}")
    difference = np.abs(want - got)
    max_error = float(difference.max()) / max(float(np.abs(want).max()), 1e-12)
    sizes = np.maximum(np.linalg.norm(want, axis=1), 1e-12)
    drift = float(np.median(np.linalg.norm(difference, axis=1) / sizes))
    same = int((want.argmax(1) == got.argmax(1)).sum())
    broken = drift > DRIFT if precision == "int8" else max_error > TOLERANCE or same < len(want)
    if broken or not np.isfinite(got).all():
        accepted = f"drift {DRIFT}" if precision == "int8" else f"{TOLERANCE} and all answers"
        raise Refused(
            f"the exported {precision} model differs from PyTorch: {max_error:.2e} of the largest logit, drift "
            f"{drift:.2e}, {same} of {len(want)} answers equal (accepted: {accepted})"
        )
    return {"max_error": max_error, "drift": drift, "same_answers": same}


def check_arguments(model: nn.Module, preprocess: Preprocess, batch: int | None) -> None:
    """Raise `BadInput` for what `export` does not take."""
    if not isinstance(preprocess, Preprocess):
        raise BadInput(f"preprocess is a {type(preprocess).__name__}; accepted: leanvit.data.Preprocess")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise BadInput(f"batch is {batch!r}; accepted: None (any number), or 1 and more")
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise BadInput(f"the model holds {', '.join(map(str, dtypes))}; accepted: float32, call model.float() first")


def _refuse_segmented(model: nn.Module) -> None:
    history = getattr(model, "history", None)
    kinds = {p.slug: p.method().export for p in history.plans} if history else {}
    segmented = [slug for slug, kind in kinds.items() if kind == "none"]
    if segmented:
        raise Refused(f"{', '.join(segmented)} does not export as one graph")


def check_logits(logits: np.ndarray, labels: Sequence[str]) -> None:
    if logits.ndim != 2:
        raise BadInput(f"the model gives {logits.shape}; accepted: logits (batch, classes)")
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


def _on_cpu(model: nn.Module, images: Tensor) -> Tensor:
    return model(images.to(_device(model))).float().cpu()


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
