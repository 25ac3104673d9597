"""What is asked of every paper that builds models: what timm asks of a model (after its own suite), and what leanvit
asks. The models are the examples of the cards."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.layers import create_feature_extractor, to_2tuple
from torch import nn

from backbones.small import small
from contract.toys import CARDS
from leanvit.anatomy import close_model, open_model
from leanvit.data import Preprocess, adapted_kwargs
from leanvit.deploy import export, load_artefact
from leanvit.models.registration import register, renamed

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EXAMPLES = {one.model: one for card in CARDS for one in card.example}
HOMES = {name: card.module for card in CARDS for name in card.models}
SMALL = {name: small(example) for name, example in EXAMPLES.items()}
names = pytest.mark.parametrize("name", SMALL)
exported = pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.exported])


def built(name: str, **more: Any) -> Any:
    import_module(HOMES[name])
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL[name], **more}).eval()


def picture(model: Any, size: int | None = None, channels: int | None = None) -> torch.Tensor:
    given = SMALL[model.pretrained_cfg["architecture"]]
    size, channels = size or given["img_size"], channels or given.get("in_chans", 3)
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def preprocess(x: torch.Tensor) -> Preprocess:
    some = (0.5,) * x.shape[1]
    return Preprocess(
        tuple(x.shape[1:]), mean=some, std=some, interpolation="bicubic", crop_pct=1.0, crop_mode="center"
    )


def outputs(y: Any) -> list[torch.Tensor]:
    return list(y) if isinstance(y, tuple | list) else [y]


def test_every_paper_registers_the_names_of_its_card_and_has_an_example() -> None:
    for card in CARDS:
        import_module(card.module)
        registered = {n for n in timm.list_models() if timm.models.model_entrypoint(n).__module__ == card.module}
        assert registered == set(card.models), card.slug
        assert bool(card.example) == bool(card.models), card.slug


def test_a_name_that_timm_has_is_not_replaced() -> None:
    def vit_tiny_patch16_224() -> None: ...

    with pytest.raises(RuntimeError, match="timm has a model 'vit_tiny_patch16_224' already"):
        register(vit_tiny_patch16_224)


def test_a_checkpoint_of_another_model_is_refused_by_its_first_names() -> None:
    model = nn.Linear(2, 2)
    assert renamed(model.state_dict(), model, lambda name: None).keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="it lacks bias; the model has no other"):
        renamed({"w": model.weight, "other": model.bias}, model, lambda name: name.replace("w", "weight"))


@names
def test_forward_features_and_head(name: str) -> None:
    model = built(name)
    x = picture(model)
    y, features = model(x), model.forward_features(x)
    assert y.shape == (2, 5) and y.isfinite().all()
    torch.testing.assert_close(model.forward_head(features), y)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.num_classes == 5


@names
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = built(name).train()
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    sum(y.square().mean() for y in outputs(model(picture(model)))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@names
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    model = built(name)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(picture(model)).square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, **CLOSE, msg=key)


@names
def test_the_classifier_is_reset(name: str) -> None:
    model = built(name)
    assert all(isinstance(c, nn.Linear) for c in outputs(model.get_classifier()))
    model.reset_classifier(3)
    assert model(picture(model)).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(picture(model)).shape == (2, model.head_hidden_size)


@names
def test_intermediates(name: str) -> None:
    model = built(name)
    x = picture(model)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(maps) == len(model.feature_info) == (EXAMPLES[name].levels or len(maps))
    for one, info in zip(maps, model.feature_info, strict=True):
        side = -(-x.shape[-1] // info["reduction"])
        assert one.shape == (2, info["num_chs"], side, side)
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    torch.testing.assert_close(last, maps[-1])
    kept = model.prune_intermediate_layers(1)
    assert kept == [len(maps) - 1]
    torch.testing.assert_close(model.forward_intermediates(x, indices=kept, intermediates_only=True)[0], maps[-1])


@exported
def test_torch_fx_traces_it(name: str) -> None:
    """As timm's feature extraction does; what decides by sizes is one step (`register_notrace_module`)."""
    model = built(name)
    x = picture(model)
    classifiers = model.pretrained_cfg["classifier"]
    heads = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    graph = create_feature_extractor(model, [model.feature_info[-1]["module"], *heads])
    features, *found = graph(x).values()
    assert torch.equal(sum(found) / len(found), model(x)) and features.shape[0] == 2 and features.isfinite().all()
    sum(y.square().mean() for y in graph.train()(x).values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in graph.parameters())


