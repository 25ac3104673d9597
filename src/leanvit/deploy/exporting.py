"""The verb `export`: a model becomes an artefact, and is compared with PyTorch before the artefact exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanvit.anatomy.exits.running import Exits
from leanvit.arguments import require_model
from leanvit.data import Preprocess
from leanvit.data.classes import own_names
from leanvit.deploy.artefact import INPUT_TYPES, Artefact, check_target, write_artefact
from leanvit.deploy.runtimes import Call, Options, check_opset, open_runtime, require_runtime, runtime_module, wanted
from leanvit.deploy.segments import export_segments
from leanvit.deploy.tracing import (
    Logits,
    check_arguments,
    check_outputs,
    classes_of,
    compare_logits,
    evaluating,
    on_cpu,
    provenance,
    random_images,
    trace,
)
from leanvit.errors import BadInput, Refused, unknown
from leanvit.tasks import Task, read_task, stated


def export(
    model: nn.Module,
    out: str | Path,
    *,
    to: str = "openvino",
    preprocess: Preprocess | None = None,
    batch: int | None = None,
    input_type: str = "float",
    labels: Sequence[str] | None = None,
    task: Task | str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Artefact:
    """Write a model as an artefact and check it against PyTorch at f32 on random images.

    A model with early exits becomes one graph for each part between them (`deploy.segments`).

    A float model must agree to 1e-4 of its largest logit and in every arg-max. An int8 model rounds: where the two
    runtimes differ in a last bit, a value may fall on the next step, so it is held to a drift that only a broken graph
    passes, and is judged by paired accuracy and agreement on real images (`leanvit.measure.compare`).

    Args:
        model: an opened model, or any module (B, C, H, W) -> (B, classes), or what its task reads: of each pixel
            (B, classes, h, w), of several heads a mapping, which becomes an output by the name of each.
        out: folder to make.
        to: "openvino", "onnx" or "torch".
        preprocess: travels with the artefact and gives the input size.
        batch: images in one call; None: any number (the fixed one is faster).
        input_type: "float" takes what the model takes, (B, C, H, W) float32, normalised; "u8" takes (B, H, W, C) uint8,
            resized and cropped: the normalisation is in the graph.
        labels: class names in the order of the logits; default: the model's own (`model.classes`), else the task's.
        task: what the outputs mean, a task of `leanvit.tasks` or its text, "segmentation"; it travels with the
            artefact and says which answers must agree with PyTorch's. Default: `model.task`; None: the arg-max.
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
    task = _task_of(model, task)
    labels = own_names(model, labels, argument="labels") or (() if task is None else task.classes)
    if isinstance(getattr(model, "exits", None), Exits):
        return export_segments(
            model,
            out,
            to=to,
            preprocess=preprocess,
            batch=batch,
            input_type=input_type,
            labels=labels,
            task=task,
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
        images = random_images(preprocess.input_size, batch, pixels=pixels is not None)
        want = on_cpu(Logits(model, pixels), images, batch)
        heads = _heads_of(want, task, to, labels)
        check_outputs(want, labels, task)
        program = trace(model, preprocess.input_size, batch, pixels=pixels, heads=heads)

    def fill(folder: Path) -> dict[str, Any]:
        runtime.write_files(program, folder, *([heads] if heads else []), **wanted(opset))
        call = open_runtime(to, folder, Options(precision="f32"), heads=bool(heads))
        got = _ran(call, images.split(batch or len(images)), heads)
        check = compare_logits(want, got, precision="int8" if rounded else "f32", task=task)
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
        num_classes=classes_of(want),
        labels=tuple(labels),
        input_type=input_type,
        task=task,
        outputs=heads,
        **provenance(model, to),
    )
    return write_artefact(artefact, fill, overwrite=overwrite)


def _task_of(model: nn.Module, given: Task | str | None) -> Task | None:
    """The task that is given, else the model's own. Raises `BadInput` or `Refused` where the model does not fit it."""
    found = stated(model) if given is None else read_task(given)
    if found is not None:
        found.check("export", model=model)
    return found


def _heads_of(want: Any, task: Task | None, to: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The names of outputs that are a mapping; none where they are one tensor. Raises `Refused`, `BadInput`."""
    if not isinstance(want, Mapping):
        return ()
    heads = ", ".join(map(str, want))
    if task is None:
        raise Refused(
            f"the model gives a mapping ({heads}), and no task says what its outputs mean: give "
            "task=leanvit.tasks.Heads({NAME: ..., ...})"
        )
    if not hasattr(runtime_module(to), "open_outputs"):
        raise Refused(
            f"the model has several heads ({heads}), and the runtime {to} holds one output: use openvino or onnx, or "
            "export one head by itself, model.at(NAME)"
        )
    for name in want:
        if not isinstance(name, str) or not name.isidentifier() or name == "images":
            raise BadInput(f"the model has a head {name!r}; accepted: a Python name, and not that of the input, images")
    if labels:
        raise BadInput(f"labels is given for several heads ({heads}); accepted: none, their tasks name classes")
    return tuple(want)


def _ran(call: Call, pieces: Sequence[Tensor], heads: tuple[str, ...]) -> Any:
    """What a loaded graph gives for pieces of images, as `on_cpu` gives what the model does."""
    if not heads:
        return np.concatenate([np.array(call(piece.numpy())) for piece in pieces])
    found = [[np.array(one) for one in call(piece.numpy())] for piece in pieces]
    return {name: np.concatenate(each) for name, each in zip(heads, zip(*found, strict=True), strict=True)}


def _refuse_segmented(model: nn.Module) -> None:
    history = getattr(model, "history", None)
    kinds = {p.slug: p.method().export for p in history.plans} if history else {}
    segmented = [slug for slug, kind in kinds.items() if kind == "none"]
    if segmented:
        raise Refused(f"{', '.join(segmented)} does not export as one graph")
