"""Weights from a file: our own names, or an official checkpoint of a paper's repository. Nothing in it is run."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leanvit.builders import ENTRIES, checkpoint_filter
from leanvit.errors import BadInput, CheckpointError
from leanvit.files import check_sealed_tensors

_PREFIXES = ("module.", "_orig_mod.")  # of wrapped models


@dataclass(frozen=True)
class Weights:
    """What a file held."""

    tensors: dict[str, Tensor]
    entry: str  # of a training checkpoint; "" where the file holds nothing else
    others: tuple[str, ...]  # entries with weights that were not taken

    def said(self) -> str:
        """One line for people."""
        left = f"; {', '.join(self.others)} is left" if self.others else ""
        return f"{len(self.tensors)} tensors" + (f" of its entry {self.entry!r}{left}" if self.entry else "")


def load_weights(
    model: nn.Module, path: Path, *, name: str = "", option: str = "--weights", say: Callable[[str], None] | None = None
) -> None:
    """Load a state dict strictly: `.safetensors`, or a `torch.save` file that holds tensors and plain values only.

    Args:
        name: the model's; leanvit's own architectures take official checkpoints of their papers by it.
        say: told what was taken from a checkpoint that holds more than weights, or has other names.

    Raises:
        BadInput: there is no such file. CheckpointError: it is no such file, or does not fit; says what does not.
    """
    read = read_weights(path, option=option)
    tensors, official = _ours(model, read.tensors, name, f"{option} {path}")
    _require_fit(model, tensors, f"{option} {path}")
    model.load_state_dict(tensors, strict=True)
    if say is not None and (official or read.entry):
        say(f"{path.name}: {read.said()}" + (f", an official checkpoint of {name}" if official else ""))


def read_weights(path: Path, *, option: str = "--weights") -> Weights:
    """The state dict in a file; of a training checkpoint the averaged weights, where it has them."""
    if not path.is_file():
        raise BadInput(f"{option} {path}: there is no such file")
    if path.suffix == ".safetensors" or _starts_as_safetensors(path):
        try:
            check_sealed_tensors(path)  # of a training of ours
            return Weights(load_file(path), "", ())
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{option} {path} is not a safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{option} {path} is not a safetensors file, nor one of torch.save that holds tensors and plain values "
            "alone: it is damaged, or holds objects that would have to be run"
        ) from error
    return _unwrapped(held, f"{option} {path}")


def _starts_as_safetensors(path: Path) -> bool:
    """The length of a JSON header, then the header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrapped(held: Any, what: str) -> Weights:
    entries = tuple(key for key in ENTRIES if isinstance(held, Mapping) and isinstance(held.get(key), Mapping))
    state = held[entries[0]] if entries else held
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{what} holds no state dict; looked for: tensors by name, at the top or in {ENTRIES}")
    return Weights({_plain(key): value for key, value in state.items()}, entries[0] if entries else "", entries[1:])


def _plain(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _ours(model: nn.Module, state: dict[str, Tensor], name: str, what: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors under the model's names, and whether they had others."""
    rename = checkpoint_filter(name) if name else None
    if rename is None or set(state) == set(model.state_dict()):
        return state, False
    try:
        return rename(state, model), True
    except ValueError as error:
        raise CheckpointError(f"{what} does not fit: {error}") from error


def _require_fit(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = [
        f"{key} is {found.get(key, 'missing')}, not {shape}" for key, shape in own.items() if found.get(key) != shape
    ]
    wrong += [f"{key} is not part of the model" for key in found if key not in own]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{what} does not fit: {'; '.join(wrong[:3])}{more}")
