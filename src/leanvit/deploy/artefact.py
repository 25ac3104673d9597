"""The folder that a deployed model is: the files of its runtime and `artefact.json`, written whole or not at all.

`artefact.json` holds what a user of the model must know: runtime, precision, batch, preprocessing with its fingerprint,
class names, versions, and the sha256 of every file. The seal is the sha256 of all the rest of it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError
from leanvit.files import Sealed, check_sha256, file_sha256, plain_name, read_sealed, sealed_text
from leanvit.tasks import Task, of_record

KIND = "leanvit-artefact"
FORMAT = 5  # 1 had no input_type, 2 no segments, 3 no multi_label, 4 no task
LABELS = 4  # what an artefact of several labels an image is written as
CUT = 3  # what an artefact of several graphs is written as
WHOLE = 2  # what an artefact of one graph is written as
JSON_NAME = "artefact.json"
RUNTIMES = ("openvino", "onnx", "torch")
INPUT_TYPES = ("float", "u8")


@dataclass(frozen=True)
class Artefact:
    """A deployed model on disk."""

    path: Path
    runtime: str  # one of RUNTIMES
    precision: str  # of weights and products: "f32", "int8", or "int8 simulated" (rounded values, float products)
    batch: int | None  # images in one call; None: any number
    preprocess: Preprocess
    num_classes: int  # of the outputs (B, classes, ...); 0: the outputs are several, or have no such axis
    labels: tuple[str, ...]  # class names in the order of the logits; empty: not known
    root: str  # timm name of the model that it was made from; empty: not known
    methods: tuple[str, ...]  # slugs of what was applied to it
    check: dict[str, Any] = field(default_factory=dict)  # what was measured against PyTorch when it was written
    made_with: dict[str, str] = field(default_factory=dict)  # package -> version
    segments: dict[str, Any] | None = None  # of a model with early exits: a graph an exit; `deploy/segments.py` has it
    task: Task | None = None  # what the outputs mean; None: one class an image
    outputs: tuple[str, ...] = ()  # names of the heads, of a graph with several outputs
    input_type: str = "float"  # "float": (B, C, H, W) float32, normalised; "u8": (B, H, W, C) uint8, framed
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256
    seal: str = ""

    @property
    def size(self) -> int:
        """Bytes of the runtime's files."""
        return sum((self.path / name).stat().st_size for name in self.files)

    @property
    def opset(self) -> int | None:
        """Of ONNX; None for the other runtimes, and for artefacts that an older leanvit made."""
        return self.check.get("opset")


class Segments(BaseModel):
    """A model that is cut behind its exits: graph i, in `segment-<i>/`, gives the logits of exit i and the tokens that
    graph i + 1 takes; the last one those of the network."""

    model_config = ConfigDict(extra="forbid", strict=True)
    layers: list[int]  # blocks passed at each exit
    depth: int
    rule: str
    thresholds: list[float]
    patience: int
    macs: list[int]  # of an image that leaves at each exit, and at the end


class _File(Sealed):
    runtime: Literal["openvino", "onnx", "torch"]
    precision: str
    batch: int | None
    input: list[int]  # (C, H, W)
    input_type: Literal["float", "u8"] = "float"
    segments: Segments | None = None
    multi_label: bool = False
    task: dict[str, Any] | None = None
    outputs: list[str] | None = None
    preprocess: dict[str, Any]
    fingerprint: str
    num_classes: int
    labels: list[str]
    root: str
    methods: list[str]
    check: dict[str, Any]
    made_with: dict[str, str]
    files: dict[str, str]


