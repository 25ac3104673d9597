"""DCT-HistoTransformer: the transform, attention at both ends of `keep`, the plain network, folding, other sizes."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from backbones.small import SMALL
from leanvit.anatomy import open_model
from leanvit.backbones.dct_histo import DctHistoTransformer, checkpoint_filter_fn
from leanvit.backbones.dct_histo.dct import SeparableMap, dct_matrix
from leanvit.backbones.dct_histo.model import DctAttention
from leanvit.data import Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Data, Root, compress, create, load, save
from leanvit.training import FitConfig, fit
from training.tiny_training import make_data
from zoo import randomise

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plain_dct_histo import PlainDctHisto

NAME = "dct_histo_tiny"


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(**more: Any) -> Any:
    model = randomise(timm.create_model(NAME, **{**SMALL[NAME], **more})).eval()
    rng = torch.Generator().manual_seed(2)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=rng))
    return model


# --- the transform --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_the_matrix_is_orthogonal_and_its_rows_are_the_lowest_frequencies(size: int) -> None:
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(dct_matrix(size, 1), matrix[:1])


@pytest.mark.parametrize("domain", ["frequency", "spatial"])
def test_round_trips_constants_and_energy(domain: str) -> None:
    grid, x = (6, 9), noise(2, 6, 9, 3)
    energies = []
    for kept in ((1, 1), (2, 3), (4, 6), grid):
        down = SeparableMap(grid, kept, domain=domain)
        up = SeparableMap(grid, kept, domain=domain, inverse=True)
        low = up(down(x))
        energies.append(low.square().sum())
        torch.testing.assert_close(up(down(low)), low, rtol=1e-5, atol=1e-5)
        constant = torch.full((1, *grid, 1), 3.0)
        torch.testing.assert_close(up(down(constant)), constant, rtol=1e-5, atol=1e-5)
        if domain == "frequency":
            spectrum = down(constant)
            assert spectrum[0, 0, 0, 0] == pytest.approx(3 * 54**0.5) and spectrum.abs().sum() < 3 * 54**0.5 + 1e-4
        else:
            torch.testing.assert_close(down(constant), torch.full((1, *kept, 1), 3.0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low, x, rtol=0, atol=1e-5)
    assert all(a < b for a, b in pairwise(energies)) and energies[-1] == pytest.approx(
        float(x.square().sum()), rel=1e-5
    )


def test_gradients_of_the_transform() -> None:
    for inverse in (False, True):
        transform = SeparableMap((4, 5), (2, 3), inverse=inverse).double()
        assert torch.equal(transform.rows, dct_matrix(4, 2).T if inverse else dct_matrix(4, 2))
        x = noise(2, *((2, 3) if inverse else (4, 5)), 2, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(transform, x)


def test_half_precision_does_not_reach_the_transform() -> None:
    transform, x = SeparableMap((8, 8), (4, 4)), noise(1, 8, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform(x), SeparableMap((8, 8), (4, 4))(x)) and transform(x).dtype == torch.float32
    half = copy.deepcopy(transform).bfloat16()
    assert half.rows.dtype == torch.float32 and half(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(half(x.bfloat16()), transform(x.bfloat16().float()).bfloat16())
    opened = open_model(small())
    images = noise(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(opened(images), opened.source(images))


# --- attention ------------------------------------------------------------------------------------------------------


def test_with_all_frequencies_in_space_it_is_ordinary_attention() -> None:
    ours = randomise(DctAttention(24, 3, (6, 8), 1.0, "spatial")).eval()
    dense = timm.layers.Attention(24, 3, qkv_bias=True).eval()
    dense.load_state_dict({k: v for k, v in ours.state_dict().items() if k.startswith(("qkv", "proj"))})
    x = noise(2, 6, 8, 24)
    want = dense(ours.norm(x).flatten(1, 2)).unflatten(1, (6, 8))
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("domain", ["frequency", "spatial"])
def test_half_of_the_frequencies_are_a_quarter_of_the_tokens(domain: str) -> None:
    x, scores = noise(1, 8, 12, 24), []
    for keep, tokens in ((1.0, 96), (0.5, 24)):
        attn, seen = DctAttention(24, 3, (8, 12), keep, domain), []
        attn.qkv.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out.shape[1] * out.shape[2]))
        assert attn(x).shape == x.shape and seen == [tokens]
        by_op = count(attn, (8, 12, 24)).by_op
        scores.append(next(n for op, n in by_op.items() if "attention" in op))
    assert scores[0] == 16 * scores[1] == 2 * 96 * 96 * 24


def test_what_is_beyond_the_kept_frequencies_does_not_reach_it() -> None:
    attn = randomise(DctAttention(6, 2, (8, 8), 0.5, "frequency")).eval()
    attn.norm = nn.Identity()
    x, high = noise(1, 8, 8, 6), torch.zeros(1, 8, 8, 6)
    high[:, 4:], high[:, :4, 4:] = noise(1, 4, 8, 6), noise(1, 4, 4, 6)
    full = SeparableMap((8, 8), (8, 8), inverse=True)
    torch.testing.assert_close(attn(x + full(high)), attn(x), rtol=1e-4, atol=1e-4)
    high[:, 0, 1, 0] = 1
    assert (attn(x + full(high)) - attn(x)).abs().max() > 1e-2


# --- the network ----------------------------------------------------------------------------------------------------


def test_it_is_the_network_as_described() -> None:
    model, x = small(img_size=(64, 88)), noise(2, 3, 64, 88)
    with torch.no_grad():
        want = PlainDctHisto(model)(x)
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize(
    ("branches", "domain"),
    [("both", "frequency"), ("both", "spatial"), ("dct", "spatial"), ("conv", "spatial")],
)
def test_folded_it_computes_the_same(branches: str, domain: str) -> None:
    model, x = small(branches=branches, domain=domain), noise(2, 3, 64, 64)
    with torch.no_grad():
        want, macs = model(x), count(model, (3, 64, 64)).macs
        torch.testing.assert_close(model.fuse()(x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        torch.testing.assert_close(model.fuse()(x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    folded = count(model, (3, 64, 64)).macs
    assert folded == macs if branches == "dct" else folded < macs
    with pytest.raises(Refused, match=r"call eval\(\) first"):
        model.train().fuse()


@pytest.mark.parametrize("branches", ["dct", "conv"])
def test_either_branch_trains_alone(branches: str) -> None:
    model = timm.create_model(NAME, **SMALL[NAME], branches=branches).train()
    model(noise(4, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert any(isinstance(m, DctAttention) for m in model.modules()) == (branches == "dct")


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("dct_histo_tiny", 1_536_890, 215_039_040), ("dct_histo_small", 3_178_146, 444_848_384)],
)
def test_sizes_stay_within_what_light_means(name: str, params: int, macs: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    cost = count(model, (3, 224, 224))
    assert (cost.params, cost.macs) == (params, macs) and not cost.uncounted
    assert cost.params < (2.5e6 if "tiny" in name else 6e6) and cost.macs < (0.5e9 if "tiny" in name else 1.1e9)


# --- other sizes ----------------------------------------------------------------------------------------------------


def test_another_size_asks_for_other_positions() -> None:
    model, x = small(), noise(1, 3, 96, 128)
    with pytest.raises(BadInput, match="images are 96x128, the model's transforms are made for 64x64"):
        model(x)
    with pytest.raises(BadInput, match=r"those of 4x4 frequencies, this size has 6x8; .*resize_pos=True"):
        model.set_input_size((96, 128))
    with torch.no_grad():
        before = model(noise(1, 3, 64, 64))
        model.set_input_size((96, 128), resize_pos=True)
        assert model(x).shape == (1, 5)
        built = timm.create_model(NAME, **{**SMALL[NAME], "img_size": (96, 128)}).eval()
        built.load_state_dict(checkpoint_filter_fn(small().state_dict(), built))
        assert torch.equal(built(x), model(x))
        model.set_input_size(64, resize_pos=True)
        assert (model(noise(1, 3, 64, 64)) - before).abs().max() < before.abs().max()
    free = small(domain="spatial")
    free.set_input_size(96)
    assert free(noise(1, 3, 96, 96)).shape == (1, 5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": (0.5, 0, 1)}, r"keep is \(0.5, 0, 1\); accepted: a list, each a number above 0"),
        ({"keep": (0.5, 1.5, 1)}, "keep is"),
        ({"keep": (0.5, 0.5)}, "keep has 2; accepted: one value a stage"),
        ({"img_size": 56}, "56x56, which leaves 7x7 positions behind the stem"),
        ({"img_size": "big"}, "img_size is 'big'"),
        ({"domain": "wavelet"}, "domain is 'wavelet'; accepted: frequency or spatial"),
        ({"branches": "none"}, "branches is 'none'"),
        ({"num_heads": (3, 3, 4)}, r"num_heads\[0\] is 3 for 16 channels"),
        ({"depths": (1, 0, 1)}, r"depths is \(1, 0, 1\)"),
    ],
)
def test_values_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        DctHistoTransformer(**{**SMALL[NAME], **given})


def test_whole_numbers_are_no_images() -> None:
    with pytest.raises(BadInput, match=r"images are torch.uint8; accepted: floating"):
        small()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_it_is_a_root_that_trains_is_quantized_saved_and_loaded(tmp_path: Path) -> None:
    model = create(Root(NAME, {**SMALL[NAME], "in_chans": 1, "num_classes": 4}))
    preprocess = Preprocess((1, 64, 64), (0.5,), (0.5,))
    fit(model, make_data(8), preprocess=preprocess, config=FitConfig(epochs=1, batch_size=4), convert=True)
    lean = compress(model, [Int8(images=8)], Data(make_data(8), preprocess, batch_size=8))
    x = noise(2, 1, 64, 64)
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x), lean(x))
    rows = describe(lean)
    assert {row["bits"] for row in rows} == {8} and not any(".dct.down" in row["site"] for row in rows)


def test_images_are_made_for_the_size_that_it_was_built_for() -> None:
    assert Preprocess.of(create(Root("dct_histo_tiny", SMALL["dct_histo_tiny"]))).input_size == (3, 64, 64)
