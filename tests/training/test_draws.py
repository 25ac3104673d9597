"""Draws for the whole batch: two halves put together are what one process draws."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath, PatchDropout
from torch import nn
from torch.nn import functional as F

from leanvit.data import keyed
from leanvit.data.loading import share_rows
from leanvit.errors import Refused
from leanvit.training.draws import GlobalDraws, watched

BATCH = 12


def halves(work, *tensors):
    """work on the rows of each of two processes, put back in order."""
    whole = {}
    for rank in (0, 1):
        rows = share_rows(BATCH, rank, 2)
        draws = GlobalDraws(len(rows), BATCH, rows)
        with keyed.global_rng("draws"), draws, watched(draws):
            out = work(*(t.unflatten(0, (BATCH, -1))[rows].flatten(0, 1) for t in tensors))
        whole |= dict(zip(rows, out.unflatten(0, (len(rows), -1)), strict=True))
    return torch.stack([whole[row] for row in range(BATCH)]).flatten(0, 1)


WORKS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout in place": lambda x: nn.Dropout(0.3, inplace=True)(x.clone()),
    "channels": lambda x: F.dropout1d(x, 0.5),
    "drop path": DropPath(0.4),
    "patches": PatchDropout(0.5, num_prefix_tokens=1),
    "noise": lambda x: x + torch.randn_like(x),
    "rand": lambda x: x * torch.rand(len(x), 1, 1),
    "rand size": lambda x: x * torch.rand((len(x), 1, 1), dtype=x.dtype),
    "randint": lambda x: x * torch.randint(0, 9, (len(x), 1, 1)),
    "randint size": lambda x: x * torch.randint(9, size=(len(x), 1, 1)),
    "uniform": lambda x: x + torch.empty_like(x).uniform_(0, 2),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.4, scale=0.3),
    "of all": lambda x: x + torch.rand(7, 5)[0],
    "tokens": lambda x: x[:, torch.randperm(7)],
}


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("name", WORKS)
def test_halves_are_the_whole(name, per_image):
    work = WORKS[name].train() if isinstance(WORKS[name], nn.Module) else WORKS[name]
    x = torch.randn(BATCH * per_image, 7, 5, generator=keyed.generator("x"))
    with keyed.global_rng("draws"):
        one = work(x)
    torch.testing.assert_close(halves(work, x), one, atol=1e-6, rtol=0)
    with keyed.global_rng("other draws"):
        assert not torch.equal(work(x), one)


def test_gradients_go_through_dropout():
    x = torch.ones(6, 5, requires_grad=True)
    with keyed.global_rng("draws"), GlobalDraws(6, BATCH, share_rows(BATCH, 0, 2)):
        out = F.dropout(x, 0.5)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


@pytest.mark.parametrize(
    "work",
    [
        lambda x: nn.MultiheadAttention(5, 1, dropout=0.5)(x, x, x)[0],
        lambda x: F.gumbel_softmax(x),
        lambda x: F.rrelu(x - 9, training=True),
        lambda x: F.alpha_dropout(x, 0.5, True),
        lambda x: torch.multinomial(x[:, 0].exp(), 1),
        lambda x: x[torch.randperm(len(x))],
        lambda x: torch.empty_like(x).bernoulli_(x),
    ],
)
def test_draws_that_are_not_covered_are_refused(work):
    draws = GlobalDraws(6, BATCH, share_rows(BATCH, 0, 2))
    with pytest.raises(Refused, match=r"several processes|number of processes"), draws, watched(draws):
        work(torch.rand(6, 7, 5))
