"""ToMe in windows, on a small Swin: the grid stays full, the MLP sees fewer tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanvit.anatomy import OpenSwin, open_model
from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.parts.tokens import take_tokens
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.recipe import compress, load, save
from leanvit.recipe.roots import Root
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from leanvit.tokens.tome.windows import Merged, owners, restored
from tokens.reduction import gradients, lengths_in_mlps, operators
from zoo import SMALL_SWIN, build_swin, images

V1, V2, PADDED = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swin_small_patch4_window7_224:padded"
RATES = {PADDED: [7, 8, 0, 0, 6]}  # grids of 18x10, 9x5, 5x3: those of 9x5 are padded to twice their tokens
ROOT = Root(V1, {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL_SWIN.items()})


def merged(name: str, tome: ToMe | None = None, **kwargs: object) -> OpenSwin:
    opened = open_model(build_swin(name, **kwargs))
    tome = tome or ToMe(r=RATES.get(name, [6, 8, 6, 8, 6]))
    tome.shape(opened, tome.learn(opened))
    return opened


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize("tome", [ToMe(r=0), ToMe(r=[0, 0])])
def test_off_is_exact(name: str, tome: ToMe) -> None:
    dense = build_swin(name)
    want = dense(images(dense))
    lean = merged(name, tome)
    assert torch.equal(lean(images(lean)), want) and not list(lean.steps())


@pytest.mark.parametrize("name", [V1, V2])
def test_the_mlp_sees_the_rest_and_the_grid_comes_back(name: str) -> None:
    lean = merged(name)
    rest = [16 * 10, 16 * 8, 4 * 10, 4 * 8, 10]
    assert lengths_in_mlps(lean, images(lean)) == rest == ToMe().achieved(lean, {})["patch_tokens"]
    _, state = lean.trace(images(lean), tap=frozenset({"*"}), trace=True)
    assert [state.taps[b.name].shape[1] for b in lean.blocks] == [256, 256, 64, 64, 16]
    assert not state.extra and state.size is None
    assert not lean.reduces_tokens and "full_grid" in lean.traits()
    for block, n in zip(lean.blocks, rest, strict=True):
        owner = state.taps[f"{block.name}.owner"]
        assert all(len(set(row)) == n and max(row) == n - 1 for row in owner.tolist())


def test_only_the_mlps_get_cheaper_and_by_exactly_the_merged_share() -> None:
    dense, lean = open_model(build_swin(V1)), merged(V1)
    whole, less = (count(model, model.input_size()).by_module for model in (dense, lean))
    for block, before, after in zip(dense.blocks, (16, 16, 16, 16, 16), (10, 8, 10, 8, 10), strict=True):
        at = block.name
        assert less[f"{at}.mlp"] * before == whole[f"{at}.mlp"] * after
        assert less[f"{at}.attn"] == whole[f"{at}.attn"]
    extra = less[""] - sum(n for key, n in less.items() if key.endswith((".attn", ".mlp")))
    plain = whole[""] - sum(n for key, n in whole.items() if key.endswith((".attn", ".mlp")))
    matching = sum(windows * 8 * 8 * b.attn.qk_dim for windows, b in zip((16, 16, 4, 4, 1), dense.blocks, strict=True))
    assert extra - plain == matching and less[""] < 0.8 * whole[""]


def by_hand(block: torch.nn.Module, x: Tensor, owner: Tensor) -> Tensor:
    """The second half of a pre-norm block, with an MLP that sees means: (B, N, C) after attention -> (B, N, C)."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        for token in owner[b].unique():
            inside = owner[b] == token
            mean = x[b, inside].mean(0)
            branch = block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(mean))))
            out[b, inside] = x[b, inside] + branch
    return out


@pytest.mark.parametrize("name", [V1, PADDED])
def test_each_token_adds_the_branch_of_the_mean_of_its_group(name: str) -> None:
    """Written out, for a plain, a shifted and a padded cut; padding is in no mean."""
    dense, lean = open_model(build_swin(name)), merged(name)
    x, state = lean.embed(images(lean), lean.start(images(lean), trace=True, tap=frozenset({"*"})))
    for i in (0, 1):
        middle, _ = dense.blocks[i].attended(x, state, frozenset())
        x, after = lean.run(x, state, i, i + 1)
        owner = after.taps[f"layers.0.blocks.{i}.owner"]
        assert len(owner[0].unique()) < owner.shape[1]
        torch.testing.assert_close(x, by_hand(dense.blocks[i], middle, owner), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [V1, V2])
