"""The state of a run in one file: a safetensors file with all tensors, the rest as JSON in its header.

One file because one rename is atomic and two are not: whenever a run is killed, what lies on the disk is the last
whole state. It is sealed: the header holds the sha256 of all other bytes, so that a run never goes on from a state in
which a bit changed. Nothing is unpickled. Random states are not in it: all randomness of a run is keyed by (seed,
epoch, key) or by (seed, step).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from leanvit.data.identity import changes
from leanvit.errors import BadInput, CheckpointError
from leanvit.files import UNSEALED, check_sealed_tensors, seal_tensors, write_atomic
from leanvit.training.parallel import placed_like, whole
from leanvit.training.world import World

FORMAT = 2  # 1: without a seal, and without the identity of its data
STATE = Path("training/state.safetensors")  # in the folder of the run
LOG = "train.jsonl"  # likewise: a line for each step and epoch
BEST = Path("training/best.safetensors")
DATA = "data"  # in `Position.about`: what identifies the training data (`data.identity`)
VALIDATION = "validation"  # likewise, of the data that tells the best epoch, where there are such
_HEADER = "leanvit.training"


@dataclass(frozen=True)
class Position:
    """Where a run stands, and what it is a run of.

    `about` must be equal when the run is resumed; `progress` is what the loop restores. JSON data both.
    """

    about: dict[str, Any]
    progress: dict[str, Any]


def save_weights(path: Path, model: nn.Module, world: World | None = None) -> None:
    """Write the model's state dict under its own names, sealed (`read_weights`). Of several processes the first writes;
    all have to call."""
    world = world or World()
    tensors = _collected({"": model}, world)
    with world.together():
        if world.first:
            write_atomic(path, lambda temporary: _save_sealed(tensors, temporary, {}))


def _save_sealed(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    save_file(tensors, path, metadata={**metadata, **UNSEALED})
    seal_tensors(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `save_weights`. Raises CheckpointError if the file is damaged (one without a seal is older)."""
    try:
        check_sealed_tensors(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable weights file: {error}") from error


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    position: Position,
    world: World | None = None,
) -> None:
    """Write modules (each under its prefix), optimiser and position as one file, atomically.

    Of several processes the first writes; all have to call, as sharded tensors are put together. The file does not
    depend on the number of processes: any number of them can go on from it.
    """
    world = world or World()
    tensors = _collected({f"{prefix}.": module for prefix, module in modules.items()}, world)
    names = parameter_names(modules, optimizer)
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            _collect(tensors, f"optimizer.{names[index]}.{slot}", torch.as_tensor(value), world)
    header = {"format": FORMAT, "about": position.about, "progress": position.progress}
    metadata = {_HEADER: json.dumps(header, allow_nan=False)}
    with world.together():
        if world.first:
            write_atomic(path, lambda temporary: _save_sealed(tensors, temporary, metadata))


