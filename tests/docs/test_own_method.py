"""The docs' method of one's own: it does what its paper says, and lives outside the package like any other method."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import head_importance
import pytest
import timm
import torch
from head_importance import HeadImportance, importance, kept_heads
from torch import nn
from typer.testing import CliRunner

from leanvit import cards
from leanvit.anatomy import open_model
from leanvit.cli.main import app
from leanvit.data import Preprocess, loader, open_dataset
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.recipe import Data, compress, load, methods, parse_with, register, save

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4, "in_chans": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", qk_norm=True, **TINY).eval()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> Data:
    return Data(open_dataset("digits", "train", limit=24), Preprocess.of(model), batch_size=8)


def test_it_is_short() -> None:
    assert len(Path(head_importance.__file__).read_text().splitlines()) < 100


def test_importance_is_the_slope_of_the_loss_in_a_gate_on_each_head(model: nn.Module, data: Data) -> None:
    """Equation 2 of the paper by its definition: |dL / d gate|, an image at a time, with one gate a head."""
    opened = open_model(model)
    expected = torch.zeros(3, 4)
    for batch in loader(data.dataset, data.preprocess, batch_size=1):
        gates = torch.ones(3, 4, requires_grad=True)
        hooks = [
            block.attn.proj.register_forward_pre_hook(
                lambda _, given, gate=gate: ((given[0].unflatten(-1, (4, -1)) * gate[:, None]).flatten(-2),)
            )
            for block, gate in zip(opened.blocks, gates, strict=True)
        ]
        loss = nn.functional.cross_entropy(opened(batch.images), batch.targets)
        expected += torch.autograd.grad(loss, gates)[0].abs()
        for hook in hooks:
            hook.remove()
    found = importance(opened, loader(data.dataset, data.preprocess, batch_size=8))
    torch.testing.assert_close(torch.stack(found), expected / len(data.dataset), rtol=1e-4, atol=1e-7)


def test_the_lowest_heads_of_the_whole_model_go_and_one_stays_everywhere() -> None:
    scores = [torch.tensor([3.0, 4.0, 0.1, 0.0]), torch.tensor([0.1, 0.1, 0.1, 5.0])]
    assert kept_heads(scores, 0.5) == [[0, 1, 2], [3]]  # after the norm, the second block's three come right after 0.0
    assert kept_heads(scores, 0.99) == [[1], [3]]
    assert kept_heads(scores, 0.0) == [[0, 1, 2, 3]] * 2


def test_a_cut_head_is_a_head_that_gives_nothing(model: nn.Module, data: Data, tmp_path: Path) -> None:
    lean = compress(model, [HeadImportance(ratio=0.5)], data)
    (plan,) = lean.history.plans
    heads = plan.structure["heads"]
    assert sum(map(len, heads)) == 6 and HeadImportance().achieved(lean, {}) == {"heads": [len(h) for h in heads]}
    masked = open_model(timm.create_model("vit_tiny_patch16_224", qk_norm=True, **TINY)).eval()
    masked.load_state_dict(model.state_dict())
    for block, kept in zip(masked.blocks, heads, strict=True):
        gone = [h for h in range(4) if h not in kept]
        block.attn.proj.weight.data.unflatten(1, (4, 6))[:, gone] = 0
    images = next(iter(loader(data.dataset, data.preprocess, batch_size=8))).images
    torch.testing.assert_close(lean(images), masked(images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(lean(images), model(images), atol=1e-3)
    save(lean, tmp_path)
    assert torch.equal(load(tmp_path)(images), lean(images))


def test_off_is_exact(model: nn.Module, data: Data) -> None:
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(compress(model, [HeadImportance(ratio=0)], data)(images), model(images))


def test_what_it_does_not_know_is_refused(data: Data) -> None:
    gated = timm.create_model("vit_tiny_patch16_224", scale_attn_norm=True, **TINY)
    with pytest.raises(Refused, match="plain ViTs only"):
        compress(gated, [HeadImportance()], data)
    with pytest.raises(BadInput, match=r"ratio is 1; accepted"):
        HeadImportance(ratio=1)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_it_is_a_method_like_any_other() -> None:
    assert parse_with("head_importance:ratio=0.5") == HeadImportance(ratio=0.5)
    assert [p.module for p in methods() if p.slug == "head_importance"] == [
        "head_importance"
    ] and "head_importance" not in cards.papers()


def test_a_run_names_the_module_that_it_needs(model, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(compress(model, [HeadImportance()], data), tmp_path)
    (plan,) = json.loads((tmp_path / "leanvit.json").read_text())["plans"]
    assert plan["module"] == "head_importance"
    monkeypatch.setattr(cards, "_registered", {})
    with pytest.raises(CheckpointError, match="registered by the module 'head_importance': import that module before"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("slug", "columns", "message"),
    [
        ("evit", {}, "slug 'evit' belongs to the method of leanvit.tokens.evit"),
        ("Head-Cut", {}, "slug is 'Head-Cut'; accepted: lower-case"),
        ("mine", {"arxive": "1"}, "register has no column 'arxive': did you mean 'arxiv'"),
    ],
)
def test_a_bad_registration_is_refused(slug: str, columns: dict, message: str) -> None:
    class Mine:
        def shape(self, model, structure) -> None: ...

    with pytest.raises(BadInput, match=message):
        register(slug, title="t", summary="s", **columns)(Mine)
    with pytest.raises(TypeError, match="has no shape"):
        register("shapeless", title="t", summary="s")(type("Shapeless", (), {}))
    assert "shapeless" not in cards.known_papers() and "mine" not in cards.known_papers()


def test_the_program_imports_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(cards, "_registered", {})
    code = """
from leanvit.recipe import register

@register("cut", title="T", summary="cuts")
class Cut:
    def shape(self, model, structure): ...
"""
    (tmp_path / "mine_for_a_test.py").write_text(code)
    listed = CliRunner().invoke(app, ["--import", "mine_for_a_test", "methods"])
    assert listed.exit_code == 0 and "cut" in listed.stdout
    unknown = CliRunner().invoke(app, ["--import", "no_such_module", "methods"])
    assert unknown.exit_code == 2 and "--import 'no_such_module': there is no such module" in unknown.stderr
