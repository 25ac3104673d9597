"""int8 on a small vision transformer that was trained for some steps, so that its logits mean something."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenViT, open_model
from leanvit.anatomy.arithmetic.quant_ops import QuantOps
from leanvit.errors import BadInput, Refused
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe.registry import knobs_of, make_method

CLASSES = 6


class Patterns:
    """Noisy class templates, 32x32; the part of `recipe.method.Data` that a method asks for."""

    def __init__(self) -> None:
        self.templates = torch.randn(CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def batch(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        targets = torch.randint(CLASSES, (count,), generator=g)
        return 0.35 * self.templates[targets] + torch.randn(count, 3, 32, 32, generator=g), targets

    def images(self, count: int) -> Iterator[Tensor]:
        for i in range(math.ceil(count / 16)):
            yield self.batch(min(16, count - 16 * i), 1000 + i)[0]


def bare(seed: int = 1) -> OpenViT:
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES
    )
    return open_model(model.eval(), check=False)


@cache
def _trained() -> OpenViT:
    model, data = bare(), Patterns()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(60):
        images, targets = data.batch(32, step)
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def trained() -> OpenViT:
    return copy.deepcopy(_trained())


def quantized(method: Int8 | None = None, model: OpenViT | None = None) -> tuple[OpenViT, dict[str, Any]]:
    method, model = method or Int8(images=32), model or trained()
    structure = method.learn(model, Patterns())  # type: ignore[arg-type]
    method.shape(model, structure)
    method.fold(model, structure, {})
    return model, structure


@torch.no_grad()
def logits(model: OpenViT, count: int = 128) -> Tensor:
    return model(Patterns().batch(count, 77)[0])


@pytest.mark.parametrize("method", [Int8(images=32, calibration=c) for c in ("minmax", "percentile", "mse")])
def test_logits_stay_close_and_accuracy_stays(method: Int8) -> None:
    model, _ = quantized(method)
    targets = Patterns().batch(128, 77)[1]
    want, got = logits(trained()), logits(model)
    assert (want.argmax(1) == targets).float().mean() > 0.8  # the test's ground: the float model has learned
    assert not torch.equal(want, got)
    assert (got - want).norm() / want.norm() < 0.1
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.95


def test_fewer_bits_more_error() -> None:
    from leanvit.anatomy.arithmetic.quant_ops import ObserverOps
    from leanvit.anatomy.arithmetic.quantizers import ActQuantizer, WeightQuantizer

    model, observer = trained(), ObserverOps()
    with torch.no_grad():
        model(next(Patterns().images(16)), ops=observer)
    errors = []
    for bits in (3, 4, 6, 8):
        quantizers: dict[str, dict[str, nn.Module]] = {}
        for site, module in observer.modules.items():
            act, weight = ActQuantizer(bits), WeightQuantizer(tuple(module.weight.shape), bits)  # type: ignore[union-attr]
            act.set_range(observer.seen[site, "input"].low, observer.seen[site, "input"].high)
            weight.set_weight(module.weight)  # type: ignore[arg-type]
            quantizers[site] = {"input": act, "weight": weight}
        x = Patterns().batch(64, 5)[0]
        with torch.no_grad():
            errors.append(float((model(x, ops=QuantOps(quantizers)) - model(x)).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 4 * errors[-1]


def test_weights_live_once_as_int8() -> None:
    model, structure = quantized()
    state = model.state_dict()
    sites = [r["site"] for r in structure["sites"] if r["kind"] != "matmul"]
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"} <= set(sites)
    for site in sites:
        assert f"{site}.weight" not in state and f"{site}.bias" in state
        assert state[f"ops.sites.{site.replace('.', '/')}.weight.values"].dtype == torch.int8
    size = sum(t.numel() * t.element_size() for t in state.values())
    before = sum(t.numel() * t.element_size() for t in trained().state_dict().values())
    assert before / size > 3
    assert not hasattr(model, "calibration")


def test_replayed_structure_and_loaded_values_give_the_same_bits() -> None:
    model, structure = quantized()
    again = bare(seed=9)
    Int8().shape(again, structure)
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_shape_alone_never_needs_values() -> None:
    _, structure = quantized()
    with torch.device("meta"):
        empty = bare()
    Int8().shape(empty, structure)
    assert empty.ops.at("head")["weight"].values.device.type == "meta"


def test_traits() -> None:
    model, _ = quantized()
    assert "float" in trained().traits() and "float" not in model.traits()


def test_products_off_keeps_the_fused_kernel() -> None:
    model, structure = quantized(Int8(images=16, products=False))
    assert model.ops.fused
    assert not any(row["kind"] == "matmul" for row in structure["sites"])


def test_product_formats_follow_the_sign() -> None:
    _, structure = quantized()
    formats = {row["site"]: row["operands"] for row in structure["sites"]}
    assert formats["blocks.0.attn.matmul1"] == {"a": "i8", "b": "i8"}
    assert formats["blocks.0.attn.matmul2"] == {"a": "u8", "b": "i8"}  # softmax is never negative


def test_skip_keeps_sites_float_and_is_described() -> None:
    model, _ = quantized(Int8(images=16, skip=("head", "blocks.0.*")))
    rows = {(r["site"], r["operand"]): r for r in describe(model)}
    assert rows["head", "weight"]["bits"] == 32 and rows["blocks.0.mlp.fc1", "input"]["scheme"] == "float"
    assert rows["blocks.1.mlp.fc1", "weight"]["bits"] == 8
    assert rows["blocks.1.mlp.fc1", "weight"]["elements"] == 48 * 192
    assert ("blocks.0.attn.matmul1", "a") not in rows and ("blocks.1.attn.matmul1", "a") in rows
    achieved = Int8().achieved(model, {})
    assert achieved["quantized"] == 5 and achieved["float"] == 5 and 8 < achieved["weight_bits"] < 32


def test_describe_a_float_model() -> None:
    assert {row["bits"] for row in describe(trained())} == {32}


def test_training_mode_is_left_as_found() -> None:
    model = trained().train()
    Int8(images=16).learn(model, Patterns())  # type: ignore[arg-type]
    assert model.training and model.blocks[0].training


def test_knobs_survive_json() -> None:
    method = Int8(skip=("head",), calibration="mse")
    assert make_method("int8", knobs_of(method)) == method
    assert Int8(skip="head").skip == ("head",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"calibration": "percentiles"}, "percentile"),
        ({"images": 0}, "images is 0"),
        ({"products": "yes"}, "products is 'yes'"),
        ({"skip": [3]}, "skip is"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        make_method("int8", knobs)


def test_skip_that_fits_nothing() -> None:
    with pytest.raises(BadInput, match=r"blocks\.7\.\*.*fits no site"):
        Int8(images=16, skip=("blocks.7.*",)).learn(trained(), Patterns())  # type: ignore[arg-type]


def test_fold_without_learn() -> None:
    model, structure = quantized()
    with pytest.raises(Refused, match="no calibration"):
        Int8().fold(model, structure, {})


def test_quantizing_twice() -> None:
    model, structure = quantized()
    with pytest.raises(Refused, match="quantized already"):
        Int8().shape(model, structure)


def test_activations_that_are_not_finite() -> None:
    model = trained()
    with torch.no_grad():
        model.blocks[1].norm1.weight.fill_(float("inf"))
    with pytest.raises(Refused, match=r"blocks\.1\.attn"):
        Int8(images=16).learn(model, Patterns())  # type: ignore[arg-type]


def test_measured_as_what_it_is() -> None:
    """Weights that became integers still count, and a simulation does not call itself f32."""
    from leanvit.measure import count
    from leanvit.measure.runners import precision_of

    dense, (model, _) = trained(), quantized()
    assert count(model, (3, 32, 32)).params == count(dense, (3, 32, 32)).params
    assert count(model, (3, 32, 32)).macs == count(dense, (3, 32, 32)).macs
    assert precision_of(model) == "int8 simulated" and precision_of(dense) == "f32"
