"""Save and load runs: `leanvit.json` (root, plans, preprocessing) beside safetensors weights. Nothing is unpickled.

The JSON names its weights file by content, is written last and atomically: a folder is always whole, old or new.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save as to_safetensors
from torch import nn

from leanvit import __version__, tasks
from leanvit.anatomy import OpenModel
from leanvit.anatomy.sparse import sparse_tensors
from leanvit.arguments import require_model, require_path
from leanvit.cards import known_papers
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused, unknown
from leanvit.files import Sealed, Strict, check_sha256, plain_name, read_sealed, sealed_text, write_atomic
from leanvit.recipe.catalogue import run_folder
from leanvit.recipe.history import History, replay
from leanvit.recipe.plan import Plan
from leanvit.recipe.registry import outside_module
from leanvit.recipe.roots import CompositeRoot, ForeignRoot, Root, root_from_json
from leanvit.recipe.sparse_codec import FEATURE as SPARSE
from leanvit.recipe.sparse_codec import pack, read_tensors

if TYPE_CHECKING:
    from leanvit.data import Preprocess

KIND = "leanvit-run"
FORMAT = 3  # the newest that is read: 3 where `features` names what a reader must know, 2 where `weights.stored_as`
# says how parameters were rounded, else 1
PARTS = "parts"  # a model of parts
FEATURES = (PARTS, SPARSE)  # that are read; sparse tensors: see `sparse_codec`
STORED_AS = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # what float32 parameters may be rounded to
JSON_NAME = "leanvit.json"


@dataclass(frozen=True)
class Run:
    """A loaded run folder."""

    model: OpenModel
    path: Path
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)  # versions it was made with, and the like
    stored_as: str = ""  # what the parameters were rounded to in the file; "": they are as they were


class _PlanFile(Strict):
    slug: str
    knobs: dict[str, Any]
    structure: dict[str, Any]
    module: str = ""  # of a method from outside leanvit: said when it is missing, never imported
    finished: bool = True  # False: a step of a compression under way, with its temporary modules in it
    part: str = ""  # of a model of parts

    def plan(self) -> Plan:
        return Plan(self.slug, self.knobs, self.structure, self.finished, self.part)


class _WeightsFile(Strict):
    file: str
    sha256: str
    stored_as: Literal["", "float16", "bfloat16"] = ""


class RunFile(Sealed):
    features: list[str] = Field(default_factory=list)
    root: dict[str, Any]  # as `root_from_json` takes it
    plans: list[_PlanFile]
    weights: _WeightsFile
    preprocess: dict[str, Any] | None = None
    classes: list[str] = Field(default_factory=list)
    info: dict[str, Any] = Field(default_factory=dict)

    def built_of(self) -> Root | CompositeRoot:
        """The root. Raises `LeanvitError` where it is not one of an image model."""
        root = root_from_json(self.root)
        if isinstance(root, ForeignRoot):
            raise CheckpointError(f"the root {root.name!r} is foreign: a run holds a model of ours, or one of parts")
        return root

    def history(self) -> History:
        """Root and plans. Raises `LeanvitError` where they are damaged."""
        return History(self.built_of(), tuple(plan.plan() for plan in self.plans))


def save(
    model: OpenModel,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    info: dict[str, Any] | None = None,
    stored_as: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a run folder. Other files in the folder are left alone.

    Of sparse tensors (`model.sparse`) the elements that are not zero are stored, and which these are, a bit each. Such
    a weights file is read by `load` and by `--weights`, not by plain timm.

    Args:
        model: an opened model with a history (from `compress`, `load` or `create`).
        preprocess: how images are prepared for it; it travels with the run. Default: what the model says itself
            (`Preprocess.of`).
        classes: class names in the order of the logits; default: the model's own (`model.classes`).
        info: more JSON to keep (data spec, command, ...).
        stored_as: "float16" or "bfloat16": parameters of a float32 model are rounded to it in the file, which takes
            half the space; `load` gives float32 parameters with the rounded values. Buffers (statistics, scales of
            quantizers) are stored as they are. Default: nothing is rounded, a run loads bit for bit.
        overwrite: replace a run that is already there.

    Raises:
        Refused: the history does not rebuild the model, or `stored_as` is not for this model: it is not in float32,
            or a value lies outside the range (checked before anything is written).
        BadInput: no opened model, there is a run already, the path is not a folder that can be made, or names that are
            not as many as the outputs or not the model's own.
        LeanvitError: a file cannot be written (disk full, read-only); a run that was there is unchanged.
    """
    from leanvit.data import Preprocess
    from leanvit.data.classes import own_names

    require_path(path, "path")
    require_model(model)
    path = Path(path)
    if not isinstance(model, OpenModel):
        raise BadInput(
            f"model is a {type(model).__name__}; accepted: what compress or load gives, with its history: "
            "leanvit.save(leanvit.compress(model, []), path) saves a timm model as it is"
        )
    try:
        if (path / JSON_NAME).exists() and not overwrite:
            raise BadInput(f"{path} holds a run already: give another path, or overwrite")
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file; accepted: a folder, or a path where one can be made")
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror or error}") from error
    names = own_names(model, classes)
    history = _proven_history(model)
    preprocess = preprocess or Preprocess.of(model)
    tensors, metadata = pack(_tensors(model, stored_as), sparse_tensors(model))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror or error}") from error
    weights = _write_weights(tensors, metadata, path) | ({"stored_as": stored_as} if stored_as else {})
    made_with = {p: version(p) for p in ("torch", "timm")} | {"leanvit": __version__}
    features = [PARTS] * isinstance(history.root, CompositeRoot) + [SPARSE] * bool(metadata)
    written = {
        "kind": KIND,
        "format": 3 if features else 2 if stored_as else 1,  # an older leanvit reads what it can read rightly
        **({"features": features} if features else {}),
        "root": history.root.to_json(),
        "plans": [_plan_entry(plan) for plan in history.plans],
        "weights": weights,
        "preprocess": preprocess.to_json(),
        "classes": list(names),
        "info": {**(info or {}), **({} if model.task is None else model.task.recorded()), "made_with": made_with},
    }
    write_atomic(path / JSON_NAME, sealed_text(written))
    for old in path.glob("weights-*.safetensors"):
        if old.name != weights["file"]:
            old.unlink(missing_ok=True)
    return path