def write_artefact(artefact: Artefact, fill: Callable[[Path], dict[str, Any]], *, overwrite: bool = False) -> Artefact:
    """Write the folder `artefact.path`: `fill(folder)` puts the runtime's files there and returns what it checked.

    The work is done in a folder beside, which is renamed when it is complete: what was there stays if anything fails.

    Raises:
        BadInput: the path is taken (and `overwrite` is not set, or it is not an artefact), or cannot be written.
    """
    path = artefact.path
    check_target(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        check = fill(temporary)
        inside = sorted(file for file in temporary.rglob("*") if file.is_file())
        files = {file.relative_to(temporary).as_posix(): file_sha256(file) for file in inside}
        content = _content(artefact, check, files)
        (temporary / JSON_NAME).write_bytes(sealed_text(content))
        os.chmod(temporary, 0o755)
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_artefact(path)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `BadInput` unless an artefact may be written at this path."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / JSON_NAME).is_file():
        raise BadInput(f"{path} exists and is not an artefact; accepted: a new path, or an artefact to overwrite")
    if not overwrite:
        raise BadInput(f"{path} holds an artefact already: give another path, or overwrite")


def _swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another. A kill between the two renames leaves both, under other names."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    path.rename(old / path.name)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _content(artefact: Artefact, check: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    cut = {} if artefact.segments is None else {"segments": artefact.segments}
    task = {} if artefact.task is None else artefact.task.recorded()
    heads = {"outputs": list(artefact.outputs)} if artefact.outputs else {}
    return {
        "kind": KIND,
        # an older leanvit reads what it can read rightly
        "format": FORMAT if heads or "task" in task else LABELS if task else CUT if cut else WHOLE,
        **cut,
        **task,
        **heads,
        "runtime": artefact.runtime,
        "precision": artefact.precision,
        "batch": artefact.batch,
        "input": list(artefact.preprocess.input_size),
        "input_type": artefact.input_type,
        "preprocess": artefact.preprocess.to_json(),
        "fingerprint": artefact.preprocess.fingerprint(),
        "num_classes": artefact.num_classes,
        "labels": list(artefact.labels),
        "root": artefact.root,
        "methods": list(artefact.methods),
        "check": check,
        "made_with": artefact.made_with,
        "files": files,
    }


def read_artefact(path: str | Path) -> Artefact:
    """Read and verify an artefact's folder; nothing is loaded into a runtime.

    Raises:
        BadInput: there is no artefact at this path.
        CheckpointError: it is truncated, changed, foreign, or from a newer leanvit.
    """
    path = Path(path)
    file = _parsed(path)
    try:
        preprocess = Preprocess.from_json(file.preprocess)
        task = of_record({"multi_label": file.multi_label, "task": file.task})
    except BadInput as error:
        raise CheckpointError(f"{path / JSON_NAME}: {error}") from error
    if preprocess.fingerprint() != file.fingerprint or list(preprocess.input_size) != file.input:
        raise CheckpointError(f"{path / JSON_NAME}: the preprocessing is not the one that the artefact was made with")
    for name, digest in file.files.items():
        check_sha256(_member(path, name), digest)
    return Artefact(
        path=path,
        runtime=file.runtime,
        precision=file.precision,
        batch=file.batch,
        preprocess=preprocess,
        num_classes=file.num_classes,
        labels=tuple(file.labels),
        root=file.root,
        methods=tuple(file.methods),
        check=file.check,
        made_with=file.made_with,
        segments=None if file.segments is None else file.segments.model_dump(),
        input_type=file.input_type,
        task=task,
        outputs=tuple(file.outputs or ()),
        files=file.files,
        seal=file.seal,
    )


def _member(path: Path, name: str) -> Path:
    """A file of the artefact: beside its JSON, or in the folder of a segment."""
    folder, slash, rest = name.partition("/")
    if slash and re.fullmatch(r"segment-\d{1,3}", folder):
        return plain_name(path / folder, rest)
    return plain_name(path, name)


def _parsed(path: Path) -> _File:
    name = path / JSON_NAME
    if not name.is_file():
        hint = ". It is a run: export it first (leanvit export)" if (path / "leanvit.json").is_file() else ""
        raise BadInput(f"{path} holds no artefact: there is no {JSON_NAME} in it{hint}")
    return read_sealed(name, _File, kind=KIND, newest=FORMAT, changed="Export the model again")
