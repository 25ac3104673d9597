"""`export`: a run as an artefact of a runtime, its preprocessing inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanvit.deploy import RUNTIMES
from leanvit.deploy import export as export_model
from leanvit.deploy.artefact import JSON_NAME
from leanvit.errors import unknown
from leanvit.verbs.folders import Stopwatch, new_folder, require_whole
from leanvit.verbs.models import Say, load_model, silent

MAX_BATCH = 65536  # the most that `deploy` traces


@dataclass(frozen=True)
class Exported:
    """An artefact on disk."""

    folder: Path
    label: str
    runtime: str
    batch: int | None
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def artefact_folder(run: Path, runtime: str) -> Path:
    """Where a run keeps its artefact of a runtime."""
    return run / "artefacts" / runtime


def export(
    run: str | Path,
    *,
    to: str = "openvino",
    batch: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    say: Say = silent,
    command: str = "",
) -> Exported:
    """Export a run folder or timm name to a runtime.

    Args:
        to: of `leanvit.deploy.RUNTIMES`.
        batch: fixed batch; None: any.
        out: folder of the artefact; default: `artefacts/RUNTIME` in the run folder.

    Raises:
        BadInput: an unknown runtime, or a folder that is not empty.
        Refused: a method of the run cannot be exported, or the artefact differs from the model.
    """
    watch = Stopwatch("export", command)
    if to not in RUNTIMES:
        raise unknown("runtime", to, RUNTIMES)
    if batch is not None:
        require_whole("--batch", batch, least=1, most=MAX_BATCH)
    one = load_model(run, model_args=model_args, pretrained=pretrained, weights=weights, say=say)
    if out is None and one.folder is not None:
        out = artefact_folder(one.folder, to)
    folder = new_folder(out, f"{one.base}-{to}", overwrite=overwrite, holds=(JSON_NAME,))
    say(f"exporting {one.name} to {to}, batch {batch or 'any'}")
    artefact = export_model(
        one.model, folder, to=to, preprocess=one.preprocess, batch=batch, labels=one.classes, overwrite=overwrite
    )
    if one.folder is not None and folder.is_relative_to(one.folder):
        watch.record(one.folder, wrote=str(folder.relative_to(one.folder)))
    return Exported(folder, one.name, to, batch, artefact.size)