def _plan_entry(plan: Plan) -> dict[str, Any]:
    module = outside_module(plan.slug)
    return plan.to_json() | ({"module": module} if module else {})


def _proven_history(model: OpenModel) -> History:
    """The history, if replaying it gives a state dict of the same names, shapes and kinds."""
    if model.history is None:
        raise Refused("the model has no history: pass it through compress(model, []) or root_of first")
    built = replay(model.history.root, model.history.plans, device="meta")
    problem = _first_mismatch(built.state_dict(), model.state_dict())
    if problem:
        raise Refused(f"the model is not what its history builds ({problem}): it was changed after its methods ran")
    here, planned = sparse_tensors(model).keys(), sparse_tensors(built).keys()
    for name in sorted(here ^ planned):
        where = "sparse here, but not by its plans" if name in here else "sparse by its plans, but not here"
        raise Refused(f"{name} is {where}: a method names what it prunes to zeros in shape (model.sparse)")
    return model.history


def _tensors(model: OpenModel, stored_as: str) -> dict[str, torch.Tensor]:
    """What goes into the weights file. Raises `BadInput` or `Refused` if it cannot be stored that way."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if not stored_as:
        return tensors
    if stored_as not in STORED_AS:
        raise unknown("stored_as", stored_as, STORED_AS)
    dtype, rounded = STORED_AS[stored_as], dict(model.named_parameters(remove_duplicate=False))
    for key in tensors.keys() & rounded.keys():
        if tensors[key].dtype != torch.float32:
            raise Refused(f"stored_as {stored_as!r} rounds float32 parameters; {key} is {tensors[key].dtype}")
        stored = tensors[key].to(dtype)
        if not torch.equal(stored.isfinite(), tensors[key].isfinite()):
            most = float(tensors[key].abs().max())
            raise Refused(f"{key} holds {most:g}: {stored_as} ends at {torch.finfo(dtype).max:g}; store it as it is")
        tensors[key] = stored
    return tensors


def _write_weights(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> dict[str, str]:
    content = to_safetensors(tensors, metadata=metadata or None)
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:12]}.safetensors"  # by content: the JSON, written last, says which one counts
    write_atomic(path / name, content)
    return {"file": name, "sha256": digest}


def load(path: str | Path) -> OpenModel:
    """The model of a run folder or a reference (`leanvit/NAME`), in eval mode. Raises as `load_run` does."""
    return load_run(path).model


def load_run(path: str | Path) -> Run:
    """A run folder, or a reference that comes with the package: model (in eval mode), preprocessing, classes.

    Args:
        path: a run folder, or `leanvit/NAME` as text (`leanvit.recipe.catalogue`).

    Raises:
        BadInput: there is no run at this path, or no reference of this name.
        CheckpointError: the run is truncated, tampered with, foreign or from a newer leanvit.
    """
    require_path(path, "path")
    path = run_folder(path)
    file = read_run_file(path)
    _check_methods_known(path, file)
    weights = _checked_weights(path, file)
    tensors = _as_float32(_read_tensors(weights), file.weights.stored_as)
    try:
        history = file.history()
        model = replay(history.root, history.plans, device="meta")
    except LeanvitError as error:
        raise CheckpointError(f"{path}: {error}") from error
    problem = _first_mismatch(model.state_dict(), tensors)
    if problem:
        raise CheckpointError(f"{path}: the weights do not fit the plans: {problem}")
    model.load_state_dict(tensors, strict=True, assign=True)
    _derive_buffers(model)
    _refuse_unfilled(path, model)
    classes = tuple(file.classes)
    model.classes = classes if len(classes) == model.num_classes else ()  # 0.1.0 did not count them
    model.preprocess = _preprocess(path, file)
    model.task = _task(path, file)
    return Run(model.eval(), path, model.preprocess, classes, file.info, file.weights.stored_as)


def _task(path: Path, file: RunFile) -> tasks.Task | None:
    """What the outputs mean, as the run says; None: one class an image."""
    try:
        return tasks.of_record(file.info)
    except BadInput as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_run_file(path: Path) -> RunFile:
    """`leanvit.json`, validated strictly."""
    name = path / JSON_NAME
    if not name.is_file():
        raise BadInput(f"{path} holds no run: there is no {JSON_NAME} in it{_instead(path)}")
    advice = "An edited plan belongs to the root: reapply(root, plans)"
    return read_sealed(name, RunFile, kind=KIND, newest=FORMAT, changed=advice, features=FEATURES)


def _check_methods_known(path: Path, file: RunFile) -> None:
    """A run never imports code: what it was made with must be there already."""
    missing = [plan for plan in file.plans if plan.module and plan.slug not in known_papers()]
    if missing:
        slug, module = missing[0].slug, missing[0].module
        raise CheckpointError(
            f"{path}: its method {slug!r} is not leanvit's, it was registered by the module {module!r}: import that "
            f"module before loading, on the command line with leanvit --import {module!r}"
        )


def _instead(path: Path) -> str:
    """What a folder without a run holds that is close to one, or a path that is no folder."""
    if path.is_file():
        made = "timm.create_model(NAME, checkpoint_path=...)"
        return f". It is a file: weights go with a timm name ({made}, leanvit train NAME --weights {path})"
    if not path.exists() and path.name == str(path) and timm.is_model(str(path)):
        return f". It is the name of a timm model: timm.create_model({str(path)!r}) builds it"
    going_on = f"--resume --out {shlex.quote(str(path))}"
    if (path / "artefact.json").is_file():
        return ". It is an artefact (deploy.load_artefact runs it): give the run that it was exported from"
    if (path / "steps/about.json").is_file():
        return f". It holds an unfinished compression: go on with it by leanvit compress ... {going_on}"
    if (path / "training/state.safetensors").is_file():
        return f". It holds an unfinished training: go on with it by leanvit train ... {going_on}"
    if any(path.glob("weights-*.safetensors")):
        return ". It holds weights alone: writing it was interrupted, or the file was lost; make the run again"
    return ""


def _checked_weights(path: Path, file: RunFile) -> Path:
    weights = plain_name(path, file.weights.file)
    check_sha256(weights, file.weights.sha256)
    return weights


def _read_tensors(weights: Path) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights} is not a safetensors file: {error}") from error


def _as_float32(tensors: dict[str, torch.Tensor], stored_as: str) -> dict[str, torch.Tensor]:
    """Parameters that were rounded for the file are float32 again; all others stay what they are."""
    if not stored_as:
        return tensors
    return {key: t.float() if t.dtype == STORED_AS[stored_as] else t for key, t in tensors.items()}


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


@torch.no_grad()
def _derive_buffers(model: OpenModel) -> None:
    """Fill the buffers that follow from the structure alone (tables of angles, indices of positions).

    Those of a foreign part were built with it; where its weights are in half precision they follow, as by `half()`.
    """
    dtype = next(model.parameters()).dtype
    for module in model.modules():
        if isinstance(getattr(module, "foreign_root", None), ForeignRoot):
            _in_half_precision(module)
        unfilled = {key: buffer for key, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        fill = getattr(module, "init_non_persistent_buffers", None)
        if not unfilled or fill is None:
            continue
        for key, buffer in unfilled.items():
            module._buffers[key] = torch.empty_like(buffer, device="cpu")
        fill()
        module.to(dtype)  # as a model in half precision was when it was saved; integer indices stay


def _in_half_precision(foreign: nn.Module) -> None:
    dtype = next((p.dtype for p in foreign.parameters()), torch.float32)
    for module in foreign.modules() if dtype in STORED_AS.values() else ():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers[key]
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(dtype)


def _refuse_unfilled(path: Path, model: OpenModel) -> None:
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise CheckpointError(f"{path}: {len(left)} tensors are in no file, first {left[0]!r}")


def _preprocess(path: Path, file: RunFile) -> Preprocess | None:
    if file.preprocess is None:
        return None
    from leanvit.data import Preprocess

    try:
        return Preprocess.from_json(file.preprocess)
    except (BadInput, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: preprocess: {error}") from error
