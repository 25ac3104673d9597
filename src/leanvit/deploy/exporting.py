"""The verb `export`: a model becomes an artefact, and is compared with PyTorch before the artefact exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leanvit.anatomy.exits.running import Exits
from leanvit.arguments import require_model
from leanvit.data import Preprocess
from leanvit.data.classes import own_names
from leanvit.deploy.artefact import INPUT_TYPES, Artefact, check_target, write_artefact
from leanvit.deploy.runtimes import Options, check_opset, open_runtime, require_runtime, runtime_module, wanted
from leanvit.deploy.segments import export_segments
from leanvit.deploy.tracing import (
    Logits,
    check_arguments,
    check_logits,
    compare_logits,
    evaluating,
    on_cpu,
    provenance,
    random_images,
    trace,
)
from leanvit.errors import BadInput, Refused, unknown


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
        model: an opened model, or any module (B, C, H, W) -> (B, classes), or of each pixel (B, classes, h, w).
        out: folder to make.
        to: "openvino", "onnx" or "torch".
        preprocess: travels with the artefact and gives the input size.
        batch: images in one call; None: any number (the fixed one is faster).
        input_type: "float" takes what the model takes, (B, C, H, W) float32, normalised; "u8" takes (B, H, W, C) uint8,
            resized and cropped: the normalisation is in the graph.
        labels: class names in the order of the logits; default: the model's own (`model.classes`).
        multi_label: whether each class is a question by itself; it travels with the artefact, for `predict`.
            Default: `model.multi_label`.
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
    multi_label = (
        getattr(getattr(model, "task", None), "label_kind", "") == "several" if multi_label is None else multi_label
    )
    if isinstance(getattr(model, "exits", None), Exits):
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
    ops = getattr(model, "ops", None)
    rounded = not getattr(model, "float_weights", getattr(ops, "float_weights", True))
    runtime = runtime_module(to)
    pixels = preprocess if input_type == "u8" else None
    with evaluating(model), torch.no_grad():
        program = trace(model, preprocess.input_size, batch, pixels=pixels)
        images = random_images(preprocess.input_size, batch, pixels=pixels is not None)
        whole = Logits(model, pixels)
        want = torch.cat([on_cpu(whole, piece) for piece in images.split(batch or len(images))]).numpy()
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


def _refuse_segmented(model: nn.Module) -> None:
    history = getattr(model, "history", None)
    kinds = {p.slug: p.method().export for p in history.plans} if history else {}
    segmented = [slug for slug, kind in kinds.items() if kind == "none"]
    if segmented:
        raise Refused(f"{', '.join(segmented)} does not export as one graph")
