"""A weights file of any kind as tensors by name. No pickle runs code: see `_STAND_INS`; checksums are read."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from leanvit.errors import BadInput, CheckpointError
from leanvit.files import check_sealed_tensors
from leanvit.measure.machine import memory_bytes
from leanvit.recipe.sparse_codec import read_tensors

_HASHED = re.compile(r"(?:^|-)([0-9a-f]{64})(?:\.|$)")  # a name that says the sha256 of the file: runs, hub caches
_ACCEPTED = "accepted: .safetensors, a file of torch.save, .npz"
_CHUNK = 1 << 20
_DEPTH = 12  # of nested entries
_NOT_WEIGHTS = re.compile(r"optim|schedul|scaler|^callbacks$|^loops$|^rng|random", re.IGNORECASE)


class _StandIn:
    """What an object beside the weights is read as: it takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _StandInDict(_StandIn):
    """Of a class that is a dict: the unpickler may put items into an `OrderedDict`, and into no class of ours."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


_DICTS = (
    "addict.addict.Dict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
_OBJECTS = (
    "_codecs.encode",
    "argparse.Namespace",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "ml_collections.config_dict.config_dict.ConfigDict",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "float32", "float64", "int32", "int64")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String", "Union")),
    *(f"pathlib{place}.{name}" for place in ("", "._local") for name in ("PosixPath", "PurePosixPath", "WindowsPath")),
    "types.SimpleNamespace",
    "typing.Any",
)
# Of numbers, settings and paths beside the weights only the name is known to the unpickler: none of these classes or
# functions is imported or called, and their values are not kept. Any other object refuses the file.
_STAND_INS: list[Any] = [*((_StandIn, name) for name in _OBJECTS), *((_StandInDict, name) for name in _DICTS)]


@dataclass(frozen=True)
class Held:
    """What a file held: the tensors of all its entries under dotted names (`state_dict.model.head.weight`)."""

    path: Path
    what: str  # option and path, for messages
    tensors: dict[str, Tensor]
    entries: frozenset[str] = frozenset()  # names that are mappings of the file itself, not parts of a key
    values: dict[str, str] = field(default_factory=dict)  # what is no tensor, by dotted name -> its type
    flax: bool = False  # the layout of AugReg: arrays of Flax


def read_weights(path: Path, *, option: str = "--weights") -> Held:
    """The tensors in a file: safetensors, `torch.save` (also before PyTorch 1.6), or `.npz`.

    Raises:
        BadInput: there is no such file. CheckpointError: a damaged file, one of another kind, or a pickle that holds
            objects beside tensors and plain values.
    """
    what = f"{option} {path}"
    if path.is_dir():
        raise BadInput(
            f"{what}: there is no such file, but a folder (one with config.json is a MODEL: local-dir:{path})"
        )
    if not path.is_file():
        raise BadInput(f"{what}: there is no such file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        _check_sum(path, what)
        return _of_kind(path, start, what)
    except OSError as error:
        raise CheckpointError(f"{what} cannot be read: {error.strerror or error}") from error


def _of_kind(path: Path, start: bytes, what: str) -> Held:
    if not start:
        raise CheckpointError(f"{what} is empty")
    if start[:4] == b"PK\x03\x04":
        members = _checked_members(path, what)
        if any(name.endswith(".npy") for name in members):
            return _npz(path, what)
        if any(name.split("/")[-1] == "constants.pkl" for name in members):
            raise CheckpointError(f"{what} is a TorchScript archive, which holds code: save its state_dict() instead")
        if not any(name.split("/")[-1] == "data.pkl" for name in members):
            raise CheckpointError(f"{what} is a zip archive without weights ({', '.join(sorted(members)[:3])})")
        return _torch_file(path, what)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        _refuse_text(start, what)
        return _safetensors(path, what)
    _refuse_text(start, what)
    return _torch_file(path, what)


def _refuse_text(start: bytes, what: str) -> None:
    """Name what people have in place of weights: pages of a failed download, pointers, indices, other archives."""
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{what} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{what} is not a weights file, but a web page: the download failed or asked for a login")
    if text.startswith(b"{") or text.startswith(b"["):
        raise CheckpointError(f"{what} is not a safetensors file, but JSON text (an index names other files)")
    kinds = {b"\x1f\x8b": "gzip", b"\x89HDF": "HDF5", b"\x93NUMPY": "a single NumPy array", b"7z\xbc\xaf": "7z"}
    for magic, kind in kinds.items():
        if start.startswith(magic):
            raise CheckpointError(f"{what} is not a safetensors file, but {kind}; {_ACCEPTED}")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{what} is not a safetensors file, but a tar archive; {_ACCEPTED}")


def _check_sum(path: Path, what: str) -> None:
    """A name that says the file's sha256 is held to it: safetensors has no checksum of its own."""
    found = _HASHED.search(path.name) or _HASHED.search(path.resolve().name)
    if not found:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != found[1]:
        raise CheckpointError(f"{what} is damaged: its sha256 is not the one in its name")


