"""STViT-R on Swin: the dumbbell unit's contracts, geometry, the padded form, opening with int8, one life of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from backbones.small import SMALL
from leanvit.anatomy import open_model
from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.data import Preprocess
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Data, Root, compress, create, load, save
from leanvit.tokens.stvit import STViT, checkpoint_filter_fn
from leanvit.tokens.stvit.parts import SwinBlock
from leanvit.tokens.stvit.semantic import neighbourhoods, starts
from leanvit.tokens.stvit.unit import SemanticStage
from leanvit.training import CrossEntropy, FitConfig
from leanvit.training.optimizers import make_optimizer
from training.tiny_training import make_data, make_preprocess
from zoo import randomise

NAME = "stvit_r_swin_tiny"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def stage(grid: tuple[int, int] = (8, 8), blocks: int = 6, **more: Any) -> SemanticStage:
    given = {"window": 4, "samples": 2, **more}
    return randomise(SemanticStage(None, 16, 2, 32, [0.0] * blocks, grid=grid, **given)).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_semantic_tokens_and_what_is_recovered(samples: int, padded: bool) -> None:
    net = stage(samples=samples, padded=padded)
    x = noise(2, 8, 8, 16)
    assert net.generated(x).shape == (2, 4 * samples**2, 16)
    assert net(x).shape == x.shape


@pytest.mark.parametrize("padded", [False, True])
def test_without_attention_in_the_last_block_its_mlp_is_left(padded: bool) -> None:
    net = stage(padded=padded)
    last = net.blocks[5]
    nn.init.zeros_(last.ls1.gamma)
    x = noise(2, 8, 8, 16)
    before = net.blocks[0](x)
    torch.testing.assert_close(net(x), before + last.ls2(last.mlp(last.norm2(before))), **CLOSE)


def test_semantic_tokens_are_a_set_to_the_last_block() -> None:
    last = stage().blocks[5]
    x, tokens = noise(2, 64, 16), noise(2, 16, 16, seed=2)
    shuffled = tokens[:, torch.randperm(16, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(last(x, shuffled), last(x, tokens), **CLOSE)
    assert not torch.allclose(last(x, tokens[:, :8]), last(x, tokens), **CLOSE)


def test_image_tokens_skip_the_blocks_between() -> None:
    """Whatever blocks 1 to 4 do, the last one's queries are what the first gave."""
    net, seen = stage(), []
    net.blocks[5].norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = noise(1, 8, 8, 16)
    net(x)
    assert torch.equal(seen[0][:, :64], net.blocks[0](x).flatten(1, 2))


def test_the_first_attention_starts_near_nothing_without_shortcut() -> None:
    for shortcut in (False, True):
        net = SemanticStage(None, 16, 2, 32, [0.0] * 6, grid=(8, 8), window=4, samples=2, shortcut=shortcut).eval()
        assert (net.generated(noise(1, 8, 8, 16)).abs().max() > 0.1) == shortcut


def test_global_centres_belong_to_the_first_unit_only() -> None:
    net = stage(blocks=12, use_global=True)
    assert net.centres.shape == (1, 16, 16)
    x = noise(1, 8, 8, 16)
    first, second = net.generated(x, 0), net.generated(x, 1)
    nn.init.zeros_(net.centres)
    assert not torch.allclose(net.generated(x, 0), first) and torch.equal(net.generated(x, 1), second)


def test_windows_of_keys_are_spread_evenly() -> None:
    assert starts(14, 7, 10) == [0, 4] and starts(28, 7, 10) == [0, 6, 12, 18] and starts(7, 7, 7) == [0]
    x = torch.arange(14.0 * 14).reshape(1, 14, 14, 1)
    keys = neighbourhoods(x, [0, 4], [0, 4], 10).unflatten(1, (10, 10))
    assert torch.equal(keys[1, :, :, 0], x[0, :10, 4:, 0]) and torch.equal(keys[2, :, :, 0], x[0, 4:, :10, 0])
    for side, window, size in ((21, 7, 10), (7, 7, 10), (15, 7, 10)):
        with pytest.raises(BadInput, match="cannot be spread evenly"):
            starts(side, window, size)


@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (6, 9), (4, 4)])
def test_swins_block_is_timms(grid: tuple[int, int]) -> None:
    """Shifted windows too, on maps that they do not divide, and where there is one window only."""
    theirs = randomise(SwinTransformerBlock(16, grid, num_heads=2, window_size=4, shift_size=2)).eval()
    ours = SwinBlock(16, 2, 4, 2, 64, 0.0).eval()
    ours.load_state_dict(theirs.state_dict())
    x = noise(2, *grid, 16)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


