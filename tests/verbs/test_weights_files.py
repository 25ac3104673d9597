"""Files that are given as weights: damaged ones, other kinds, pickles that would run something."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from leanvit.errors import BadInput, CheckpointError
from leanvit.verbs.weights import load_weights, read_weights

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0, 8.0])}


def dumped(held: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer, **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), buffer)
    return buffer.getvalue()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def inside(content: bytes) -> int:
    """Where the values of a tensor are."""
    return content.index(STATE["weight"].numpy().tobytes()) + 9


class Harm:
    """Of what runs when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.called = function, given

    def __reduce__(self) -> Any:
        return self.called


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


TORCH, LEGACY, SAFE = dumped(STATE), dumped(STATE, _use_new_zipfile_serialization=False), save(STATE)
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a pointer of LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "an index": (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "but JSON text"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "but gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "but HDF5"),
    "one array": (b"\x93NUMPY\x01\x00v\x00", "a single NumPy array"),
    "words": (b"these are no weights at all", "is damaged, or holds objects"),
    "another zip": (zipped(readme=b"text"), "a zip archive without weights"),
    "TorchScript": (script(), "a TorchScript archive"),
    "a zip cut short": (TORCH[: len(TORCH) // 2], "its archive is cut short or altered"),
    "a zip without its end": (TORCH[:-4], "its archive is cut short or altered"),
    "a flipped bit in a zip": (flipped(TORCH, inside(TORCH)), "its archive is cut short or altered"),
    "a flipped bit in arrays": (flipped(npz(**STATE), inside(npz(**STATE))), "its archive is cut short or altered"),
    "an old file cut short": (LEGACY[:-8], "is damaged, or holds objects"),
    "safetensors cut short": (SAFE[:-4], "is not a safetensors file"),
    "objects in arrays": (npz(weight=np.array([{}], dtype=object)), "is damaged, or holds objects beside arrays"),
    "one tensor": (dumped(torch.zeros(2)), "holds no state dict, but a single tensor"),
    "a list": (dumped([torch.zeros(2)]), "holds no state dict, but a list"),
    "no tensors": (dumped({"epoch": 3}), "there are no tensors by name"),
    "numbers for names": (dumped({0: torch.zeros(2), 1: torch.zeros(2)}), "named by numbers"),
    "a whole model": (dumped({"model": linear()}), "save model.state_dict"),
    "a shell command": (dumped({**STATE, "x": Harm(os.system, "touch harmed")}), "would have to be run .*system"),
    "eval": (dumped({**STATE, "x": Harm(eval, "open('harmed', 'w')")}), "would have to be run .*eval"),
    "an import": (dumped({**STATE, "x": Harm(__import__, "os")}), "would have to be run"),
    "a plain pickle": (pickle.dumps({**STATE, "x": Harm(os.system, "touch harmed")}), "would have to be run"),
    "a sparse tensor": (dumped({**STATE, "weight": STATE["weight"].to_sparse()}), "weight is sparse"),
    "a complex tensor": (dumped({**STATE, "weight": STATE["weight"].to(torch.complex64)}), "weight is complex"),
    "a bool tensor": (dumped({**STATE, "weight": STATE["weight"] > 2}), "weight holds bool, not float32"),
    "whole numbers": (dumped({**STATE, "weight": STATE["weight"].to(torch.int8)}), "weight holds int8, not float32"),
    "8-bit floats": (dumped({**STATE, "weight": STATE["weight"].to(torch.float8_e4m3fn)}), "weight holds float8"),
    "a quantized tensor": (
        dumped({**STATE, "weight": torch.quantize_per_tensor(STATE["weight"], 0.1, 0, torch.qint8)}),
        "weight is quantized",
    ),
    "a tensor without values": (dumped({**STATE, "weight": torch.zeros(2, 3, device="meta")}), "without values"),
    "a list of numbers": (dumped({"weight": [[1.0] * 3] * 2, "bias": STATE["bias"]}), "weight is a list"),
    "not a number": (dumped({**STATE, "bias": torch.tensor([7.0, float("nan")])}), "bias holds 1 of 2 values that are"),
    "too large for float32": (dumped({**STATE, "bias": torch.tensor([7.0, 1e300]).double() * 1e300}), "NaN or inf"),
    "a shape beyond memory": (dumped({**STATE, "x": torch.zeros(1).expand(2**50)}), "more than this machine's memory"),
    "two that fit alike": (
        dumped({f"{net}.{key}": value + i for i, net in enumerate(("a", "b")) for key, value in STATE.items()}),
        "two sets of weights that fit alike, under 'a.' and 'b.'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_without_weights_is_refused_in_one_line(case: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[case]
    Path("file.pth").write_bytes(content)
    model = linear()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as refused:
        load_weights(model, Path("file.pth"))
    assert len(str(refused.value).splitlines()) <= 2 and not Path("harmed").exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_folder_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such file, but a folder"):
        read_weights(tmp_path)
    with pytest.raises(BadInput, match="there is no such file"):
        read_weights(tmp_path / "none.pth")


class AttributeDict(dict):  # type: ignore[type-arg]
    """Stands for Lightning's, under its name."""


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's dict and a configuration of omegaconf, for as long as the file is written."""
    for path, name, bases in (
        ("pytorch_lightning.utilities.parsing", "AttributeDict", (dict,)),
        ("omegaconf.dictconfig", "DictConfig", (object,)),
    ):
        parts = path.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(parts[i]))
        made = type(name, bases, {"__module__": path})
        monkeypatch.setattr(sys.modules[path], name, made, raising=False)


BESIDE: dict[str, Callable[[], Any]] = {
    "a scalar of NumPy": lambda: np.float64(71.2),
    "an array of NumPy": lambda: np.arange(3, dtype=np.float32),
    "a type of NumPy": lambda: np.dtype("int64"),
    "arguments": lambda: argparse.Namespace(lr=0.1, data=Path("data"), steps=np.int64(3)),
    "a time": lambda: datetime.datetime(2024, 1, 2, 3, 4),
    "an ordered dict": lambda: OrderedDict(a=1),
    "a simple namespace": lambda: types.SimpleNamespace(lr=0.1),
    "settings of Lightning": lambda: _like("pytorch_lightning.utilities.parsing", "AttributeDict", {"lr": 0.1}),
    "settings of omegaconf": lambda: _like("omegaconf.dictconfig", "DictConfig", None),
}


def _like(module: str, name: str, held: Any) -> Any:
    made = getattr(sys.modules[module], name)
    return made() if held is None else made(held)


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.parametrize("zipfile_", [True, False])
def test_plain_objects_beside_the_weights_are_left_alone(case: str, zipfile_: bool, tmp_path: Path, lightning) -> None:
    held = {"model": STATE, "beside": BESIDE[case](), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    torch.save(held, tmp_path / "file.pth", _use_new_zipfile_serialization=zipfile_)
    for module in ("pytorch_lightning.utilities.parsing", "omegaconf.dictconfig"):
        del sys.modules[module]  # its classes are not imported to read the file
    model, said = linear(), []
    load_weights(model, tmp_path / "file.pth", log=said.append)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])
    assert said == ["file.pth: 2 tensors of its entry 'model'"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted_and_that_is_said(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "half.bin")
    model, said = linear(), []
    load_weights(model, tmp_path / "half.bin", log=said.append)
    assert torch.equal(model.weight, STATE["weight"]) and model.weight.dtype == torch.float32
    name = str(dtype).removeprefix("torch.")
    assert said == [f"half.bin: 2 tensors; {name} values are converted to float32"]


@pytest.mark.parametrize("zipfile_", [True, False])
def test_a_wrong_ending_is_in_nobody_s_way(zipfile_: bool, tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "file.safetensors", _use_new_zipfile_serialization=zipfile_)
    if zipfile_:
        assert torch.equal(read_weights(tmp_path / "file.safetensors").tensors["model.weight"], STATE["weight"])
        return
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_weights(tmp_path / "file.safetensors")


def test_arrays_by_the_model_s_names(tmp_path: Path) -> None:
    (tmp_path / "file.npz").write_bytes(npz(**STATE))
    model = linear()
    load_weights(model, tmp_path / "file.npz")
    assert torch.equal(model.weight, STATE["weight"])


def test_a_name_that_says_the_sha256_is_held_to_it(tmp_path: Path) -> None:
    """safetensors has no checksum: a flipped bit can only be found out where the name has one, as in caches of hubs."""
    named = tmp_path / f"weights-{hashlib.sha256(SAFE).hexdigest()}.safetensors"
    named.write_bytes(SAFE)
    (tmp_path / "model.safetensors").symlink_to(named)
    load_weights(linear(), tmp_path / "model.safetensors")
    named.write_bytes(flipped(SAFE, len(SAFE) - 2))
    for path in (named, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match="its sha256 is not the one in its name"):
            load_weights(linear(), path)


def start_of_values(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(["zip", "header"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_values(kind: str, place: float, bit: int) -> None:
    """Anywhere in a file of torch.save; in the header of safetensors (its values have no checksum)."""
    import tempfile

    content = TORCH if kind == "zip" else SAFE
    at = int(place * (len(content) if kind == "zip" else start_of_values(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.pth")
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
        model = linear()
        try:
            load_weights(model, path)
        except CheckpointError:
            return
        assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])