def _checked_members(path: Path, what: str) -> set[str]:
    """The names in a zip archive, each read to its end: PyTorch does not compare checksums."""
    memory = memory_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = {info.filename for info in infos}
            if len(names) != len(infos):
                raise CheckpointError(f"{what} is damaged: its archive has two members of one name")
            size = sum(info.file_size for info in infos)
            if memory is not None and size > memory:
                raise CheckpointError(f"{what} unpacks to {size / 2**30:.0f} GiB, more than this machine's memory")
            for info in infos:
                with archive.open(info) as member:
                    while member.read(_CHUNK):
                        pass
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged directories
        raise CheckpointError(f"{what} is damaged: its archive is cut short or altered ({_line(error)})") from error
    return names


def _safetensors(path: Path, what: str) -> Held:
    try:
        check_sealed_tensors(path)  # of a training of ours
        return Held(path, what, read_tensors(path))  # of a run of ours with sparse tensors, too
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{what} is not a safetensors file: {_line(error)}") from error


def _npz(path: Path, what: str) -> Held:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        numbers = {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in numbers.items()}
    except Exception as error:  # damaged headers of arrays raise many kinds
        raise CheckpointError(f"{what} is damaged, or holds objects beside arrays: {_line(error)}") from error
    values = {name: f"an array of {array.dtype}" for name, array in arrays.items() if name not in numbers}
    flax = any(name.endswith("embedding/kernel") for name in arrays)
    return Held(path, what, tensors, values=values, flax=flax)


def _torch_file(path: Path, what: str) -> Held:
    try:
        with torch.serialization.safe_globals(_STAND_INS), path.open("rb") as file:  # by a name it may be safetensors
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what an altered pickle makes of the unpickler has no one kind
        raise CheckpointError(
            f"{what} is not a safetensors file, nor one of torch.save that holds tensors and plain values "
            f"alone: it {_reason(path, error)}"
        ) from error
    if not isinstance(held, Mapping):
        kind = "a single tensor" if isinstance(held, Tensor) else f"a {type(held).__name__}"
        raise CheckpointError(f"{what} holds no state dict, but {kind}; accepted: tensors by name")
    return _flattened(held, path, what)


def _reason(path: Path, error: Exception) -> str:
    if not isinstance(error, pickle.UnpicklingError):
        return f"is damaged, or holds objects that would have to be run ({_line(error)})"
    known = {name for _, name in _STAND_INS}
    try:
        found = [n for n in torch.serialization.get_unsafe_globals_in_checkpoint(path) if n not in known]
    except Exception:  # only for the text; the file is refused in any case
        found = []
    names = ", ".join(sorted(found)[:3]) or _line(error)
    whole = any(re.search(r"\.modules?\.|models?\.|layers?\.|Transformer", name) for name in found)
    hint = ": it seems to be a whole model; save model.state_dict() instead" if whole else ""
    return f"is damaged, or holds objects that would have to be run ({names}){hint}"


def _flattened(held: Mapping[Any, Any], path: Path, what: str) -> Held:
    tensors: dict[str, Tensor] = {}
    values: dict[str, str] = {}
    entries: set[str] = set()
    numbered: list[str] = []

    def walk(entry: Mapping[Any, Any], at: str, depth: int) -> None:
        if any(isinstance(value, Tensor) for key, value in entry.items() if not isinstance(key, str)):
            numbered.append(at)
        for key, value in entry.items():
            if not isinstance(key, str):
                continue
            name = at + key
            if isinstance(value, Mapping):
                if depth < _DEPTH and not _NOT_WEIGHTS.search(key):
                    entries.add(name + ".")
                    walk(value, name + ".", depth + 1)
            elif name in tensors or name in values:
                raise CheckpointError(f"{what} has two values of the name {name}")
            elif isinstance(value, Tensor):
                tensors[name] = _sized(name, value.detach(), what)
            else:
                values[name] = "an object" if isinstance(value, _StandIn) else f"a {type(value).__name__}"

    walk(held, "", 0)
    if not tensors:
        at = (
            f" (its tensors are named by numbers or other values, not by text, in {numbered[0] or 'the file'})"
            if numbered
            else ""
        )
        raise CheckpointError(f"{what} holds no state dict: there are no tensors by name{at}")
    return Held(path, what, tensors, frozenset(entries), values)


def _sized(name: str, tensor: Tensor, what: str) -> Tensor:
    """Refuse a tensor that repeats few stored values without end: copying it would fill the memory."""
    memory = memory_bytes()
    if memory is not None and tensor.layout is torch.strided and tensor.numel() * tensor.element_size() > memory:
        raise CheckpointError(f"{what}: {name} has the shape {tuple(tensor.shape)}, more than this machine's memory")
    return tensor


def _line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else text[:159] + "…"
