"""Files that are whole or absent, sealed against later changes, and read with care. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError

from leanvit.errors import CheckpointError, LeanvitError, nearest

JSON_LIMIT = 16 * 2**20  # bytes; the largest plan we know is under one
UNSEALED = {"leanvit.seal": "0" * 64}  # metadata of a safetensors file that is to be sealed: room for the digest
_SEAL = re.compile(rb'"leanvit\.seal":"([0-9a-f]{64})"')


class Strict(BaseModel):
    """A JSON object with exactly these keys and types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sealed(Strict):
    """A JSON file of ours: what it is, its format version, and the sha256 of everything else in it."""

    kind: str
    format: int
    seal: str


S = TypeVar("S", bound=Sealed)
T = TypeVar("T")


def write_atomic(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new one and nothing between.

    Args:
        content: the bytes, or a function that fills the (temporary) file whose path it is given.

    Raises:
        LeanvitError: the system's reason (disk full, read-only); an older file at `path` stays whole.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        kept = "; the file that was there is unchanged" if path.exists() else ""
        raise LeanvitError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}{kept}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_of(content: dict[str, Any]) -> str:
    """sha256 over the canonical text of a JSON object, its own seal left out."""
    rest = {k: v for k, v in content.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed_text(content: dict[str, Any]) -> bytes:
    """A JSON object as the text of a file that `read_sealed` accepts."""
    return json.dumps({**content, "seal": seal_of(content)}, indent=1).encode()


def read_sealed(path: Path, model: type[S], *, kind: str, newest: int, changed: str, features: Sequence[str] = ()) -> S:
    """A sealed JSON file, validated strictly.

    Args:
        model: its keys and types.
        kind: the `kind` that it must have.
        newest: the newest format version that is understood.
        changed: what to tell a user whose file does not match its seal.
        features: those that are understood of the ones that a file may name under "features".

    Raises:
        CheckpointError: too large, not JSON, foreign, from a newer format, with an unknown feature or wrong keys, or
            changed.
    """
    from leanvit import __version__

    size = path.stat().st_size
    if size > JSON_LIMIT:
        raise CheckpointError(f"{path} has {size} bytes; accepted: up to {JSON_LIMIT}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON (truncated?): {error}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise CheckpointError(f"{path} is not a {kind.replace('-', ' ')} (kind: {_short(content)})")
    found = content.get("format")
    if isinstance(found, int) and found > newest:
        raise CheckpointError(
            f"{path} has format {found}; this leanvit {__version__} reads up to {newest}: update leanvit"
        )
    needed = content.get("features", [])
    strange = [name for name in needed if name not in features] if isinstance(needed, list) else []
    if strange:
        known = ", ".join(features) or "none"
        raise CheckpointError(
            f"{path} uses the feature {strange[0]!r}; this leanvit {__version__} knows {known}: update leanvit"
        )
    try:
        file = model.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {strict_message(error, model)}") from error
    if file.seal != seal_of(content):
        raise CheckpointError(f"{path} was changed after it was written. {changed}")
    return file


def seal_tensors(path: Path) -> None:
    """Write into a safetensors file, saved with `UNSEALED` in its metadata, the sha256 of all its other bytes."""
    found = _seal_in(path)
    if found is None:
        raise CheckpointError(f"{path} has no room for a seal in its header")
    digest = _sha256_around(path, found[0])
    with path.open("rb+") as file:
        file.seek(found[0])
        file.write(digest.encode())


def check_sealed_tensors(path: Path) -> bool:
    """Whether a safetensors file of leanvit is sealed. Raises `CheckpointError` if a bit of it changed since."""
    found = _seal_in(path)
    if found is None:
        return False
    place, sealed = found
    digest = _sha256_around(path, place)
    if digest != sealed:
        raise CheckpointError(
            f"{path} is damaged, it was changed after it was written: its sha256 is {digest[:12]}…, saved was "
            f"{sealed[:12]}…"
        )
    return True


def _seal_in(path: Path) -> tuple[int, str] | None:
    """(place in the file, text) of the seal in the header of a safetensors file; None where there is none."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(min(length, JSON_LIMIT))
    seals = list(_SEAL.finditer(header))
    return (8 + seals[0].start(1), seals[0].group(1).decode()) if len(seals) == 1 else None


def _sha256_around(path: Path, place: int) -> str:
    """sha256 of a file, its seal at `place` taken as zeros."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(place))
        file.seek(place + 64)
        digest.update(b"0" * 64)
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(file: Path, digest: str) -> None:
    """Raise `CheckpointError` unless `file` is there, lies in its folder by its plain name, and has this sha256."""
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: {file.name} is missing")
    found = file_sha256(file)
    if found != digest:
        raise CheckpointError(f"{file} was truncated or changed: its sha256 is {found[:12]}…, saved was {digest[:12]}…")


def plain_name(folder: Path, name: str) -> Path:
    """The path of a file that a JSON file names. Raises `CheckpointError` if the name leads out of the folder."""
    if Path(name).name != name:
        raise CheckpointError(f"{folder}: {name!r} is not a plain file name")
    return folder / name


def read_strict(kind: type[T], text: str | bytes, what: str) -> T:
    """A dataclass from JSON text, each key and type as it says. Raises `CheckpointError` that begins with `what`."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the text"
        raise CheckpointError(f"{what}: {where}: {first['msg']}") from None


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
