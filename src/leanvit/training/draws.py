"""Random draws of a model that do not depend on the number of processes.

Dropout, drop path and token dropping draw a number for every image of the batch. With several processes each holds
some of the images: it draws for the whole batch, from the generator state that all processes share, and takes the rows
of its own images. Then a run on two processes drops what the run on one drops.

A draw is for images if its first dimension is a multiple of the number of images at hand (windows and crops of an
image lie side by side). Any other draw is the same on all processes, as it is in one.

Python code cannot reach into compiled kernels. `watched` sees every operation that draws; one that `GlobalDraws` does
not cover is refused by name. That is: dropout inside a fused attention kernel (on GPUs), `nn.MultiheadAttention` with
dropout, `gumbel_softmax`, `rrelu`, `fractional_max_pool` and `multinomial`. On CPUs scaled dot product attention with
dropout runs the plain formula, and is covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from leanvit.errors import Refused

_IN_PLACE = frozenset(
    getattr(Tensor, name)
    for name in ("bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "log_normal_", "cauchy_")
)
_LIKE = frozenset((torch.rand_like, torch.randn_like, torch.randint_like))
_SIZED = frozenset((torch.rand, torch.randn))
_DROPOUT = frozenset(
    (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
)
_ALPHA = frozenset((F.alpha_dropout, F.feature_alpha_dropout))


class GlobalDraws(TorchFunctionMode):
    """While active, draws for images are those of the whole batch.

    images: how many this process holds. whole: how many all hold. rows: which of the whole batch are here, in order.
    """

    def __init__(self, images: int, whole: int, rows: Sequence[int] | np.ndarray) -> None:
        super().__init__()
        self.images, self.whole = images, whole
        self.rows = torch.as_tensor(rows)
        self.drawing = False  # inside a draw of its own: what `watched` sees then is covered

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draw = self._covered(func)
        if draw is None:
            return func(*args, **kwargs)
        self.drawing = True
        try:
            return draw(func, *args, **kwargs)
        finally:
            self.drawing = False

    def _covered(self, func: Any) -> Callable[..., Any] | None:
        if func in _DROPOUT:
            return self._dropout
        if func in _IN_PLACE:
            return self._in_place
        if func in _LIKE:
            return self._like
        if func in _SIZED:
            return self._sized
        if func is torch.randint:
            return self._randint
        if func is torch.bernoulli:
            return self._bernoulli
        if func is torch.randperm:
            return self._permutation
        return self._attention if func is F.scaled_dot_product_attention else None

    # -- shapes -------------------------------------------------------------------------------------------------------

    def _is_for_images(self, shape: Sequence[int]) -> bool:
        return len(shape) > 0 and shape[0] > 0 and shape[0] % self.images == 0

    def _whole_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0] // self.images * self.whole, *shape[1:])

    def _own(self, drawn: Tensor) -> Tensor:
        """The rows of a draw for the whole batch that belong to the images here."""
        by_image = drawn.reshape(self.whole, -1, *drawn.shape[1:])
        return by_image[self.rows.to(drawn.device)].flatten(0, 1)

    # -- draws --------------------------------------------------------------------------------------------------------

    def _in_place(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if any(isinstance(a, Tensor) and a.ndim for a in args):
            self.drawing = False  # a chance of its own for each element: not covered
            return func(tensor, *args, **kwargs)
        if not self._is_for_images(tensor.shape):
            return func(tensor, *args, **kwargs)
        return tensor.copy_(self._own(func(tensor.new_empty(self._whole_shape(tensor.shape)), *args, **kwargs)))

    def _like(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._is_for_images(tensor.shape):
            return func(tensor, *args, **kwargs)
        return self._own(func(tensor.new_empty(self._whole_shape(tensor.shape)), *args, **kwargs))

    def _sized(self, func: Any, *size: Any, **kwargs: Any) -> Tensor:
        shape = kwargs.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        if not self._is_for_images(shape):
            return func(*shape, **kwargs)
        return self._own(func(*self._whole_shape(shape), **kwargs))

    def _randint(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        shape = kwargs.pop("size", None)
        bounds, shape = (args, shape) if shape is not None else (args[:-1], args[-1])
        if not self._is_for_images(shape):
            return func(*bounds, size=shape, **kwargs)
        return self._own(func(*bounds, size=self._whole_shape(shape), **kwargs))

    def _permutation(self, func: Any, count: int, *args: Any, **kwargs: Any) -> Tensor:
        self.drawing = count != self.images  # of images: would have to cross processes, and is not covered
        return func(count, *args, **kwargs)

    def _bernoulli(self, func: Any, chances: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or not self._is_for_images(chances.shape):
            return func(chances, *args, **kwargs)
        # what other processes' images would draw with is not known here, and does not matter: a draw each
        everyone = chances.new_full(self._whole_shape(chances.shape), 0.5)
        by_image = everyone.view(self.whole, -1, *chances.shape[1:])
        by_image[self.rows.to(chances.device)] = chances.detach().reshape(len(self.rows), -1, *chances.shape[1:])
        return self._own(func(everyone, **kwargs))

    def _dropout(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool | None = None, inplace: bool = False, **kw: Any
    ) -> Tensor:
        if training is None:
            training = func not in _ALPHA  # their default
        training = kw.pop("train", training)
        if not training or p == 0 or not self._is_for_images(input.shape):
            return func(input, p, training) if func is torch.dropout else func(input, p, training, inplace)
        if func in _ALPHA:
            raise Refused(f"{func.__name__} cannot be drawn for several processes: train with one, or without it")
        ones = torch.ones(self._whole_shape(input.shape), dtype=input.dtype, device=input.device)
        noise = self._own(func(ones, p, True))
        return input.mul_(noise) if inplace else input * noise

    def _attention(
        self,
        func: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if dropout_p == 0 or query.device.type != "cpu":  # with dropout on a GPU the watch refuses it
            self.drawing = dropout_p == 0
            return func(query, key, value, attn_mask, dropout_p, *args, **kwargs)
        weights = attention_weights(query, key, attn_mask, *args, **kwargs)
        if kwargs.get("enable_gqa"):
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
        return self._dropout(F.dropout, weights, dropout_p, True) @ value


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale q kᵀ + mask), (..., heads, queries, keys): the first half of scaled dot product attention."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5  # on both sides, as the kernel does
    scores = (query * factor) @ (key * factor).transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


class _Watch(TorchDispatchMode):
    """Refuses an operation that draws and that `draws` does not cover."""

    def __init__(self, draws: GlobalDraws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self.draws.drawing and _really_draws(func, args):
            raise Refused(
                f"{func} draws random numbers that would depend on the number of processes: train with one process, or "
                "without what draws them (attn_drop_rate=0 where it is attention dropout)"
            )
        return func(*args, **(kwargs or {}))


def _really_draws(func: Any, args: Sequence[Any]) -> bool:
    """Fused attention is marked as drawing, but draws only with dropout."""
    if "attention" not in str(func):
        return True
    names = [argument.name for argument in func._schema.arguments]
    return "dropout_p" in names and len(args) > names.index("dropout_p") and args[names.index("dropout_p")] > 0


@contextmanager
def watched(draws: GlobalDraws | None) -> Iterator[None]:
    """Look at every operation under `draws` (None: at nothing). For a run's first step: it slows small models down."""
    with nullcontext() if draws is None else _Watch(draws):
        yield