# --- the padded form --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (70, 100), (33, 47)])
def test_the_padded_form_takes_any_size(size: tuple[int, int]) -> None:
    model = timm.create_model(NAME, **{**SMALL[NAME], "padded": True, "features_only": True}).eval()
    maps = model(noise(1, 3, *size))
    assert [m.shape[2:] for m in maps] == [tuple(-(-side // r) for side in size) for r in (4, 8, 16, 32)]
    assert all(m.isfinite().all() for m in maps)


def test_padding_is_not_attended_to() -> None:
    """All of it is masked, and nothing else: windows at the edge are plain attention to what is there."""
    net, block = stage(padded=True), stage().blocks[1]
    image, tokens = noise(1, 6, 7, 16), noise(1, 16, 16, seed=5)
    semantic = Windows((4, 4), (2, 2))
    got = net._nearby(block, tokens, semantic, image, 4, 2)
    first = [0, 1, 4, 5]  # the tokens of the first window: it sees 2 places beyond its 4 on either side, where they are
    want = block.attn(block.norm1(tokens[:, first]), block.norm1(image[:, :6, :6].flatten(1, 2)))
    torch.testing.assert_close(got[:, first], want, **CLOSE)
    last = [10, 11, 14, 15]
    want = block.attn(block.norm1(tokens[:, last]), block.norm1(image[:, 2:, 2:].flatten(1, 2)))
    torch.testing.assert_close(got[:, last], want, **CLOSE)


def test_what_only_the_padded_form_takes_is_refused_with_that_advice() -> None:
    for side in (96, 160):
        with pytest.raises(BadInput, match="padded=True"):
            timm.create_model(NAME, **{**SMALL[NAME], "img_size": side})
    with pytest.raises(BadInput, match="accepted: square ones; padded=True"):
        timm.create_model(NAME, **{**SMALL[NAME], "img_size": (128, 256)})
    model = timm.create_model(NAME, **SMALL[NAME])
    assert model(noise(1, 3, 256, 256)).shape == (1, 5)
    with pytest.raises(BadInput, match="windows of 7 for the keys cannot be spread evenly"):
        model(noise(1, 3, 192, 192))
    fixed = timm.create_model(NAME, **SMALL[NAME], use_global=True)
    with pytest.raises(BadInput, match="accepted: 8x8, which its centres"):
        fixed(noise(1, 3, 256, 256))


# --- names, opening, a life -------------------------------------------------------------------------


def test_units_and_weight_decay() -> None:
    model = timm.create_model(NAME, **{**SMALL[NAME], "units": 2, "use_global": True})
    assert len(model.layers[2].blocks) == 12
    decayed = {
        id(p)
        for g in make_optimizer(model, CrossEntropy(), FitConfig(weight_decay=0.1)).param_groups
        if g["weight_decay"]
        for p in g["params"]
    }
    undecayed = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert {n for n in undecayed if "relative_position_bias_table" in n} == model.no_weight_decay() != set()
    assert "layers.2.blocks.1.ls1.gamma" in undecayed and "layers.2.blocks.1.attn.kv.weight" not in undecayed


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = timm.create_model(NAME, **SMALL[NAME])
    with pytest.raises(ValueError, match=r"the model has no layers\.2\.blocks\.1\.attn\.qkv"):
        checkpoint_filter_fn({"layers.2.blocks.1.attn.qkv.weight": torch.zeros(1), **model.state_dict()}, model)


@pytest.mark.e2e
@pytest.mark.parametrize("form", [{}, {"padded": True}, {"use_global": True, "conv_pos": True, "relative_pos": True}])
def test_every_form_opens_and_exports(form: dict[str, Any], tmp_path: Path) -> None:
    given = {**SMALL[NAME], "embed_dim": 4, "num_heads": (1, 1, 1, 1), **form}
    model = randomise(timm.create_model(NAME, **given)).eval()
    x = noise(2, 3, 128, 128)
    want = model(x)
    opened = open_model(model)
    torch.testing.assert_close(opened(x), want, **CLOSE)
    with pytest.raises(Refused, match=r"stvit needs .*transformer blocks that tokens of patches run through"):
        opened.history = None
        compress(model, [STViT()], root=Root(NAME, given))
    if form.get("padded"):
        export(model, tmp_path / "a", to="openvino", preprocess=Preprocess.of(model), batch=2)
        torch.testing.assert_close(torch.as_tensor(load_artefact(tmp_path / "a")(x)), want, rtol=1e-3, atol=1e-4)


@pytest.mark.e2e
def test_int8_saved_and_loaded(tmp_path: Path) -> None:
    given = {**SMALL[NAME], "img_size": 64, "in_chans": 1, "num_classes": 4, "padded": True}
    dense = create(Root(NAME, given))
    data, preprocess = make_data(8), make_preprocess()
    lean = compress(dense, [Int8(images=4)], Data(data, _at(preprocess, 64)))
    rounded = {row["site"] for row in describe(lean) if row["bits"] == 8}
    assert {"layers.2.blocks.1.attn.kv", "layers.2.blocks.5.attn.q", "patch_embed.conv1"} <= rounded
    x = noise(2, 1, 64, 64)
    save(lean, tmp_path)
    assert torch.equal(load(tmp_path)(x), lean(x))


def _at(preprocess: Any, side: int) -> Any:
    return replace(preprocess, input_size=(1, side, side))
