"""`export`: a run as an artefact of a runtime, its preprocessing inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from leanvit import knobs
from leanvit.data.preprocess import own_settings
from leanvit.deploy import INPUT_TYPES, require_runtime
from leanvit.deploy import export as export_model
from leanvit.deploy.artefact import JSON_NAME
from leanvit.deploy.runtimes import check_opset
from leanvit.errors import unknown
from leanvit.runs.commands import Stopwatch
from leanvit.runs.folders import new_folder
from leanvit.runs.layout import artefact_folder
from leanvit.runs.locking import locked
from leanvit.tasks import Task, read_task
from leanvit.verbs.models import Log, load_model, silent

Batch = Annotated[int, Ge(1), Le(65536)]  # images a call; the most that `deploy` traces


@dataclass(frozen=True)
class Exported:
    """An artefact on disk."""

    folder: Path
    label: str
    runtime: str
    batch: int | None
    size_bytes: int
    precision: str
    input_type: str
    opset: int | None  # of ONNX
    integer_products: tuple[int, int] | None  # (those that run in integers, all that are counted); None: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def export(
    run: str | Path,
    *,
    to: str = "openvino",
    batch: int | None = None,
    input_type: str = "float",
    task: Task | str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    opset: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    log: Log = silent,
    command: str = "",
) -> Exported:
    """Export a run folder or timm name to a runtime.

    Args:
        to: of `leanvit.deploy.RUNTIMES`.
        batch: fixed batch; None: any.
        input_type: "float" (normalised images) or "u8" (pixels; the normalisation is in the graph).
        opset: of ONNX, 17 to 20; default: PyTorch's choice.
        task: what the outputs mean, a task of `leanvit.tasks` or its text; default: that of the run.
        mean, std, crop_pct, interpolation: preprocessing of a timm name; see `train`.
        out: folder of the artefact; default: `artefacts/RUNTIME` in the run folder.

    Raises:
        BadInput: an unknown runtime or input type, or a folder that is not empty.
        MissingExtra: the runtime is not installed.
        Refused: a method of the run cannot be exported, or the artefact differs from the model.
    """
    watch = Stopwatch("export", command)
    check_opset(opset, to)
    require_runtime(to)
    if input_type not in INPUT_TYPES:
        raise unknown("input type", input_type, INPUT_TYPES)
    knobs.check("--batch", batch, Batch | None)
    told = read_task(task)
    settings = own_settings(mean, std, crop_pct, interpolation)
    one = load_model(
        run, model_args=model_args, pretrained=pretrained, weights=weights, preprocess_settings=settings, log=log
    )
    if told is not None:
        told.check("export", model=one.model)
    if out is None and one.home is not None:
        out = artefact_folder(one.home, to)
    folder = new_folder(out, f"{one.base}-{to}", overwrite=overwrite, holds=(JSON_NAME,), log=log)
    with locked(folder, command=command, log=log, beside=True):
        log(f"exporting {one.name} to {to}, batch {batch or 'any'}")
        artefact = export_model(
            one.model,
            folder,
            to=to,
            preprocess=one.preprocess,
            batch=batch,
            input_type=input_type,
            task=told,
            opset=opset,
            overwrite=overwrite,
        )
    if one.home is not None and folder.is_relative_to(one.home):
        watch.record(one.home, wrote=str(folder.relative_to(one.home)))
    check = artefact.check
    return Exported(
        folder=folder,
        label=one.name,
        runtime=to,
        batch=batch,
        size_bytes=artefact.size,
        precision=artefact.precision,
        input_type=input_type,
        opset=artefact.opset,
        integer_products=(check["integer_products"], check["products"]) if "products" in check else None,
    )
