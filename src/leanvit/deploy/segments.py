"""Models with early exits as artefacts: a graph for each part between exits, and a loop around them on the host.

`segment-<i>/` holds graph i: what enters it (images, later tokens) -> logits of exit i, and the tokens that go on. The
loop asks the rule behind each graph and runs the next one on the images that stay, so nothing is computed for those
that left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from leanvit.anatomy.exits.rules import check_rule
from leanvit.anatomy.exits.running import ExitPolicy, leave, segments
from leanvit.data import Preprocess
from leanvit.deploy.artefact import INPUT_TYPES, Artefact, check_target, write_artefact
from leanvit.deploy.running import Runner
from leanvit.deploy.runtimes import Options, check_opset, require_runtime, runtime_module, wanted
from leanvit.deploy.tracing import (
    Logits,
    check_arguments,
    check_outputs,
    compare_logits,
    evaluating,
    provenance,
    random_images,
)
from leanvit.errors import BadInput, CheckpointError, Refused, unknown
from leanvit.tasks import Task

Call = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def export_segments(
    model: Any,
    out: str | Path,
    *,
    to: str,
    preprocess: Preprocess,
    batch: int | None,
    input_type: str,
    labels: Sequence[str],
    overwrite: bool,
    task: Task | None = None,
    opset: int | None = None,
) -> Artefact:
    """`deploy.export` of a model with exits. Every exit's logits are compared with PyTorch's, and the end's.

    Raises:
        BadInput, MissingExtra: see `deploy.export`; a fixed batch of more than 1 (those that stay are fewer).
        Refused: a torch archive, which holds one graph; a part that cannot be exported, or that differs from PyTorch.
    """
    out = Path(out)
    check_opset(opset, to)
    require_runtime(to)
    runtime = runtime_module(to)
    if not hasattr(runtime, "open_outputs"):
        raise Refused(
            f"a model with early exits is several graphs, and the runtime {to} holds one: use openvino or onnx"
        )
    if input_type not in INPUT_TYPES:
        raise unknown("input type", str(input_type), INPUT_TYPES)
    check_arguments(model, preprocess, batch)
    if batch not in (None, 1):
        raise BadInput(
            f"batch is {batch}; a model with early exits goes on with fewer images: accepted: none (any), or 1"
        )
    check_target(out, overwrite=overwrite)
    rounded = not model.float_weights
    pixels = preprocess if input_type == "u8" else None
    with evaluating(model), torch.no_grad():
        parts: list[nn.Module] = list(segments(model))
        parts[0] = Logits(parts[0], pixels)
        images = random_images(preprocess.input_size, batch, pixels=pixels is not None)
        device = next(model.parameters()).device
        entering, want = [], []
        x = images.to(device)
        for part in parts:
            entering.append(x)
            logits, x = _split(part(x))
            want.append(logits.float().cpu().numpy())
        check_outputs(want[-1], labels, task)
        programs = [_trace(part, x, batch) for part, x in zip(parts, entering, strict=True)]

    def fill(folder: Path) -> dict[str, Any]:
        for i, program in enumerate(programs):
            part = _folder(folder, i)
            part.mkdir()
            outputs = ("logits", "tokens") if i < len(programs) - 1 else ("logits",)
            runtime.write_files(program, part, outputs, **wanted(opset))
        calls = [runtime.open_outputs(_folder(folder, i), Options(precision="f32")) for i in range(len(programs))]
        got = [_chained(calls, piece.numpy()) for piece in images.split(batch or len(images))]
        precision = "int8" if rounded else "f32"
        found = [
            compare_logits(one, np.concatenate([piece[i] for piece in got]), precision=precision, task=task)
            for i, one in enumerate(want)
        ]
        worst = {"max_error": max, "drift": max, "same_answers": min}
        check: dict[str, Any] = {key: worst[key](row[key] for row in found) for key in found[0]}
        check |= {"images": len(images), "at": "f32"}
        counts = [runtime.integer_products(_folder(folder, i)) for i in range(len(programs))] if rounded else []
        if counts and all(counts):
            check |= {"integer_products": sum(c[0] for c in counts), "products": sum(c[1] for c in counts)}
        return check | ({"opset": runtime.opset_of(_folder(folder, 0))} if to == "onnx" else {})

    policy: ExitPolicy = model.exits.policy
    if policy.rule is None:
        raise BadInput("the model's exits have no rule: nobody would leave")
    artefact = Artefact(
        path=out,
        runtime=to,
        precision=runtime.INT8 if rounded else "f32",
        batch=batch,
        preprocess=preprocess,
        num_classes=want[-1].shape[1],
        labels=tuple(labels),
        input_type=input_type,
        task=task,
        segments={
            "layers": list(policy.layers),
            "depth": policy.depth,
            **policy.rule.to_json(),
            "thresholds": [float(t) for t in policy.rule.thresholds],
            "macs": list(policy.macs),
        },
        **provenance(model, to),
    )
    return write_artefact(artefact, fill, overwrite=overwrite)


def _folder(artefact: Path, number: int) -> Path:
    return artefact / f"segment-{number}"


def _split(given: Any) -> tuple[Tensor, Any]:
    """(logits, what goes on): the last part gives logits alone."""
    return given if isinstance(given, tuple) else (given, None)


def _trace(part: nn.Module, x: Tensor, batch: int | None) -> ExportedProgram:
    """A part as an exported graph; it is traced with another number of images than it is checked with."""
    example = x[:1].expand(batch or 2, *x.shape[1:]).contiguous()
    dynamic = None if batch else ({0: Dim("batch", min=1, max=65536)},)
    try:
        return torch.export.export(part, (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises many kinds; the first line names the operation
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"torch.export cannot follow a part of this model: {reason}") from error


def _chained(calls: Sequence[Call], x: np.ndarray) -> list[np.ndarray]:
    """Logits of every part, each fed by the one before."""
    found = []
    for call in calls:
        given = call(x)
        found.append(np.array(given[0]))
        x = given[-1]
    return found


class SegmentsRunner(Runner):
    """A loaded artefact of several graphs: like any other, but images leave behind the exit that is sure of them.

    `exits.recording()` gives where they left; `exits.rule` may be another one of as many thresholds.
    """

    def __init__(self, artefact: Artefact, calls: Sequence[Call], options: Options) -> None:
        super().__init__(artefact, lambda x: np.empty(0), options)
        cut = artefact.segments
        assert cut is not None
        thresholds = [int(t) if cut["rule"] == "patience" else t for t in cut["thresholds"]]
        try:
            rule = check_rule(cut["rule"], thresholds, cut["patience"], len(cut["layers"]))
        except BadInput as error:
            raise CheckpointError(f"{artefact.path}: {error}") from error
        self.exits = ExitPolicy(cut["layers"], cut["depth"], rule, cut["macs"])
        self._parts = [_part(call) for call in calls]

    def _piece(self, x: np.ndarray) -> np.ndarray:
        logits, at, _ = leave(x, self._parts, self.exits.rule, _stay)
        self.exits.note(at)
        return logits.numpy()


def _part(call: Call) -> Any:
    def run(x: np.ndarray) -> tuple[Tensor, np.ndarray]:
        given = call(x)
        return torch.from_numpy(np.array(given[0])), given[-1]  # a copy: runtimes reuse their output memory

    return run


def _stay(x: np.ndarray, index: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x[index.numpy()])


def open_segments(artefact: Artefact, options: Options) -> SegmentsRunner:
    """Load the graphs of an artefact that was verified. Raises `CheckpointError` where one is missing."""
    assert artefact.segments is not None
    runtime = runtime_module(artefact.runtime)
    count = len(artefact.segments["layers"]) + 1
    for i in range(count):
        if not any(name.startswith(f"segment-{i}/") for name in artefact.files):
            raise CheckpointError(f"{artefact.path}: segment-{i} is missing, of {count}")
    calls = [runtime.open_outputs(_folder(artefact.path, i), options) for i in range(count)]
    return SegmentsRunner(artefact, calls, options)
