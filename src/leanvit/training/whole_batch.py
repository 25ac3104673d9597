"""A loss over the whole batch of all processes, such as a contrastive one, of features that each process computes.

The features are put together with their gradients, every process computes the same loss, and averaging the gradients
over the processes gives those of one process: for the model, and for parameters of the objective itself.

`chunk=N` runs the model on N images at a time: once without gradients for the features of the whole batch, and, after
the loss has been differentiated with respect to them, once more for the gradients of the model (as GradCache does, Gao
et al., arXiv 2101.06983). Both times an image gets the random draws that it has in the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanvit.data import Batch, keyed
from leanvit.errors import BadInput
from leanvit.knobs import Count, check
from leanvit.tasks.objectives import Loss, Objective
from leanvit.training.config import FitConfig
from leanvit.training.draws import GlobalDraws, watched
from leanvit.training.parallel import of_all_processes
from leanvit.training.world import World

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Begun:
    """A chunked forward after its first part: what the second pass over the images needs."""

    loss: Loss  # detached
    slopes: dict[str, Tensor]  # of the loss with respect to the features (B, ...) of this process
    own: list[tuple[Tensor, Tensor]]  # parameters of the objective, and the loss's gradients of them
    states: tuple[Any, ...]  # of the generators, before the first image


class WholeBatch(Objective):
    """Base of losses over the whole batch; subclasses give `features` and `loss`.

    chunk: images that a process runs through the model at once, with gradients; None: all that it has.
    """

    def __init__(self, chunk: int | None = None) -> None:
        super().__init__()
        self.chunk: int | None = None if chunk is None else check("chunk", chunk, Count)
        self._begun: _Begun | None = None
        self._watched = False  # whether draws that `GlobalDraws` does not cover were looked for

    def features(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What the loss compares: tensors (B, ...) by name, a row an image of the batch. Arguments as of `forward`."""
        raise TypeError(f"{type(self).__name__} does not define features(model, batch, step, context)")

    def loss(self, features: Mapping[str, Tensor]) -> Loss:
        """Loss of the features (images of all processes, ...), in the order of the whole batch; float32."""
        raise TypeError(f"{type(self).__name__} does not define loss(features)")

    def share_out(self, model: nn.Module, config: FitConfig, world: World) -> None:
        """Called once by `fit`: settle `pieces`. Raises BadInput where there can be no loss over the whole batch."""
        name = type(self).__name__
        if config.batch_size < 2:
            raise BadInput(
                f"batch_size={config.batch_size} is too small for {name}, which compares images: give 2 or more"
            )
        if config.accumulate > 1:
            raise BadInput(
                f"accumulate={config.accumulate} would part the batch that {name} is one loss of: give accumulate=1 "
                f"with batch_size={config.batch_size * config.accumulate}, and where memory is short chunk=N to {name}"
            )
        if self.chunk is None:
            return
        if config.compile:
            raise BadInput(f"chunk={self.chunk} of {name} needs compile=False: compiled kernels draw for themselves")
        modules = chain(model.named_modules(), self.named_modules())
        norm = next((name for name, module in modules if isinstance(module, _BatchNorm)), None)
        if norm is not None and config.train_mode == "train":
            raise BadInput(
                f"chunk={self.chunk} of {name} would give the batch norm {norm!r} the statistics of a chunk: give "
                "chunk=None, or train_mode='eval' to keep the averages that the model has"
            )
        if any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
            raise BadInput(
                f"chunk={self.chunk} of {name} already runs every image twice: switch the model's gradient "
                "checkpointing off, or give chunk=None"
            )
        self.pieces = -(-config.batch_size // (world.size * self.chunk))

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        """Loss of the whole batch, the images of this process in one go."""
        return self._of_all(self._features(model, batch, step, context), batch)

    def piece(self, number: int, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        """With `chunk`: a total whose gradient is what the images of one chunk add; the loss's value is in piece 0."""
        if self.chunk is None:
            return self(model, batch, step, context)
        if number == 0:
            self._begun = self._begin(model, batch, step, context)
        begun = self._begun
        assert begun is not None, "piece 0 comes first"
        places = self._places(batch, number)
        features = self._of_chunk(places or [0], model, batch, step, context, begun.states)
        slopes = {name: slope[places or [0]] * bool(places) for name, slope in begun.slopes.items()}
        pull = torch.stack([(features[name] * slope).sum() for name, slope in slopes.items()]).sum()
        if number == self.pieces - 1:
            self._begun = None
        if number:
            return Loss(pull - pull.detach())
        for parameter, slope in begun.own:
            pull = pull + (parameter * slope).sum()
        return Loss(begun.loss.total + (pull - pull.detach()), begun.loss.parts)

    def _begin(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> _Begun:
        """The loss, and its gradients with respect to the features and to the objective's own parameters."""
        before = keyed.states()
        with torch.no_grad():
            chunks = [self._places(batch, number) for number in range(self.pieces)]
            found = [self._of_chunk(places or [0], model, batch, step, context, before) for places in chunks]
        torch.clear_autocast_cache()  # of weights without gradients
        found = [features for features, places in zip(found, chunks, strict=True) if places]
        features = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        floats = [tensor.requires_grad_() for tensor in features.values() if tensor.is_floating_point()]
        loss = self._of_all(features, batch)
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        slopes = torch.autograd.grad(loss.total, [*floats, *own], allow_unused=True)
        names = [name for name, tensor in features.items() if tensor.is_floating_point()]
        self._watched = True
        return _Begun(
            loss=Loss(loss.total.detach(), loss.parts),
            slopes={
                name: torch.zeros_like(tensor) if slope is None else slope
                for name, tensor, slope in zip(names, floats, slopes[: len(floats)], strict=True)
            },
            own=[(p, slope) for p, slope in zip(own, slopes[len(floats) :], strict=True) if slope is not None],
            states=before,
        )

    def _places(self, batch: Batch, number: int) -> list[int]:
        """Of the images of this process, those of one chunk; none where images that cannot be read were skipped."""
        assert self.chunk is not None
        return list(range(len(batch)))[number * self.chunk : (number + 1) * self.chunk]

    def _of_chunk(
        self,
        places: list[int],
        model: nn.Module,
        batch: Batch,
        step: int,
        context: Mapping[str, Any],
        states: tuple[Any, ...],
    ) -> dict[str, Tensor]:
        """Features of some images, with the random draws that they have in the whole batch."""
        keyed.set_states(states)
        whole, rows = batch.standing()
        with (
            GlobalDraws(len(places), whole, [rows[p] for p in places]) as draws,
            watched(None if self._watched else draws),
        ):
            return self._features(model, batch.take(places), step, context)

    def _features(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> dict[str, Tensor]:
        found = self.features(model, batch, step, context)
        for name, tensor in found.items():
            if tensor.ndim == 0 or len(tensor) != len(batch):
                raise BadInput(
                    f"features of {type(self).__name__} gives {name!r} of shape {tuple(tensor.shape)} for {len(batch)} "
                    f"images; accepted: ({len(batch)}, ...)"
                )
        return {name: tensor.float() if tensor.dtype in _HALVES else tensor for name, tensor in found.items()}

    def _of_all(self, features: Mapping[str, Tensor], batch: Batch) -> Loss:
        rows = _rows(batch)
        counting = {name: tensor[: len(rows)] for name, tensor in features.items()}
        with torch.autocast(batch.images.device.type, enabled=False):
            return self.loss(of_all_processes(counting, rows))


def _rows(batch: Batch) -> Sequence[int]:
    return range(len(batch)) if batch.rows is None else batch.rows
