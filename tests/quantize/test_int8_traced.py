"""int8 on traced hybrids: every convolution, linear and product of attention, saved, loaded and deployed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, open_model
from leanvit.data import Preprocess
from leanvit.deploy import Options, export, load_artefact
from leanvit.deploy.openvino import MODEL, compile_model, core
from leanvit.deploy.openvino_graph import product_precisions
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import compress, load, save

SIZES = {"mobilevit_xxs": 64, "efficientformer_l1": 224}
SMALLER: dict[str, Any] = {"mobilevit_xxs": {}, "efficientformer_l1": {"depths": (1, 1, 1, 2)}}
NAMES = sorted(SIZES)


class Noise:
    """The part of `recipe.Data` that a method asks for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def images(self, count: int, seed: int = 1) -> Iterator[Tensor]:
        rng = torch.Generator().manual_seed(seed)
        for start in range(0, count, 8):
            yield torch.randn(min(8, count - start), 3, self.size, self.size, generator=rng)


@pytest.fixture(scope="module")
def dense() -> dict[str, OpenModel]:
    """Opened models with fresh weights and the running statistics of some batches."""
    return {name: fresh(name, SIZES[name], **SMALLER[name]) for name in NAMES}


def fresh(name: str, size: int, **kwargs: Any) -> OpenModel:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=20, **kwargs).train()
    with torch.no_grad():
        for batch in Noise(size).images(24):
            model(batch)
    return compress(model.eval(), [])


@pytest.fixture(scope="module")
def rounded(dense: dict[str, OpenModel]) -> dict[str, OpenModel]:
    return {name: compress(dense[name], [Int8(images=16)], Noise(SIZES[name])) for name in NAMES}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_rounded_and_answers_stay(name: str, dense: Any, rounded: Any) -> None:
    x = next(Noise(SIZES[name]).images(8, seed=9))
    with torch.no_grad():
        want, got = dense[name](x), rounded[name](x)
    assert not torch.equal(want, got)
    assert (got - want).norm() / want.norm() < 0.15
    assert (got.argmax(1) == want.argmax(1)).float().mean() >= 0.75
    rows = describe(rounded[name])
    assert {row["bits"] for row in rows} == {8}
    assert {row["kind"] for row in rows} == {"conv", "linear", "matmul"}
    weights = [m for m in dense[name].modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert Int8().achieved(rounded[name], {}) == {"quantized": len(weights), "float": 0, "weight_bits": 8.0}
    assert "float" not in rounded[name].traits()


@pytest.mark.parametrize("name", NAMES)
def test_loaded_it_gives_the_same_bits(name: str, rounded: Any, tmp_path: Path) -> None:
    save(rounded[name], tmp_path / "run")
    x = next(Noise(SIZES[name]).images(3, seed=5))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "run")(x), rounded[name](x))


def test_what_stays_float_is_listed(dense: Any) -> None:
    model = copy.deepcopy(dense["mobilevit_xxs"])
    assert {row["bits"] for row in describe(model)} == {32}
    method = Int8(images=8, products=False, skip=("stem.conv",))
    structure = method.learn(model, Noise(64))  # type: ignore[arg-type]
    method.shape(model, structure)
    method.fold(model, structure, {})
    rows = {(row["site"], row["operand"]): row["bits"] for row in describe(model)}
    assert rows["stem.conv", "weight"] == 32 and rows["final_conv.conv", "weight"] == 8
    products = {site for site, operand in rows if operand == "a"}
    assert products == set(model.products()) and len(products) == 18
    assert {rows[site, "b"] for site in products} == {32}


def test_a_convolution_of_another_kind_stays_float_and_is_listed() -> None:
    """Padding of TensorFlow's kind is a class of its own, which int8 does not round."""
    from leanvit.anatomy.traced.model import OpenTraced

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = timm.layers.Conv2dSame(3, 4, 3, stride=2)
            self.plain = nn.Conv2d(4, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.same(x)).mean((2, 3))

    opened = OpenTraced(source=Toy(), size=(3, 16, 16))
    method = Int8(images=8)
    structure = method.learn(opened.eval(), Noise(16))  # type: ignore[arg-type]
    method.shape(opened, structure)
    method.fold(opened, structure, {})
    bits = {(row["site"], row["operand"]): row["bits"] for row in describe(opened)}
    assert bits == {
        ("same", "input"): 32,
        ("same", "weight"): 32,
        ("plain", "input"): 8,
        ("plain", "weight"): 8,
    }


def test_a_quantized_model_is_recorded_anew_for_another_size(rounded: Any) -> None:
    model = rounded["mobilevit_xxs"]
    with torch.no_grad():
        assert model(torch.randn(2, 3, 96, 64)).shape == (2, 20)


@pytest.mark.e2e
def test_deployed_it_runs_int8_kernels(tmp_path: Path) -> None:
    """Equal at f32; as int8 every convolution (depthwise ones too, a norm behind each) and every linear in int8."""
    small = {"depths": (1, 1, 1, 1, 1), "widths": (8, 8, 16, 16, 32), "head_widths": (32, 32)}
    dense = fresh("efficientvit_b0", 64, **small)
    rounded = compress(dense, [Int8(images=8)], Noise(64))  # type: ignore[arg-type]
    preprocess = Preprocess(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = export(dense, tmp_path / "f32", preprocess=preprocess)
    assert plain.check["max_error"] < 1e-4
    artefact = export(rounded, tmp_path / "int8", preprocess=preprocess)
    compiled = compile_model(core().read_model(artefact.path / MODEL), Options())
    precisions = product_precisions(compiled)
    assert sum(precisions.values()) == len(dense.sites()) and set(precisions) <= {"u8", "i8"}
    x = next(Noise(64).images(5, seed=7))
    with torch.no_grad():
        want = rounded(x)
    got = load_artefact(artefact.path)(x)
    assert (got - want).norm() / want.norm() < 0.05


def test_opening_by_name_gives_the_same_family() -> None:
    assert open_model(timm.create_model("mobilevitv2_050", num_classes=3)).family == "traced"
