"""ReViT: its rule, and that it lives like any other root."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from leanvit.anatomy import close_model, open_model
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput
from leanvit.prune.nvit.revit import widths
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Root, compress, create, load, root_of, save
from leanvit.recipe.learning import Data
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, fit
from training.tiny_training import make_data, make_preprocess

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 112}


def revit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("revit_tiny", **SMALL).eval()


def picture() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_rule() -> None:
    rule = widths(176)
    assert [w.heads for w in rule] == [10, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2, 10]
    assert [w.qk for w in rule] == [16, 8, 8, 16, 16, 16, 16, 16, 16, 8, 8, 16]
    assert {w.v for w in rule} == {64} and rule[3].mlp == 1056 and rule[0].mlp == 528
    with pytest.raises(BadInput, match="embed_dim is 64"):
        widths(64)


@pytest.mark.parametrize("fused", [True, False])
def test_opened_it_computes_what_it_does_in_timm(fused: bool) -> None:
    model = revit()
    for block in model.blocks:
        block.attn.fused_attn = fused
    want = model(picture())
    opened = open_model(model)
    torch.testing.assert_close(opened(picture()), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(close_model(opened)(picture()), want)


@pytest.mark.e2e
def test_it_is_a_root_that_trains_is_compressed_saved_loaded_and_exported(tmp_path: Path) -> None:
    model = create(Root("revit_tiny", SMALL))
    assert root_of(revit()).name == "revit_tiny"
    fit(model, make_data(16), preprocess=make_preprocess(), config=FitConfig(epochs=1, batch_size=8))
    data = Data(make_data(16), make_preprocess(), batch_size=8)
    lean = compress(model, [EViT(keep_rate=0.5, blocks=(5,)), Int8(images=8)], data)
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))
    export(model, tmp_path / "artefact", to="openvino", preprocess=make_preprocess(), batch=2)
    torch.testing.assert_close(
        torch.as_tensor(load_artefact(tmp_path / "artefact")(picture())), model.eval()(picture()), rtol=1e-3, atol=1e-4
    )
