from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanvit.anatomy.parts.tokens import complement, moved_owner, new_indices, take_tokens, unmerge, with_prefix


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 20), batch=st.integers(1, 3), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_complement_is_what_is_left(size: int, batch: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(size, generator=generator)[: int(share * size)] for _ in range(batch)])
    left = complement(index, size)
    for row, rest in zip(index.tolist(), left.tolist(), strict=True):
        assert rest == [i for i in range(size) if i not in row]


def test_take_tokens_equals_gather_and_has_its_gradient() -> None:
    x = torch.randn(3, 7, 4, requires_grad=True)
    index = torch.tensor([[6, 0, 0], [1, 2, 3], [5, 5, 4]])
    got = take_tokens(x, index)
    want = x.gather(1, index[..., None].expand(-1, -1, 4))
    assert torch.equal(got, want)
    weight = torch.randn_like(got)
    (g,) = torch.autograd.grad((got * weight).sum(), x)
    (w,) = torch.autograd.grad((want * weight).sum(), x)
    assert torch.equal(g, w)


def test_take_tokens_of_a_strided_view() -> None:
    x = torch.randn(2, 9, 4)
    assert torch.equal(take_tokens(x[:, 1::2], torch.tensor([[3, 0], [1, 1]]))[0], x[0, [7, 1]])


def test_with_prefix_puts_protected_tokens_first() -> None:
    assert with_prefix(torch.tensor([[2, 0]]), 2).tolist() == [[0, 1, 4, 2]]
    assert with_prefix(torch.tensor([[2, 0]]), 0).tolist() == [[2, 0]]


def test_owner_follows_moves_and_stays_dropped() -> None:
    positions = new_indices(torch.tensor([[0, 3, 1]]), 5, rest=-1)
    assert positions.tolist() == [[0, 2, -1, 1, -1]]
    owner = moved_owner(torch.tensor([[1, 2, 3, 4]]), positions)
    assert owner.tolist() == [[2, -1, 1, -1]]
    assert moved_owner(owner, new_indices(torch.tensor([[0, 2, 1]]), 3)).tolist() == [[1, -1, 2, -1]]
    fused = new_indices(torch.tensor([[0, 3, 1]]), 5, rest=3)
    assert moved_owner(torch.tensor([[1, 2, 3, 4]]), fused).tolist() == [[2, 3, 1, 3]]


def test_unmerge_gives_each_patch_its_token() -> None:
    x = torch.randn(1, 3, 2)
    grid = unmerge(x, torch.tensor([[2, 1, 2, -1]]))
    assert torch.equal(grid[0], torch.stack([x[0, 2], x[0, 1], x[0, 2], torch.zeros(2)]))
