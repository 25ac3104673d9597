from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanvit.data import keyed
from leanvit.errors import BadInput

PART = st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.booleans(), st.binary(), st.none())


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_seeds_are_the_same_on_every_machine():
    # Fixed values: stored labels and resumed runs rest on them, so a change here is a change of format.
    assert keyed.seed_of() == 13020603013274838756
    assert keyed.seed_of(0, 1, "digits/0001") == 11659634197733637011
    assert keyed.seed_of("a", 2.5, None, True, b"x") == 4656804075086438830


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_seeds_tell_parts_apart_by_type_order_and_cut(a, b):
    same = [(type(x), x, str(x)) for x in a] == [(type(x), x, str(x)) for x in b]
    assert (keyed.seed_of(*a) == keyed.seed_of(*b)) == same
    assert 0 <= keyed.seed_of(*a) < 2**64


def test_numpy_scalars_count_as_python_ones():
    assert keyed.seed_of(np.int64(3), np.float64(0.5), np.bool_(True)) == keyed.seed_of(3, 0.5, True)


def test_other_parts_are_refused():
    with pytest.raises(BadInput, match=r"seed part \[1\] is a list; accepted: int, str"):
        keyed.seed_of([1])


def test_generators_depend_on_their_parts_only():
    first, again, other = (torch.rand(3, generator=keyed.generator(*p)) for p in ((1, "a"), (1, "a"), (2, "a")))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert keyed.numpy(1).random() == keyed.numpy(1).random() != keyed.numpy(2).random()


def test_global_rng_seeds_and_restores_all_three():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws(), draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = draws()
    with keyed.global_rng(3, "x"):
        inside = draws()
    assert (before, draws()) == expected
    with keyed.global_rng(3, "x"):
        assert draws() == inside
    with keyed.global_rng(4, "x"):
        assert all(a != b for a, b in zip(draws(), inside, strict=True))


def test_global_rng_restores_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    with pytest.raises(RuntimeError), keyed.global_rng(1):
        raise RuntimeError
    assert torch.rand(()) == expected


def test_ranks_are_distinct_and_belong_to_the_key():
    keys = [f"k{i}" for i in range(1000)]
    value = keyed.ranks(keyed.hashes(keys), "order", 0, 1)
    assert len(set(value.tolist())) == 1000
    assert np.array_equal(keyed.ranks(keyed.hashes(keys[::-1]), "order", 0, 1), value[::-1])
    assert abs((value / 2**64).mean() - 0.5) < 0.03
    assert abs(np.corrcoef(value / 2**64, keyed.ranks(keyed.hashes(keys), "order", 0, 2) / 2**64)[0, 1]) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_global_rng_seeds_and_restores_cuda():
    torch.cuda.manual_seed(1)
    expected = torch.rand(2, device="cuda")
    torch.cuda.manual_seed(1)
    with keyed.global_rng(3):
        inside = torch.rand(2, device="cuda")
    assert torch.equal(torch.rand(2, device="cuda"), expected)
    with keyed.global_rng(3):
        assert torch.equal(torch.rand(2, device="cuda"), inside)
