"""Save and load runs: `leanvit.json` (root, plans, preprocessing) beside safetensors weights. Nothing is unpickled.

The JSON names its weights file by content, is written last and atomically: a folder is always whole, old or new.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from leanvit import __version__
from leanvit.anatomy import OpenViT
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused, nearest
from leanvit.recipe.history import History, Root, replay
from leanvit.recipe.method import Plan

if TYPE_CHECKING:
    from leanvit.data import Preprocess

FORMAT = 1
JSON_NAME = "leanvit.json"
_JSON_LIMIT = 16 * 2**20  # bytes; the largest plan we know is under one


@dataclass(frozen=True)
class Run:
    """A loaded run folder."""

    model: OpenViT
    path: Path
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)  # versions it was made with, and the like


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RootFile(_Strict):
    name: str
    kwargs: dict[str, Any]


class _PlanFile(_Strict):
    slug: str
    knobs: dict[str, Any]
    structure: dict[str, Any]


class _WeightsFile(_Strict):
    file: str
    sha256: str


class _RunFile(_Strict):
    kind: Literal["leanvit-run"]
    format: int
    root: _RootFile
    plans: list[_PlanFile]
    weights: _WeightsFile
    preprocess: dict[str, Any] | None = None
    classes: list[str] = []
    info: dict[str, Any] = {}
    seal: str  # sha256 of everything else in the file


def save(
    model: OpenViT,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    info: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run folder. Other files in the folder are left alone.

    Args:
        model: an opened model with a history (from `compress`, `load` or `create`).
        preprocess: how images are prepared for it; it travels with the run.
        classes: class names in the order of the logits.
        info: more JSON to keep (data spec, command, ...).
        overwrite: replace a run that is already there.

    Raises:
        Refused: the history does not rebuild the model (checked before anything is written).
        BadInput: there is a run already, or the path is not a folder that can be written.
    """
    path = Path(path)
    if (path / JSON_NAME).exists() and not overwrite:
        raise BadInput(f"{path} holds a run already: give another path, or overwrite")
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file; accepted: a folder, or a path where one can be made")
    history = _proven_history(model)
    try:
        path.mkdir(parents=True, exist_ok=True)
        weights = _write_weights(model, path)
        written = {
            "kind": "leanvit-run",
            "format": FORMAT,
            "root": history.root.to_json(),
            "plans": [plan.to_json() for plan in history.plans],
            "weights": weights,
            "preprocess": None if preprocess is None else preprocess.to_json(),
            "classes": list(classes),
            "info": {
                **(info or {}),
                "made_with": {p: version(p) for p in ("torch", "timm")} | {"leanvit": __version__},
            },
        }
        write_atomic(path / JSON_NAME, json.dumps({**written, "seal": seal_of(written)}, indent=1).encode())
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror or error}") from error
    for old in path.glob("weights-*.safetensors"):
        if old.name != weights["file"]:
            old.unlink(missing_ok=True)
    return path


def _proven_history(model: OpenViT) -> History:
    """The history, if replaying it gives a state dict of the same names, shapes and kinds."""
    if model.history is None:
        raise Refused("the model has no history: pass it through compress(model, []) or root_of first")
    built = replay(model.history.root, model.history.plans, device="meta")
    problem = _first_mismatch(built.state_dict(), model.state_dict())
    if problem:
        raise Refused(f"the model is not what its history builds ({problem}): it was changed after its methods ran")
    return model.history


