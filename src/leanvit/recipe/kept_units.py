"""Units of a long calibration or search, each kept in a file of its own: whole or absent, sealed.

    OUT/units/reconstruct/3.safetensors     the fourth unit: its tensors, and in the header what it is of and its facts

`Data.units` is the way to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanvit.errors import CheckpointError, LeanvitError
from leanvit.files import UNSEALED, check_sealed_tensors, seal_tensors, write_atomic
from leanvit.training.world import join_world

UNITS = "units"
FORMAT = 1
_HEADER = "leanvit.unit"


@dataclass(frozen=True)
class Kept:
    """What a unit found: tensors by name (on the CPU once kept), and facts (JSON)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def settled(self) -> Kept:
        """As it reads back from a file: whether a unit was run or read, the caller goes on bit-identically."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        return Kept(tensors, json.loads(json.dumps(dict(self.facts), allow_nan=False)))


@dataclass(frozen=True)
class UnitFolder:
    """The units of one stage. Of several processes, which all make the same calls, the first one writes."""

    folder: Path
    bound_to: str  # what the calibration is of: units with another one are refused

    def result(self, number: int, name: str, work: Callable[[], Kept]) -> Kept:
        """What the unit's work found: read where it is kept, else done and kept.

        Raises:
            CheckpointError: the file is damaged, of a later format, or of something else.
            LeanvitError: it cannot be written (disk full, read-only).
        """
        world, path = join_world(), self.folder / f"{number}.safetensors"
        if world.from_first(path.is_file):
            with world.together():
                return self._read(path, number, name)
        found = found_by(work)
        with world.together():
            if world.first:
                self._write(path, number, name, found)
        return found

    def _about(self, number: int, name: str) -> dict[str, Any]:
        return {"of": self.bound_to, "stage": self.folder.name, "number": number, "unit": name}

    def _write(self, path: Path, number: int, name: str, found: Kept) -> None:
        header = {"format": FORMAT, **self._about(number, name), "facts": found.facts}
        metadata = {_HEADER: json.dumps(header), **UNSEALED}

        def sealed(temporary: Path) -> None:
            save_file(dict(found.tensors), temporary, metadata=metadata)
            seal_tensors(temporary)

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LeanvitError(f"cannot write {self.folder}: {error.strerror or error}") from error
        write_atomic(path, sealed)

    def _read(self, path: Path, number: int, name: str) -> Kept:
        again = f"Remove {path} to do this unit again"
        try:
            if not check_sealed_tensors(path):
                raise CheckpointError(f"{path} is damaged, or no unit of leanvit: it has no seal")
            with safe_open(path, framework="pt") as file:
                header = dict(json.loads(file.metadata()[_HEADER]))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {again}") from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, or no unit of leanvit: {error}. {again}") from error
        version = header.get("format")
        if version != FORMAT:
            raise CheckpointError(
                f"{path} has format {version!r}; this leanvit reads {FORMAT}: update leanvit. {again}"
            )
        if {key: header.get(key) for key in self._about(number, name)} != self._about(number, name):
            raise CheckpointError(f"{path} is a unit of something else. {again}")
        if not isinstance(header.get("facts"), dict):
            raise CheckpointError(f"{path} is damaged, or no unit of leanvit: it has no facts. {again}")
        return Kept(tensors, header["facts"])


def found_by(work: Callable[[], Kept]) -> Kept:
    """What a unit's work finds, settled; of several processes, which all work, what the first one found."""
    world = join_world()
    with world.together():
        found = work().settled()
    return world.from_first(lambda: found)
