"""What measure knows about a runner: any callable that takes images (B, C, H, W) float32 and gives outputs, as logits
(B, classes).

A module is a runner; so is an artefact of another runtime. A runner may describe itself by attributes: `runtime`,
`precision` (text), `batch` (int: it takes exactly this many images), `device` (text or torch.device). One whose work
depends on the image has `exits`, with `recording()`: a context that gives what its calls did (`anatomy.exits.Work`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from leanvit.errors import BadInput

Runner = Callable[[Tensor], Any]

_PRECISIONS = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}


@contextmanager
def evaluating(*runners: Any) -> Iterator[None]:
    """Put the runners that are modules into eval mode; every submodule gets its own mode back, also after an error."""
    modes = [(m, m.training) for r in runners if isinstance(r, nn.Module) for m in r.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def whole_depth(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, every image runs to the end of a model with early exits."""
    return model.whole_depth() if hasattr(model, "whole_depth") else nullcontext()  # type: ignore[operator]


def recording(runner: Any) -> AbstractContextManager[Any]:
    """Gives what the runner's calls inside do, where that depends on the image; else None."""
    exits: Any = getattr(getattr(runner, "_orig_mod", runner), "exits", None)
    return exits.recording() if hasattr(exits, "recording") else nullcontext()


def device_of(runner: Any) -> torch.device:
    """Where a runner takes its input: `runner.device` if it says so, else a module's first parameter, else the CPU."""
    if getattr(runner, "device", None) is not None:
        return torch.device(runner.device)
    return next((t.device for t in _tensors_of(runner)), torch.device("cpu"))


def float_dtype_of(runner: Any) -> torch.dtype:
    """The dtype of a module's first floating parameter, else float32."""
    return next((t.dtype for t in _tensors_of(runner) if t.is_floating_point()), torch.float32)


def as_taken(candidate: Any, images: Tensor) -> Tensor:
    """The images in the precision of a module's parameters; as they are for integers, and for what is no module."""
    if not images.is_floating_point():
        return images
    return images.to(next((t.dtype for t in _tensors_of(candidate) if t.is_floating_point()), images.dtype))


def fixed_batch_of(runner: Any) -> int | None:
    """The only batch size that a runner takes, or None when it takes any."""
    batch = getattr(runner, "batch", None)
    return batch if isinstance(batch, int) else None


def runtime_of(runner: Any) -> str | None:
    """`runner.runtime`, else `torch` for a module (`torch.compile` for a compiled one), else None: not known."""
    stated = getattr(runner, "runtime", None)
    if stated is not None or not isinstance(runner, nn.Module):
        return stated
    return "torch.compile" if hasattr(runner, "_orig_mod") else "torch"


def precision_of(runner: Any) -> str | None:
    """`runner.precision`, else the dtypes of a module's floating tensors (`f32`, `bf16+f32`), else None: not known."""
    stated = getattr(runner, "precision", None)
    if stated is not None:
        return stated
    kinds = {_PRECISIONS.get(t.dtype, str(t.dtype)) for t in _tensors_of(runner) if t.is_floating_point()}
    return "+".join(sorted(kinds)) or None


def run_in_torch(runner: Any) -> TypeGuard[nn.Module]:
    """Whether a runner is a module whose work torch itself does, so that its operators and tensors can be seen."""
    return isinstance(runner, nn.Module) and (runtime_of(runner) or "").startswith("torch")


def logits_of(runner: Runner, images: Tensor, keys: Sequence[str]) -> Tensor:
    """One batch through a runner: images (B, C, H, W) -> logits (B, classes) float32 on the CPU, checked.

    A runner of a fixed batch gets its batch: longer input in pieces, the last filled up with copies of its last image.
    Raises BadInput for an output of another type or shape, or with NaN or infinity; the text names the batch's keys.
    """
    pieces = _pieces(runner, images)
    logits = torch.cat([_one_call(runner, piece, keys) for piece in pieces])[: len(images)]
    _require_finite("logits", logits, keys)
    return logits


def outputs_of(runner: Runner, images: Tensor, keys: Sequence[str], run: Callable[[Any, Tensor], Any]) -> Any:
    """One batch through a runner whose outputs are of any form: tensors whose first axis is the image, or tuples, lists
    and mappings of such. On the CPU, floating point as float32, checked as `logits_of` checks.

    run: what gives the outputs of (runner, images), as `Task.run`.
    """
    made = [_each(partial(_leaf, len(piece), keys), run(runner, piece)) for piece in _pieces(runner, images)]
    whole = made[0] if len(made) == 1 else _each(lambda *parts: torch.cat(parts), *made)
    outputs = _each(lambda out: out[: len(images)], whole)
    _each(lambda out: _require_finite("outputs", out, keys), outputs)
    return outputs


def _each(change: Callable[..., Any], *outputs: Any) -> Any:
    """Outputs of one form with each tensor changed; of several, those in the same place together."""
    first = outputs[0]
    if isinstance(first, Mapping):
        return {name: _each(change, *(one[name] for one in outputs)) for name in first}
    if isinstance(first, list | tuple):
        return tuple(_each(change, *parts) for parts in zip(*outputs, strict=True))
    return change(*outputs)


def _leaf(images: int, keys: Sequence[str], out: Any) -> Tensor:
    if not hasattr(out, "shape") or not len(out.shape) or out.shape[0] != images:
        got = f"shape {tuple(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise BadInput(
            f"a runner must return outputs whose first axis is the image, {images} of them, it returned {got} "
            f"(keys {_shortened(keys)})"
        )
    tensor = torch.as_tensor(out).detach()
    return tensor.to("cpu", torch.float32) if tensor.is_floating_point() else tensor.cpu()


def _pieces(runner: Runner, images: Tensor) -> list[Tensor]:
    """The images as the runner takes them: of a fixed batch in pieces, the last filled up with its last image."""
    fixed = fixed_batch_of(runner)
    pieces = [images] if fixed is None else [_filled(piece, fixed) for piece in images.split(fixed)]
    return [_as_taken(runner, piece) for piece in pieces]


def _require_finite(what: str, outputs: Tensor, keys: Sequence[str]) -> None:
    if bool(torch.isfinite(outputs).all()):
        return
    bad = [key for key, row in zip(keys, outputs, strict=True) if not bool(torch.isfinite(row).all())]
    raise BadInput(f"{what} are not finite for {len(bad)} of {len(keys)} images: {_shortened(bad)}")


def _as_taken(runner: Runner, images: Tensor) -> Tensor:
    """The images on the runner's device, in the precision of its parameters (a model in half precision takes those)."""
    return images.to(device_of(runner), float_dtype_of(runner) if images.is_floating_point() else images.dtype)


def _one_call(runner: Runner, images: Tensor, keys: Sequence[str]) -> Tensor:
    out = runner(images)
    if not hasattr(out, "shape") or len(out.shape) != 2 or out.shape[0] != len(images):
        got = f"shape {tuple(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise BadInput(
            f"a runner must return logits of shape ({len(images)}, classes) for {len(images)} images, "
            f"it returned {got} (keys {_shortened(keys)})"
        )
    return torch.as_tensor(out).detach().to("cpu", torch.float32)


def _filled(images: Tensor, batch: int) -> Tensor:
    missing = batch - len(images)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images


def _shortened(keys: Sequence[str], limit: int = 5) -> str:
    return ", ".join(map(repr, keys[:limit])) + (f", … ({len(keys)} in all)" if len(keys) > limit else "")


def _tensors_of(runner: Any) -> Iterator[Tensor]:
    if isinstance(runner, nn.Module):
        yield from runner.parameters()
        yield from runner.buffers()