def seal_of(content: dict[str, Any]) -> str:
    """sha256 over the canonical text of a run file, its own seal left out."""
    rest = {k: v for k, v in content.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_weights(model: OpenViT, path: Path) -> dict[str, str]:
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    handle, name = tempfile.mkstemp(dir=path, prefix=".weights-", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(tensors, temporary)
        digest = file_sha256(temporary)
        target = path / f"weights-{digest[:12]}.safetensors"
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": target.name, "sha256": digest}


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new one and nothing between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str | Path) -> OpenViT:
    """The model of a run folder, in eval mode. Raises `CheckpointError` or `BadInput`."""
    return load_run(path).model


def load_run(path: str | Path) -> Run:
    """A run folder: model (in eval mode), preprocessing, classes.

    Raises:
        BadInput: there is no run at this path.
        CheckpointError: the run is truncated, tampered with, foreign or from a newer leanvit.
    """
    path = Path(path)
    file = read_run_file(path)
    weights = _checked_weights(path, file)
    tensors = _read_tensors(weights)
    try:
        root = Root(file.root.name, file.root.kwargs)
        plans = tuple(Plan(p.slug, p.knobs, p.structure) for p in file.plans)
        model = replay(root, plans, device="meta")
    except LeanvitError as error:
        raise CheckpointError(f"{path}: {error}") from error
    problem = _first_mismatch(model.state_dict(), tensors)
    if problem:
        raise CheckpointError(f"{path}: the weights do not fit the plans: {problem}")
    model.load_state_dict(tensors, strict=True, assign=True)
    _refuse_unfilled(path, model)
    return Run(model.eval(), path, _preprocess(path, file), tuple(file.classes), file.info)


def read_run_file(path: Path) -> _RunFile:
    """`leanvit.json`, validated strictly."""
    name = path / JSON_NAME
    if not name.is_file():
        raise BadInput(f"{path} holds no run: there is no {JSON_NAME} in it")
    if name.stat().st_size > _JSON_LIMIT:
        raise CheckpointError(f"{name} has {name.stat().st_size} bytes; accepted: up to {_JSON_LIMIT}")
    try:
        content = json.loads(name.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not valid JSON (truncated?): {error}") from error
    if not isinstance(content, dict) or content.get("kind") != "leanvit-run":
        raise CheckpointError(f"{name} is not a leanvit run (kind: {_short(content)})")
    found = content.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(
            f"{name} has format {found}; this leanvit {__version__} reads up to {FORMAT}: update leanvit"
        )
    try:
        file = _RunFile.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{name}: {strict_message(error, _RunFile)}") from error
    if file.seal != seal_of(content):
        raise CheckpointError(
            f"{name} was changed after it was saved. An edited plan belongs to the root: reapply(root, plans)"
        )
    return file


def strict_message(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a strict validation in words: which key, what was given, the nearest known key."""
    problems = error.errors()  # a misspelt key also leaves the right one missing: name the misspelt one
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}: {nearest(str(first['loc'][-1]), _keys_at(model, first['loc'][:-1]))}"
    return f"{where}: {first['msg']} (given: {_short(first.get('input'))})"


def _keys_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            kinds = [model.model_fields[part].annotation, *getattr(model.model_fields[part].annotation, "__args__", ())]
            inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
            model = inner[0] if inner else model
    return [f.alias or name for name, f in model.model_fields.items()]


def _short(value: Any) -> str:
    text = repr(value.get("kind") if isinstance(value, dict) else value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _checked_weights(path: Path, file: _RunFile) -> Path:
    if Path(file.weights.file).name != file.weights.file:
        raise CheckpointError(f"{path}: weights file {file.weights.file!r} is not a plain file name")
    weights = path / file.weights.file
    if not weights.is_file():
        raise CheckpointError(f"{path}: the weights file {weights.name} is missing")
    found = file_sha256(weights)
    if found != file.weights.sha256:
        raise CheckpointError(
            f"{weights} was truncated or changed: its sha256 is {found[:12]}…, saved was {file.weights.sha256[:12]}…"
        )
    return weights


def _read_tensors(weights: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error


def _first_mismatch(want: dict[str, torch.Tensor], have: dict[str, torch.Tensor]) -> str:
    for kind, keys in (("missing", want.keys() - have.keys()), ("unexpected", have.keys() - want.keys())):
        if keys:
            return f"{len(keys)} tensors {kind}, first {min(keys)!r}"
    for key, tensor in want.items():
        if tensor.shape != have[key].shape:
            return f"{key} is {tuple(have[key].shape)}, not {tuple(tensor.shape)}"
        if tensor.is_floating_point() != have[key].is_floating_point():
            return f"{key} is {have[key].dtype}, not {tensor.dtype}"
    return ""


def _refuse_unfilled(path: Path, model: OpenViT) -> None:
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise CheckpointError(f"{path}: {len(left)} tensors are in no file, first {left[0]!r}")


def _preprocess(path: Path, file: _RunFile) -> Preprocess | None:
    if file.preprocess is None:
        return None
    from leanvit.data import Preprocess

    try:
        return Preprocess.from_json(file.preprocess)
    except (BadInput, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: preprocess: {error}") from error
