"""Sparse tensors in a safetensors file, without loss: a bit an element, and the values of those that are not zero.

    NAME:bitmap   uint8 (ceil(n / 8),), bit i % 8 of byte i // 8 is 1 where element i is kept; spare bits are 0
    NAME:kept     (kept,), the kept elements in their order, of the tensor's dtype
    metadata      `leanvit.sparse`: the shape of each such tensor by its name, as JSON

An element is left out where all its bits are zero, so that a negative zero comes back as one. A float32 tensor takes
its kept share and 1/32 of its size. A tensor that would not become smaller is stored as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from leanvit.errors import CheckpointError
from leanvit.files import read_strict

METADATA = "leanvit.sparse"
FEATURE = "sparse"  # of a run folder whose weights file has such tensors
_BITMAP, _KEPT = ":bitmap", ":kept"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element
_Shapes = dict[str, list[Annotated[int, Ge(0)]]]


def pack(tensors: Mapping[str, Tensor], sparse: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors of the file, metadata) of a state dict on the CPU; metadata is empty where nothing became smaller."""
    packed, shapes = dict(tensors), {}
    for name in sorted({*sparse} & {*tensors}):
        tensor = tensors[name]
        bits = _bits(tensor)
        kept = bits != 0  # (n,)
        bitmap = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
        taken = {f"{name}{_BITMAP}": bitmap, f"{name}{_KEPT}": bits[kept].view(tensor.dtype)}
        if sum(t.numel() * t.element_size() for t in taken.values()) < tensor.numel() * tensor.element_size():
            del packed[name]
            packed |= taken
            shapes[name] = list(tensor.shape)
    return packed, {METADATA: json.dumps(shapes)} if shapes else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, sparse ones as they were before `pack`, bit for bit.

    Raises:
        CheckpointError: a sparse tensor whose bitmap, values or shape do not fit together (it is named).
        SafetensorError, OSError, ValueError: the file is none of safetensors.
    """
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(METADATA)
    tensors = load_file(path)
    if metadata is None:
        return tensors
    shapes = read_strict(_Shapes, metadata, f"{path}: shapes of sparse tensors")
    for name, shape in shapes.items():
        if name in tensors:
            raise CheckpointError(f"{path}: {name} is there twice, as it is and as a sparse tensor")
        tensors[name] = _unpacked(f"{path}: {name}", tensors.pop(f"{name}{_BITMAP}", None),
                                  tensors.pop(f"{name}{_KEPT}", None), shape)  # fmt: skip
    return tensors


def _unpacked(what: str, bitmap: Tensor | None, values: Tensor | None, shape: list[int]) -> Tensor:
    if bitmap is None or values is None:
        raise CheckpointError(f"{what} is a sparse tensor without its {'bitmap' if bitmap is None else 'values'}")
    count = math.prod(shape)
    if bitmap.dtype != torch.uint8 or bitmap.shape != (-(-count // 8),):
        raise CheckpointError(
            f"{what} is a sparse tensor of shape {tuple(shape)}, whose bitmap has {-(-count // 8)} bytes; there is a "
            f"{bitmap.dtype} tensor of shape {tuple(bitmap.shape)}"
        )
    kept = torch.from_numpy(np.unpackbits(bitmap.numpy(), bitorder="little")).bool()  # (8 * bytes,)
    if kept[count:].any():
        raise CheckpointError(f"{what} is a sparse tensor whose bitmap goes on behind its last element")
    kept = kept[:count]
    if values.shape != (int(kept.sum()),):
        raise CheckpointError(
            f"{what} is a sparse tensor that keeps {int(kept.sum())} elements; there are {tuple(values.shape)} values"
        )
    bits = _bits(values)
    if not bits.all():
        raise CheckpointError(f"{what} is a sparse tensor with a zero among the elements that it keeps")
    found = torch.zeros(count, dtype=bits.dtype)
    found[kept] = bits
    return found.view(values.dtype).view(shape)


def _bits(tensor: Tensor) -> Tensor:
    """(n,): the elements as integers of the same bits."""
    return tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
