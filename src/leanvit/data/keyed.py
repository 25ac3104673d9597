"""Keyed randomness: every random draw is a function of named parts, never of global state, process or order.

keyed.generator(seed, "mixup", step)             # a torch generator of its own
with keyed.global_rng(seed, epoch, key): ...     # for library code that draws from the global generators
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from leanvit.errors import BadInput

Part = int | str | float | bool | bytes | None


def seed_of(*parts: Part) -> int:
    """A 64-bit seed in [0, 2**64) that depends on the parts, their types and their order, on every machine alike.

    Raises BadInput for a part that is not an int, str, float, bool, bytes or None: others have no stable text.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        tag, data = _encoded(part)
        digest.update(b"%s%d:" % (tag, len(data)))  # the length keeps ("a", "b") apart from ("ab",)
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def generator(*parts: Part, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded with `seed_of(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def numpy(*parts: Part) -> np.random.Generator:
    """A numpy generator seeded with `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))


@contextmanager
def global_rng(*parts: Part, cuda: bool = True) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch for the block, and give all of them back as they were.

    With `cuda`, the generator of the current CUDA device is seeded and restored too, if CUDA is in use already.
    """
    cuda = cuda and torch.cuda.is_initialized()
    before = states(cuda=cuda)
    try:
        seed_global(*parts)
        if cuda:
            torch.cuda.manual_seed(seed_of(*parts))
        yield
    finally:
        set_states(before)


def states(*, cuda: bool = True) -> tuple[Any, ...]:
    """The states of the global generators of python, numpy, torch and, if CUDA is in use, the current CUDA device."""
    cuda_state = torch.cuda.get_rng_state() if cuda and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state(), cuda_state


def set_states(given: tuple[Any, ...]) -> None:
    """Put back what `states` gave."""
    python_state, numpy_state, torch_state, cuda_state = given
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.default_generator.set_state(torch_state)
    if cuda_state is not None:
        torch.cuda.set_rng_state(cuda_state)


def seed_global(*parts: Part) -> None:
    """Seed the global CPU generators of python, numpy and torch; call it inside `global_rng`, which restores them."""
    set_global(seed_of(*parts))


def set_global(seed: int) -> None:
    """`seed_global` by a seed that is known already: `Batch.seeds` are such ones."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # its quick seeds have 32 bits
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well


def hashes(keys: Sequence[str]) -> np.ndarray:
    """One stable 64-bit hash a key: (N,) uint64."""
    return np.fromiter((seed_of(key) for key in keys), dtype=np.uint64, count=len(keys))


def ranks(hashed: np.ndarray, *parts: Part) -> np.ndarray:
    """Keyed values (N,) uint64 of hashed keys, to sort or to threshold; each depends on its key and `parts` only.

    The mixing is the finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection: distinct hashes stay distinct.
    """
    with np.errstate(over="ignore"):
        x = hashed ^ np.uint64(seed_of(*parts))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _encoded(part: Any) -> tuple[bytes, bytes]:
    if part is None:
        return b"n", b""
    if isinstance(part, bool | np.bool_):
        return b"b", b"1" if part else b"0"
    if isinstance(part, int | np.integer):
        return b"i", str(int(part)).encode()
    if isinstance(part, float | np.floating):
        return b"f", float(part).hex().encode()
    if isinstance(part, str):
        return b"s", part.encode("utf-8", "surrogatepass")
    if isinstance(part, bytes):
        return b"y", part
    raise BadInput(f"seed part {part!r} is a {type(part).__name__}; accepted: int, str, float, bool, bytes, None")