def test_equal_tokens_merge_without_a_change(name: str) -> None:
    dense = build_swin(name)
    flat = torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(merged(name)(flat), dense(flat), rtol=1e-4, atol=1e-5)


def test_padded_grids_save_too() -> None:
    lean, dense = merged(PADDED), open_model(build_swin(PADDED))
    assert lengths_in_mlps(lean, images(lean)) == [15 * 9, 15 * 8, 45, 45, 2 * 6]
    assert count(lean, lean.input_size()).macs < count(dense, dense.input_size()).macs


def test_a_size_at_which_padding_eats_the_saving_runs_unmerged() -> None:
    dense = build_swin("swin_base_patch4_window7_224:any_size")
    lean = open_model(dense)
    ToMe(r=[3]).shape(lean, ToMe(r=[3]).learn(lean))
    odd = torch.randn(2, 1, 18, 18)  # a grid of 9x9 in 9 windows of 16
    assert torch.equal(lean(odd), dense(odd)) and lean.trace(odd)[1].tokens[0] == 81
    assert lean.trace(torch.randn(1, 1, 32, 32))[1].tokens[0] == 16 * 13


def test_owners_name_the_token_that_comes_back() -> None:
    windows = Windows((4, 4), (2, 2), (1, 1), images=2)
    x = torch.randn(2, 4 * 3, 5)
    indices = torch.randint(3, (8, 4), generator=torch.Generator().manual_seed(0))
    carried = Merged(torch.zeros(2, 16, 5), x, indices, windows)
    assert torch.equal(take_tokens(x, owners(carried)), restored(x, indices, windows))


def test_gradients_survive_checkpointing() -> None:
    lean = merged(V1, drop_path_rate=0.0).train()
    want = gradients(lean, images(lean))
    lean.set_grad_checkpointing()
    got = gradients(lean, images(lean))
    assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want) and len(want) > 60


@pytest.mark.e2e
def test_exports_with_a_dynamic_batch() -> None:
    lean = merged(V2)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(lean, (images(lean),), dynamic_shapes=({0: batch},))
    x = images(lean, batch=5)
    torch.testing.assert_close(program.module()(x), lean(x), rtol=1e-4, atol=1e-4)
    assert not operators(program) & {"item", "nonzero", "_local_scalar_dense", "index_add", "scatter_reduce"}


def test_the_structure_replays_on_load(tmp_path) -> None:
    lean = compress(build_swin(V1), [ToMe(r=[6, 8])], root=ROOT)
    save(lean, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(again(images(lean)), lean.eval()(images(lean)))
    assert again.trace(images(lean))[1].tokens == (160, 128, 64, 64, 16)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BadInput, match=r"r of layers\.0\.blocks\.0 is 13; accepted: 0 to 8, half of its window of 4x4"):
        merged(V1, ToMe())
    with pytest.raises(
        BadInput, match=r"r of layers\.2\.blocks\.0 is 1, .*5x3 is padded to 2 windows of 4x3; accepted"
    ):
        merged(PADDED, ToMe(r=[0, 0, 0, 0, 1]))
    with pytest.raises(
        BadInput, match=r"r of layers\.1\.blocks\.0 is 8, .*9x5 is padded to 6 windows of 4x4; accepted: 0$"
    ):
        merged(PADDED, ToMe(r=[0, 0, 8]))
    with pytest.raises(Refused, match=r"layers\.0\.blocks\.0 already reduces tokens by tome"):
        ToMe(r=[1]).shape(merged(V1), {"blocks": [{"block": 0, "r": 1}]})
    with pytest.raises(BadInput, match="block is 5; accepted: 0 to 4"):
        ToMe(r=[1]).shape(merged(V1), {"blocks": [{"block": 5, "r": 1}]})


def test_evit_is_refused_for_want_of_a_class_token() -> None:
    with pytest.raises(Refused, match="evit needs a class token"):
        compress(
            build_swin(V1),
            [EViT()],
            root=Root(V1, {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL_SWIN.items()}),
        )
    with pytest.raises(Refused, match="evit scores patches by the attention of a class token"):
        EViT().shape(open_model(build_swin(V1)), {"blocks": []})