def load_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    about: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Restore modules and optimiser in place from `save_state`'s file; returns the progress.

    defaults: what `about` is where it, or the file, does not say: an older version did not know the field.

    Raises BadInput if there is no file or the run that it belongs to differs from `about` (naming each difference),
    CheckpointError if the file is damaged, foreign, from a newer format, or does not fit the modules. Modules are
    untouched unless everything fits.
    """
    if not path.is_file():
        raise BadInput(f"resume=True, but there is nothing to resume: {path} does not exist")
    tensors, position = _read(path)
    unsaid = defaults or {}
    _same_run({**unsaid, **position.about}, {**unsaid, **about}, path)
    states = {prefix: _under(f"{prefix}.", tensors) for prefix in modules}
    for prefix, module in modules.items():
        _fits(prefix, module, states[prefix], path)
    optimizer_state = _optimizer_state(tensors, modules, optimizer, path)
    for prefix, module in modules.items():
        own = module.state_dict()
        module.load_state_dict({n: placed_like(own[n], tensor) for n, tensor in states[prefix].items()}, strict=True)
    optimizer.load_state_dict(optimizer_state)
    return position.progress


def read_position(path: Path) -> Position:
    """Position of a saved state, without its tensors. Raises CheckpointError as `load_state` does."""
    try:
        with safe_open(path, framework="pt") as file:
            return _position(file.metadata(), path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable training state: {error}") from error


def parameter_names(modules: Mapping[str, nn.Module], optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in its order: states are stored by name, not by position."""
    names = {id(p): f"{prefix}.{name}" for prefix, module in modules.items() for name, p in module.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _collected(modules: Mapping[str, nn.Module], world: World) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, tensor in module.state_dict().items():
            _collect(tensors, f"{prefix}{name}", tensor, world)
    return tensors


def _collect(tensors: dict[str, Tensor], name: str, tensor: Tensor, world: World) -> None:
    """Put a tensor together on all processes, and keep it on the one that writes."""
    tensor = whole(tensor.detach())
    if world.first:
        tensors[name] = _detached(tensor)


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()  # a clone each: safetensors refuses shared storage


def _read(path: Path) -> tuple[dict[str, Tensor], Position]:
    try:
        with safe_open(path, framework="pt") as file:
            position = _position(file.metadata(), path)
            _check_seal(path, json.loads(file.metadata()[_HEADER])["format"])
            return {name: file.get_tensor(name) for name in file.keys()}, position  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or no training state: {error}") from error


def _check_seal(path: Path, version: int) -> None:
    """Raise CheckpointError unless the file is as it was written; a file of format 1 has no checksum: a warning."""
    sealed = check_sealed_tensors(path)
    if sealed != (version > 1):
        raise CheckpointError(f"{path} is damaged: its header lost its seal, or its format")
    if not sealed:
        warnings.warn(
            f"{path} is of an older leanvit, without a seal and a fingerprint of its data: neither is checked",
            stacklevel=2,
        )


def _position(metadata: Mapping[str, str] | None, path: Path) -> Position:
    try:
        header = json.loads((metadata or {})[_HEADER])
        version, about, progress = header["format"], header["about"], header["progress"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but no training state of leanvit") from error
    if version not in range(1, FORMAT + 1) or isinstance(version, bool):
        raise CheckpointError(
            f"{path} has training state format {version!r}; this leanvit reads formats 1 to {FORMAT}: update leanvit, "
            "or start anew in another folder"
        )
    if not isinstance(about, dict) or not isinstance(progress, dict):
        raise CheckpointError(f"{path} has a training state header that is not understood")
    return Position(about, progress)


def _same_run(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Raise BadInput, naming each difference, unless both are of one run."""
    differing = [
        f"{name} was {saved.get(name)!r} and is now {given.get(name)!r}"
        for name in sorted({*saved, *given} - {DATA, VALIDATION})
        if saved.get(name) != given.get(name)
    ]
    differing += changes(saved.get(DATA), given.get(DATA))
    differing += [f"validation {text}" for text in changes(saved.get(VALIDATION), given.get(VALIDATION))]
    if differing:
        raise BadInput(f"resume=True, but {path} is of another run: {'; '.join(differing)}{_way_out(saved, given)}")


def _way_out(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What to do instead, where somebody wants more epochs: the learning rate's schedule was that of fewer."""
    was, now = saved.get("epochs"), given.get("epochs")
    if not (isinstance(was, int) and isinstance(now, int) and now > was):
        return ""
    return (
        f". The learning rate was to end after {was} epochs, so a training is not resumed with more: let it end "
        f"(resume with epochs={was}), then train on from its run: leanvit train RUN --epochs {now - was} --out ANOTHER"
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fits(prefix: str, module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in {*own, *saved} if own.get(name) != saved.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path} does not fit the {prefix}: {name} has shape {own.get(name, 'none')} here and "
            f"{saved.get(name, 'none')} there ({len(wrong)} such tensors)"
        )


def _optimizer_state(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: Optimizer, path: Path
) -> dict[str, Any]:
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {name: number for number, name in enumerate(parameter_names(modules, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in _under("optimizer.", tensors).items():
        name, _, slot = full_name.rpartition(".")
        if name not in numbers:
            raise CheckpointError(f"{path} holds optimiser state of {name!r}, which is not trained here")
        if tensor.ndim and tensor.shape != trained[numbers[name]].shape:
            raise CheckpointError(f"{path} holds {full_name!r} of shape {tuple(tensor.shape)}, which does not fit")
        placed = placed_like(trained[numbers[name]], tensor) if tensor.ndim else tensor
        state.setdefault(numbers[name], {})[slot] = placed
    # hyper-parameters come from the recipe, which `about` holds equal; only the slots are restored
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