@names
def test_features_only(name: str) -> None:
    model = built(name, features_only=True)
    want = model.feature_info.channels()
    assert [
        y.shape[1] for y in model(torch.randn(2, SMALL[name].get("in_chans", 3), *[SMALL[name]["img_size"]] * 2))
    ] == want


@names
def test_other_channels_and_sizes(name: str) -> None:
    size = 2 * SMALL[name]["img_size"]
    model = built(name, img_size=size, in_chans=1)
    assert model(picture(model, size, 1)).shape == (2, 5)


@names
def test_what_timm_reads(name: str) -> None:
    model = built(name)
    modules = dict(model.named_modules())
    cfg = model.pretrained_cfg
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    assert {*classifiers, cfg["first_conv"]} <= modules.keys()
    assert isinstance(modules[cfg["first_conv"]], nn.Conv2d | nn.Linear)
    assert not timm.is_model_pretrained(name) and timm.get_pretrained_cfg(name) is not None
    reductions = {info["reduction"] for info in model.feature_info}
    assert (cfg["pool_size"] is not None) == (len(reductions) > 1)
    if cfg["pool_size"] is not None:  # timm's: the last map of an image of the configuration's size
        with torch.device("meta"):
            full = timm.create_model(name)
        assert cfg["pool_size"] == tuple(n // full.feature_info[-1]["reduction"] for n in cfg["input_size"][1:])
    parameters = dict(model.named_parameters())
    assert not any(isinstance(modules.get(n), nn.Linear) for n in model.no_weight_decay())
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert {n for group in groups.values() for n in group} == set(parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)


@pytest.mark.extra("onnxruntime", of="onnx")
@exported
def test_onnx_says_the_same(name: str, tmp_path: Any) -> None:
    model = built(name)
    x = picture(model)
    export(model, tmp_path / "artefact", to="onnx", preprocess=preprocess(x), batch=2)
    torch.testing.assert_close(torch.as_tensor(load_artefact(tmp_path / "artefact")(x)), model(x), rtol=1e-3, atol=1e-4)


@names
def test_it_opens_and_closes(name: str) -> None:
    model = built(name)
    x = picture(model)
    want = model(x)
    keys = model.state_dict().keys()
    opened = open_model(model)
    torch.testing.assert_close(opened(x), want, **CLOSE)
    assert opened.state_dict().keys() == keys
    assert torch.equal(close_model(opened)(x), want)


@names
def test_it_is_built_at_once_on_the_meta_device_and_its_state_dict_goes_round(name: str) -> None:
    model = built(name)
    with torch.device("meta"):
        hollow = timm.create_model(name, **SMALL[name])
    hollow.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in hollow.state_dict().items())


@pytest.mark.parametrize("name", [card.models[0] for card in CARDS if card.input])
def test_it_takes_the_sizes_that_its_card_says(name: str) -> None:
    """Of small and larger images, built with what `adapted_kwargs` gives."""
    for side in (32, 72):
        data: Any = SimpleNamespace(classes=["a", "b"], channels=1, image_size=(side, side), spec="made")
        given = adapted_kwargs(name, {}, data)
        size = given.get("img_size", timm.get_pretrained_cfg(name).input_size[1:])
        with torch.device("meta"):
            model = timm.create_model(name, **given).eval()
            assert model(torch.empty(1, 1, *to_2tuple(size))).shape == (1, 2)
