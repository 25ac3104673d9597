"""STViT-R put into a trained Swin: against the architecture's own stage, what is carried over, a life of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from leanvit.anatomy import close_model
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, compress, load, save
from leanvit.tokens.stvit import STViT
from leanvit.tokens.stvit.unit import SemanticStage
from leanvit.tokens.tome import ToMe
from tokens.reduction import gradients, reduced
from training.tiny_training import make_data, make_preprocess
from zoo import randomise

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "num_heads": [1, 2], "num_classes": 5}


def swin(**more: Any) -> nn.Module:
    """16x16 tokens, then 8x8 in windows of 4 in the stage that gets units."""
    return randomise(timm.create_model("swin_tiny_patch4_window7_224", **{**SWIN, "depths": [1, 6], **more})).eval()


def images(batch: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


def stage_of(blocks: Any, **options: Any) -> SemanticStage:
    """The architecture's stage with the weights of a Swin's blocks, and no layer scale."""
    net = SemanticStage(None, 24, 2, 96, [0.0] * len(blocks), grid=(8, 8), window=4, **options).eval()
    given = {}
    for name, tensor in blocks.state_dict().items():
        ours, third = f"blocks.{name}", len(tensor) // 3
        if int(name.split(".")[0]) % 6 == 0 or ".qkv." not in name:
            given[ours] = tensor
        else:
            given[ours.replace("qkv", "q")], given[ours.replace("qkv", "kv")] = tensor[:third], tensor[third:]
    own = net.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.ones_like(tensor) if name.endswith("gamma") else given[name])
    return net


@pytest.mark.parametrize("options", [{"samples": 2}, {"samples": 3, "shortcut": True}])
def test_it_is_the_architectures_stage(options: dict[str, Any]) -> None:
    model = swin(depths=[1, 12])
    want = stage_of(model.layers[1].blocks, **options)
    lean = reduced(model, STViT(**options))
    x, state = lean.run(*lean.embed(images(), lean.start(images())), 0, 1)
    merged, after = lean.layers[1].downsample(x, state)
    y, state = lean.run(x, state, 1, 13)
    torch.testing.assert_close(y, want(merged.unflatten(1, after.grid)).flatten(1, 2), **CLOSE)
    assert not state.extra and lean.trace(images())[1].patch_tokens == (
        256,
        *[64, *[4 * options["samples"] ** 2] * 4, 64] * 2,
    )


def test_units_at_the_end_of_a_stage_leave_the_others_as_they_were() -> None:
    model = swin(depths=[1, 8])
    dense = model.forward_intermediates(images(), [0], intermediates_only=True)
    method = STViT(units=1, samples=1, use_global=True)
    lean = reduced(model, method)
    assert lean.patch_tokens() == [256, 64, 64, 64, 4, 4, 4, 4, 64]
    assert method.check(lean, {"stage": 1, "units": 1, "samples": 1}) == []
    assert (
        method.check(lean, {"stage": 1, "units": 1, "samples": 2})[0] == "block 4: requested 16 semantic tokens, has 4"
    )
    maps = lean.forward_intermediates(images(), intermediates_only=True)
    assert [m.shape[1:] for m in maps] == [(12, 16, 16), (24, 8, 8)] and torch.equal(maps[0], dense[0])
    assert lean.blocks[5].centres.shape == (1, 4, 24)
    with pytest.raises(Refused, match="stvit put other blocks in"):
        close_model(lean)
    assert set(gradients(lean.train(), images())) == set(dict(lean.named_parameters()))


def test_multiply_accumulates_are_those_of_the_architecture() -> None:
    model = swin()
    want = count(stage_of(model.layers[1].blocks, samples=2), (8, 8, 24))
    got = count(reduced(model, STViT(samples=2)), (3, 32, 32))
    assert not got.uncounted
    assert sum(got.by_module[f"layers.1.blocks.{i}"] for i in range(6)) == want.macs


@pytest.mark.parametrize(
    ("more", "knobs", "why"),
    [
        ({"depths": [1, 7]}, {}, "stage 1 has 7 blocks; accepted: a multiple of 6"),
        ({}, {"units": 2}, "units is 2; accepted for the 6 blocks of stage 1: 1 to 1"),
        ({}, {"stage": 0}, "stage 0 has 1 blocks"),
        ({}, {"stage": 2}, "stage is 2; accepted: a whole number from 0 to 1"),
        ({}, {"samples": 5}, "samples is 5; accepted: a whole number from 1 to 4"),
        ({}, {"after": 1}, "after is 1: the knob is of a plain ViT"),
        ({"img_size": 48}, {}, "12 tokens a side in windows of 4.*padded=true takes any size"),
        ({"img_size": (32, 64)}, {}, "8x16 tokens in windows of 4x4; accepted: square ones"),
    ],
)
def test_what_does_not_fit_is_named(more: dict[str, Any], knobs: dict[str, Any], why: str) -> None:
    with pytest.raises((BadInput, Refused), match=why):
        reduced(swin(**more), STViT(**knobs))


def test_other_blocks_are_refused() -> None:
    v2 = {**SWIN, "depths": [1, 6]}
    with pytest.raises(Refused, match="PostNormBlock: units are made of the blocks of Swin"):
        reduced(timm.create_model("swinv2_tiny_window8_256", **v2), STViT())
    with pytest.raises(Refused, match="which tome takes away"):
        compress(swin(), [ToMe(r=1), STViT()])


@pytest.mark.e2e
def test_a_life_of_a_run(tmp_path: Path) -> None:
    model, x = swin(img_size=16, patch_size=1, in_chans=1, num_classes=4), images(2, 1, 16)
    preprocess = replace(make_preprocess(), input_size=(1, 16, 16))
    lean = compress(model, [STViT(samples=2), Int8(images=4)], Data(make_data(8), preprocess))
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    plain = compress(model, [STViT(samples=2)])
    export(plain, tmp_path / "openvino", to="openvino", preprocess=preprocess, batch=2)
    torch.testing.assert_close(torch.as_tensor(load_artefact(tmp_path / "openvino")(x)), plain(x), rtol=1e-3, atol=1e-4)
