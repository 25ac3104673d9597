"""Slots: what attention leaves for a step, when it is gone again, and what a model with fewer tokens refuses."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from leanvit.anatomy import Step, close_model, open_model
from leanvit.errors import Refused
from zoo import build, images


class Spy(Step):
    """Notes the state it sees and changes nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn", "keys"})
    source = "spy"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def forward(self, x, state):
        self.seen.append(state)
        return x, state


class Half(Step):
    """Keeps the prefix and the first half of the patches."""

    reduces = True
    source = "half"

    def forward(self, x, state):
        kept = state.num_prefix + (x.shape[1] - state.num_prefix) // 2
        return x[:, :kept], state


def reduced(name: str = "vit_tiny_patch16_224"):
    model = open_model(build(name))
    model.blocks[1].between.append(Half())
    return model


@pytest.mark.parametrize("fused", [True, False])
def test_class_attention_and_keys_reach_the_slot_and_go_again(fused):
    model = open_model(build("vit_small_patch14_reg4_dinov2"))
    for block in model.blocks:
        block.attn.fused = fused
    between, after = Spy(), Spy()
    model.blocks[1].between.append(between)
    model.blocks[1].after.append(after)
    x = images(model)
    _, final = model.trace(x, tap=frozenset({"blocks.0"}))
    (state,) = between.seen
    attn = model.blocks[1].attn
    q, k, _ = attn.split_heads(model.ops, attn.qkv(model.blocks[1].norm1(final.taps["blocks.0"])))
    weights = (q @ k.mT * attn.scale).softmax(-1)
    torch.testing.assert_close(state.cls_attn, weights[:, :, 0, 5:].mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.keys, k)
    for later in (after.seen[0], final):
        assert later.cls_attn is None and later.keys is None


def test_a_step_that_does_nothing_changes_nothing():
    model = open_model(build("vit_tiny_patch16_224"))
    x = images(model)
    want = model(x)
    model.blocks[0].before.append(Spy())
    model.blocks[2].after.append(Spy())
    assert torch.equal(model(x), want)


def test_fewer_tokens_run_on_and_are_counted():
    model = reduced()
    logits, state = model.trace(images(model))
    assert state.tokens == (17, 9, 9) and torch.isfinite(logits).all()
    assert model.reduces_tokens and "full_grid" not in model.traits()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_flow_through_steps(checkpointed):
    model = reduced().train()
    model.set_grad_checkpointing(checkpointed)
    model(images(model)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_lost_grid_is_refused_where_it_is_needed():
    model = reduced()
    model.forward_intermediates(images(model), indices=[0], stop_early=True)
    with pytest.raises(Refused, match="block 1 gives 9 tokens, not 17"):
        model.forward_intermediates(images(model))
    with pytest.raises(Refused, match="cannot close: the blocks hold steps of half"):
        close_model(model)
    pooled = reduced("vit_tiny_patch16_224:avgmax")
    with pytest.raises(Refused, match="cannot weigh merged tokens"):
        pooled.forward_head(pooled.forward_features(images(pooled)))
