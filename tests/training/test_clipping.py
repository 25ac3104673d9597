"""Clipping of gradients, and eps, against timm's own."""

import copy

import pytest
import timm
import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from tiny_training import make_model

from leanvit.anatomy import open_model
from leanvit.errors import BadInput
from leanvit.training import CrossEntropy, FitConfig, fit
from leanvit.training.clipping import clip
from leanvit.training.optimizers import make_optimizer
from leanvit.training.parallel import gradient_norm
from leanvit.training.world import World


def with_gradients(model):
    torch.manual_seed(3)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * (0.5 + torch.rand(()))
    model.pos_embed.grad = None
    return model


@pytest.mark.parametrize(("mode", "value"), [("norm", 0.3), ("value", 0.2), ("agc", 0.02)])
@pytest.mark.parametrize("opened", [False, True])
def test_gradients_are_clipped_as_timm_does(mode, value, opened):
    theirs = with_gradients(make_model())
    ours = copy.deepcopy(theirs)
    for p, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = None if other.grad is None else other.grad.clone()
    raw = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours = open_model(ours) if opened else ours
    trained = list(ours.parameters())
    factor = clip(ours, trained, gradient_norm(trained, World()), FitConfig(clip_mode=mode, clip_grad=value))
    dispatch_clip_grad(model_parameters(theirs, exclude_head=mode == "agc"), value, mode=mode)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        if p.grad is None:
            assert expected[name] is None
            continue
        torch.testing.assert_close(p.grad, expected[name], atol=0, rtol=0 if mode != "norm" else 1e-6)
        assert torch.equal(p.grad, raw[name]) == (mode == "agc" and name.startswith("head.")), name
    assert (factor < 1.0) == (mode == "norm")


def test_both_heads_of_a_distilled_model_are_left_alone():
    model = open_model(
        timm.create_model(
            "deit_tiny_distilled_patch16_224", img_size=32, depth=1, embed_dim=12, num_heads=1, num_classes=4
        )
    )
    raw = {name: p.grad.clone() for name, p in with_gradients(model).named_parameters() if p.grad is not None}
    clip(model, list(model.parameters()), torch.ones(()), FitConfig(clip_mode="agc", clip_grad=1e-3))
    kept = {name for name, p in model.named_parameters() if name in raw and torch.equal(p.grad, raw[name])}
    assert kept == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_a_run_is_clipped_by_its_mode(data, preprocess):
    ends = {}
    for mode in ("norm", "value", "agc"):
        config = FitConfig(epochs=1, batch_size=48, optimizer="sgd", lr=0.1, clip_grad=1e-3, clip_mode=mode)
        factors = []

        class Look:
            def after_step(self, run, factors=factors):
                largest = max(p.grad.abs().max().item() for p in run.model.parameters())
                factors.append((run.grad_factor, largest))

        ends[mode] = fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[Look()]).model
        assert all((factor == 1.0) == (mode != "norm") for factor, _ in factors)
        assert mode == "agc" or all(largest <= 1.00001e-3 for _, largest in factors)
    weights = [model.blocks[0].attn.qkv.weight for model in ends.values()]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize(("optimizer", "default"), [("adamw", 1e-8), ("nadamw", 1e-8), ("lamb", 1e-6)])
def test_eps_is_the_optimisers(optimizer, default):
    made = make_optimizer(make_model(), CrossEntropy(), FitConfig(optimizer=optimizer))
    assert {group["eps"] for group in made.param_groups} == {default}
    made = make_optimizer(make_model(), CrossEntropy(), FitConfig(optimizer=optimizer, eps=1e-3))
    assert {group["eps"] for group in made.param_groups} == {1e-3}
    assert {tuple(group["betas"]) for group in made.param_groups} == {(0.9, 0.999)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eps": 1e-6, "optimizer": "lion"}, "eps is 1e-06, but the optimizer 'lion' has none"),
        ({"clip_mode": "agc"}, "clip_mode is 'agc', but clip_grad is None"),
        ({"clip_mode": "agc", "clip_grad": 0.01, "parallel": "fsdp2"}, "needs whole weights, and parallel is 'fsdp2'"),
        ({"layer_groups": "mae"}, "layer_groups is 'mae', and they are of layer_decay"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        FitConfig(**settings)
