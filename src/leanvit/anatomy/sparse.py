"""Zeros as a property of a model: which of its tensors are sparse, that is, whose exact zeros are pruned weights.

There are no masks. A pruned weight is an exact zero, and the module that holds the tensor is marked with the tensor's
name. So the mark goes where the module goes: through a copy, into a model of parts, into a wrapper that a method puts
around it. Where the tensor is taken away (rounded to int8, cut out with its module), the mark counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from leanvit.errors import BadInput, unknown

_MARK = "_sparse_tensors"  # attribute of the module that holds them: names of its own parameters and buffers


def mark_sparse(module: nn.Module, key: str) -> None:
    """Mark a module's own parameter or buffer, by its name in the module, as sparse."""
    setattr(module, _MARK, tuple(sorted({*_marks(module), key})))


def is_sparse(module: nn.Module, key: str) -> bool:
    """Whether a module's own tensor of this name is there and sparse."""
    return key in _marks(module) and getattr(module, key, None) is not None


def sparse_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The sparse parameters by their names in `named_parameters()`, sorted; shared ones once."""
    ids = {id(tensor) for tensor in _marked(model)}
    if not ids:
        return {}
    return dict(sorted((name, p) for name, p in model.named_parameters() if id(p) in ids))


def sparse_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The sparse parameters, and the sparse buffers of weights that are kept as integers, by their names in the state
    dict, sorted. Shared tensors stand under each of their names."""
    ids = {id(tensor) for tensor in _marked(model)}
    if not ids:
        return {}
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return dict(sorted((name, tensor) for name, tensor in every if id(tensor) in ids))


def set_sparse(model: nn.Module, names: Iterable[str]) -> None:
    """Make exactly these parameters the sparse ones. Raises `BadInput` for a name that is none of `named_parameters()`,
    before anything is marked."""
    if isinstance(names, str):
        raise BadInput(f"sparse is {names!r}; accepted: a tuple of names of parameters")
    wanted, known = sorted(set(names)), [name for name, _ in model.named_parameters()]
    for name in wanted:
        if name not in known:
            raise unknown("parameter in sparse", name, known)
    for module in model.modules():
        if marks := _marks(module):  # those of integers stay: they are no parameters
            setattr(module, _MARK, tuple(key for key in marks if key not in module._parameters))
    for name in wanted:
        path, _, key = name.rpartition(".")
        mark_sparse(model.get_submodule(path), key)


def _marks(module: nn.Module) -> tuple[str, ...]:
    marks: tuple[str, ...] = vars(module).get(_MARK, ())
    return marks


def _marked(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for key in _marks(module):
            if is_sparse(module, key):
                yield getattr(module, key)
