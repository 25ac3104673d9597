"""Parts of a model that learn nothing in a training (`FitConfig.locked`).

They stay in eval mode, so that dropout is off and batch norms keep their statistics, and their parameters require no
gradient: the optimiser does not know them, and nothing decays them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from leanvit.errors import BadInput, unknown
from leanvit.training.config import FitConfig


def check_locked(model: nn.Module, names: Sequence[str]) -> None:
    """Raise BadInput for a name that no module or parameter has, and where nothing that learns is left."""
    modules, parameters = ([name for name, _ in found] for found in (model.named_modules(), model.named_parameters()))
    for name in names:
        if not name or name not in (*modules, *parameters):
            outside = [one for one in parameters if "." not in one]
            raise unknown("locked module", name, [*filter(None, modules), *outside])
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    if names and all(is_locked(name, names) for name in learning):
        raise BadInput(f"locked is {tuple(names)!r}, which leaves no parameter that learns: leave a module out")


def is_locked(name: str, locked: Sequence[str]) -> bool:
    """Whether a module or parameter of this name is one of those that are locked, or in one."""
    return any(name == one or name.startswith(f"{one}.") for one in locked)


def lock(model: nn.Module, names: Sequence[str]) -> None:
    """Take these parameters, and those of these modules, out of the training."""
    for name, p in model.named_parameters():
        if is_locked(name, names):
            p.requires_grad_(False)


def flags_of(model: nn.Module) -> dict[str, bool]:
    """Which parameters require a gradient, by name."""
    return {name: p.requires_grad for name, p in model.named_parameters()}


def set_flags(model: nn.Module, flags: Mapping[str, bool]) -> None:
    """Take up `flags_of` again."""
    for name, p in model.named_parameters():
        p.requires_grad_(flags.get(name, p.requires_grad))


def into_training(model: nn.Module, config: FitConfig) -> None:
    """Put the model into the mode that the recipe trains in, its locked parts into eval mode."""
    model.train(config.train_mode == "train")
    for name, module in model.named_modules():
        if name in config.locked:
            module.eval()
