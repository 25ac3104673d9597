"""The optimiser of a run: which parameters decay, which learn slower, and timm's optimiser over them."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from leanvit.errors import BadInput
from leanvit.tasks.objectives import Objective
from leanvit.training.config import FitConfig
from leanvit.training.layer_groups import layer_scales


def make_optimizer(model: nn.Module, objective: Objective, config: FitConfig) -> Optimizer:
    """The optimiser over the model's trained parameters and the objective's own.

    Weight decay leaves out biases, norms and the model's `no_weight_decay()`. With `layer_decay` d, layer i of n gets
    the rate lr * d^(n - 1 - i), from the head down to the stem (BEiT, arXiv 2106.08254, section 3.1; layers by
    `layer_groups`). A model's `lr_scales()` gives factors on the rate of parameters that learn slower, and
    `backbone_lr_scale` is one on all that is not the classifier's (timm's `get_classifier`).
    Raises BadInput for a model without a trained parameter, or without layers or a classifier to tell apart.
    """
    groups = _groups(model, config)
    if not groups:
        raise BadInput(
            "model has no parameter that requires a gradient: nothing to train; "
            "set requires_grad of those that shall learn"
        )
    groups = _scaled(groups, _factors(model, config)) + objective.param_groups(config.weight_decay)
    own: dict[str, Any] = (
        {"momentum": config.momentum} if config.optimizer in ("sgd", "momentum") else {"betas": config.betas}
    )
    if config.eps is not None:
        own["eps"] = config.eps
    return create_optimizer_v2(groups, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, **own)


def _factors(model: nn.Module, config: FitConfig) -> dict[int, float]:
    """Factors on the rate by the identity of parameters."""
    own: dict[str, float] = getattr(model, "lr_scales", dict)()
    layers = layer_scales(model, config)
    factors = {id(p): own.get(name, 1.0) * layers.get(name, 1.0) for name, p in model.named_parameters()}
    if config.backbone_lr_scale == 1.0:
        return factors
    head = classifier(model)
    if not head:
        raise BadInput(
            f"backbone_lr_scale={config.backbone_lr_scale}: {type(model).__name__} has no classifier to tell from the "
            "backbone (timm's get_classifier): leave it out"
        )
    return {p: factor if p in head else factor * config.backbone_lr_scale for p, factor in factors.items()}


def classifier(model: nn.Module) -> set[int]:
    """Identities of the classifier's parameters; of a distilled model both heads'."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    heads = found if isinstance(found, tuple | list) else (found,)
    return {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}


def _scaled(groups: list[dict[str, Any]], factors: dict[int, float]) -> list[dict[str, Any]]:
    """The groups, with parameters of other factors than the rest split off."""
    split = []
    for group in groups:
        for factor in sorted({factors.get(id(p), 1.0) for p in group["params"]}, reverse=True):
            params = [p for p in group["params"] if factors.get(id(p), 1.0) == factor]
            scale = {} if factor == 1.0 else {"lr_scale": factor * group.get("lr_scale", 1.0)}
            split.append({**group, "params": params, **scale})
    return split


def _groups(model: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    undecayed: set[str] = getattr(model, "no_weight_decay", set)() | _exempt(model)
    if config.layer_decay is None or config.layer_groups != "timm":
        return param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=undecayed)
    if not hasattr(model, "group_matcher"):
        raise BadInput(
            f"layer_decay={config.layer_decay}: {type(model).__name__} has no group_matcher, "
            "timm's layers: leave it out"
        )
    return param_groups_layer_decay(
        model, config.weight_decay, no_weight_decay_list=undecayed, layer_decay=config.layer_decay
    )


def _exempt(model: nn.Module) -> set[str]:
    """Parameters of modules that ask for no weight decay, by `weight_decay` False."""
    modules = [(path, m) for path, m in model.named_modules() if getattr(m, "weight_decay", None) is False]
    return {f"{path}.{name}" for path, m in modules for name, _ in m.named_parameters()}
