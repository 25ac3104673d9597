"""One step's forward as a module, and what spreads it over processes: DDP or FSDP2.

DDP holds the whole model on every process and averages gradients. FSDP2 (`fully_shard`) holds a share of every block's
parameters, averaged model and optimiser state included, and puts a block together while it runs. Both see the same
images and make the same draws, so both give the loss curve of one process.

Under FSDP2 the model that `fit` was given waits on the CPU while a sharded copy trains, and gets the weights at the
end. An objective has to run the sharded model by calling it (or its `forward_features`, `embed`, `run`, `classify`):
other parts called on their own are not put together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from leanvit.data import Batch
from leanvit.tasks.objectives import Objective
from leanvit.training.world import World, join_world

_OTHER_FORWARDS = ("forward_features", "forward_head", "embed", "run", "classify")


class TrainStep(nn.Module):
    """Model and objective as one module: however often the objective runs the model, it is one forward of DDP."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, step: int, context: Mapping[str, Any], piece: int = 0) -> dict[str, Tensor]:
        """The total of a piece of the objective as `loss`, and its detached parts by name: scalars."""
        loss = self.objective.piece(piece, self.model, batch, step, context)
        return {"loss": loss.total, **loss.parts}


def replicated(step: TrainStep, world: World) -> nn.Module:
    """The step as it is called: under DDP where there are several processes.

    Parameters that a step does not use are accepted. Buffers of the first process are everyone's.
    """
    if world.size == 1:
        return step
    return DistributedDataParallel(step, find_unused_parameters=True)


def sharded_copy(model: nn.Module) -> nn.Module:
    """A copy of the model that holds only this process's share, on the model's device."""
    device = next(model.parameters()).device
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    model = copy.deepcopy(model)
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in _OTHER_FORWARDS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model


def syncing(step: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """Around forward and backward: gradients are averaged over the processes, or (while accumulating) kept."""
    if isinstance(step, DistributedDataParallel):
        return nullcontext() if now else step.no_sync()
    for module in _roots(step):
        module.set_requires_gradient_sync(now)
    return nullcontext()


def average_replicated(step: nn.Module, world: World) -> None:
    """Average what FSDP2 does not: the gradients of the objective's own parameters. DDP has done so itself."""
    if isinstance(step, TrainStep) and world.size > 1:
        world.mean_([p.grad for p in step.objective.parameters() if p.grad is not None])


def of_all_processes(own: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """The tensors (len(rows), ...) of every process put together, in the order of their rows; alike on all.

    Gradients go back to the process that a row is from, those of all processes added up. A process may have no row.
    """
    world = join_world()
    if world.size == 1:
        return dict(own)
    every = world.gathered(list(rows))
    order = torch.tensor(sorted(range(sum(map(len, every))), key=[row for part in every for row in part].__getitem__))
    sizes = [len(part) for part in every]
    return {name: _Gather.apply(tensor, sizes, world.rank, order.to(tensor.device)) for name, tensor in own.items()}


class _Gather(torch.autograd.Function):
    """all_gather of unequal counts whose backward adds up what the processes ask of each row."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], rank: int, order: Tensor) -> Tensor:
        ctx.sizes, ctx.rank, ctx.order = sizes, rank, order
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])[order]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        by_rank = torch.empty_like(slopes[0], memory_format=torch.contiguous_format)
        by_rank[ctx.order] = slopes[0]
        torch.distributed.all_reduce(by_rank)
        return by_rank.split(ctx.sizes)[ctx.rank], None, None, None


def gradient_norm(trained: Sequence[nn.Parameter], world: World) -> Tensor:
    """Global 2-norm of the gradients: a scalar on their device, the same on all processes."""
    grads = [p.grad for p in trained if p.grad is not None]
    shares = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    norm = torch.nn.utils.get_total_norm([grad for grad in grads if not isinstance(grad, DTensor)])
    if not shares:
        return norm
    squared = torch.nn.utils.get_total_norm(shares).square()
    torch.distributed.all_reduce(squared)
    return (squared + norm.to(squared).square()).sqrt()


def scale_gradients(trained: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiply the gradients by a scalar, in place."""
    grads = [p.grad for p in trained if p.grad is not None]
    torch._foreach_mul_([own_part(grad) for grad in grads], factor)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, as one: all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(own: Tensor, full: Tensor) -> Tensor:
    """`full` as `own` lies: this process's share where it is sharded. Nothing is sent."""
    if not isinstance(own, DTensor):
        return full
    full = full.to(own.device)
    return distribute_tensor(full, own.device_mesh, own.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of a module that may be sharded, every tensor whole."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


@contextmanager
def as_whole(model: nn.Module, spare: nn.Module) -> Iterator[nn.Module]:
    """The model, or where it is sharded its weights in `spare`: processes may run that a different number of times."""
    if not is_sharded(model):
        yield model
        return
    spare.load_state_dict(whole_state(model))
    spare.to(next(model.parameters()).device)
    try:
        yield spare
    finally:
        spare.cpu()


def _roots(step: nn.Module) -> Iterable[FSDPModule]:
    model = getattr(step, "model", None)
    return (model,) if isinstance(model, FSDPModule) else ()
