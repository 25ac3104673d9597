"""A timm model and its opened twin: what must be the same of both."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy import open_model
from zoo import images


def twins(model: nn.Module) -> tuple[nn.Module, Any]:
    """The model and its opened twin, which share no tensor."""
    return model, open_model(copy.deepcopy(model))


def same(a: Any, b: Any) -> None:
    """Bit for bit, through tuples and lists."""
    if isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
        return
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.abs().max() > 0 and torch.isfinite(a).all()
    assert torch.equal(a, b), f"largest difference {(a - b).abs().max():.3e}"


def gradients(model: nn.Module, x: Tensor, seed: int = 3) -> dict[str, Tensor]:
    """Of a sum of the outputs in which each has another weight."""
    torch.manual_seed(seed)
    out = model(x)
    out = sum(out) if isinstance(out, tuple) else out
    model.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def same_gradients(model: nn.Module, opened: Any, rtol: float = 1e-6, atol: float = 0.0) -> set[str]:
    """Those of the opened model are those of timm's, and do not change with checkpointing; returns their names."""
    x = images(model)
    want, plain = gradients(model.train(), x), gradients(opened.train(), x)
    opened.set_grad_checkpointing()
    checkpointed = gradients(opened, x)
    assert set(want) == set(plain) == set(checkpointed) and len(want) > 20
    for key, grad in want.items():
        torch.testing.assert_close(plain[key], grad, rtol=0, atol=rtol * grad.abs().max().item() + atol, msg=key)
        assert torch.equal(plain[key], checkpointed[key]), key
    return set(want)


def same_draws(model: nn.Module, opened: nn.Module, x: Tensor) -> None:
    """What both drop in train mode follows from the seed alike, and something is dropped."""
    outputs = []
    for net in (model, opened):
        torch.manual_seed(5)
        outputs.append(net.train()(x))
    same(*outputs)
    assert not torch.equal(outputs[0], model.eval()(x))
