"""Which rate and decay each parameter gets, and that every optimiser goes on from its saved state."""

from dataclasses import replace

import pytest
import timm
import torch
from tiny_training import make_data, make_model, make_preprocess

from leanvit.anatomy import open_model
from leanvit.errors import BadInput
from leanvit.models.registry import require_model
from leanvit.training import CrossEntropy, FitConfig, fit
from leanvit.training.config import OPTIMIZERS
from leanvit.training.optimizers import make_optimizer

SMALL = {"embed_dim": 12, "num_heads": 1, "num_classes": 4}


def rates(model, config):
    """Share of the learning rate, and weight decay, by parameter name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, CrossEntropy(), config).param_groups
    return {names[id(p)]: (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}


def test_layer_decay_falls_from_head_to_stem():
    model = open_model(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, **SMALL))
    found = rates(model, FitConfig(layer_decay=0.5, weight_decay=0.1))
    assert found["head.weight"] == (1.0, 0.1)
    assert found["head.bias"] == (1.0, 0.0)
    assert found["blocks.2.attn.qkv.weight"] == (0.5, 0.1)
    assert found["blocks.0.attn.qkv.weight"] == (0.125, 0.1)
    assert found["patch_embed.proj.weight"] == (0.0625, 0.1)
    assert found["cls_token"] == (0.0625, 0.0)  # of the model's no_weight_decay()


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "mobilevit_xxs"],
)
def test_an_opened_model_has_the_layers_of_timm(name):
    shape = {"num_classes": 4} if name.startswith(("swin", "mobilevit")) else {**SMALL, "depth": 2}
    source = timm.create_model(name, **shape)
    config = FitConfig(layer_decay=0.7)
    expected = rates(source, config)
    assert rates(open_model(source), config) == expected
    assert len({scale for scale, _ in expected.values()}) > 2


@pytest.mark.parametrize(("name", "heads"), [("deit_tiny_distilled_patch16_224", 2), ("litv2_small", 1)])
def test_the_backbone_learns_slower_than_the_classifier(name, heads):
    small = {"depths": (1, 1, 1, 1), "num_classes": 4} if name == "litv2_small" else {**SMALL, "depth": 2}
    require_model(name)
    model = open_model(timm.create_model(name, img_size=32, **small))
    before, found = rates(model, FitConfig()), rates(model, FitConfig(backbone_lr_scale=0.1))
    classifier = {name for name in found if name.startswith("head")}
    assert len(classifier) == 2 * heads
    for parameter, (rate, decay) in before.items():
        assert found[parameter] == (pytest.approx(rate if parameter in classifier else 0.1 * rate), decay)
    if name == "litv2_small":
        assert 0.001 in {round(rate, 6) for rate, _ in found.values()}, "offsets: a hundredth of a tenth"


def test_a_model_without_a_classifier_has_no_backbone():
    with pytest.raises(BadInput, match=r"backbone_lr_scale=0\.5: Linear has no classifier"):
        make_optimizer(torch.nn.Linear(2, 2), CrossEntropy(), FitConfig(backbone_lr_scale=0.5))


def test_a_model_without_layers_is_refused():
    with pytest.raises(BadInput, match=r"layer_decay=0\.5: Linear has no group_matcher"):
        make_optimizer(torch.nn.Linear(2, 2), CrossEntropy(), FitConfig(layer_decay=0.5))


def test_adamw_is_that_of_torch():
    config = FitConfig(epochs=1, batch_size=8, lr=1e-2, betas=(0.8, 0.95))
    models = [make_model(), make_model()]
    ours = make_optimizer(models[0], CrossEntropy(), config)
    assert type(ours) is torch.optim.AdamW
    decayed = [p for p in models[1].parameters() if p.ndim > 1]
    kept = [p for name, p in models[1].named_parameters() if p.ndim <= 1]
    bare = {"cls_token", "pos_embed"}
    decayed = [p for name, p in models[1].named_parameters() if p.ndim > 1 and name not in bare]
    kept += [p for name, p in models[1].named_parameters() if name in bare]
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    theirs = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    for _ in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            torch.manual_seed(1)
            optimizer.zero_grad()
            model(torch.randn(4, 1, 8, 8)).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


class StopAt:
    def __init__(self, step):
        self.step = step

    def after_step(self, run):
        if run.step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_weights(optimizer, tmp_path):
    config = FitConfig(
        epochs=1, batch_size=8, lr=1e-2, optimizer=optimizer, layer_decay=0.9, repeats=2, save_every=1, augment="light"
    )
    data = make_data(32)
    whole = fit(make_model(), data, preprocess=make_preprocess(), config=config)
    with pytest.raises(RuntimeError):
        fit(make_model(), data, preprocess=make_preprocess(), config=config, out=tmp_path, callbacks=[StopAt(3)])
    again = fit(make_model(1), data, preprocess=make_preprocess(), config=config, out=tmp_path, resume=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    plain = fit(make_model(), data, preprocess=make_preprocess(), config=replace(config, layer_decay=None))
    assert any(not torch.equal(value, expected[name]) for name, value in plain.model.state_dict().items())


def test_nothing_is_mixed_from_the_epoch_on_that_is_given():
    kinds = []

    class Noted(CrossEntropy):
        def forward(self, model, batch, step, context):
            kinds.append(batch.targets.dtype.is_floating_point)
            return super().forward(model, batch, step, context)

    config = FitConfig(epochs=3, batch_size=8, mixup=1.0, mix_off_epoch=1)
    fit(make_model(), make_data(16), preprocess=make_preprocess(), config=config, objective=Noted())
    assert kinds == [True, True, False, False, False, False]
