"""Which tensors of a model are sparse: named by a method's shape, and known wherever the model goes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import Gated, Gates, digits
from test_composites import headed

from leanvit import Int8, NViT, ToMe
from leanvit.anatomy import open_model
from leanvit.anatomy.sparse import sparse_parameters, sparse_tensors
from leanvit.data import Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Data, Recovery, Root, compatibility, compose, compress, create, load, rebuilt, save
from leanvit.recipe.compat import TRAITS
from zeroing import NAMES, Zeros, zeros_of


def test_a_model_has_no_sparse_tensors_until_a_method_names_them(tiny) -> None:
    model = compress(tiny(), [])
    assert model.sparse == () and "whole_weights" in model.traits()
    lean = compress(model, [Zeros()])
    assert lean.sparse == tuple(sorted(NAMES)) and "whole_weights" not in lean.traits()
    assert all(zeros.float().mean() == 0.5 for zeros in zeros_of(lean).values())
    assert model.sparse == (), "compress works on a copy"


def test_names_that_are_no_parameters_are_refused(tiny) -> None:
    model = open_model(tiny())
    model.sparse = ("head.weight",)
    with pytest.raises(BadInput, match=r"unknown parameter in sparse 'head\.wait': did you mean 'head\.weight'"):
        model.sparse = ("head.bias", "head.wait")
    with pytest.raises(BadInput, match=r"sparse is 'head\.bias'; accepted: a tuple"):
        model.sparse = "head.bias"
    assert model.sparse == ("head.weight",)
    model.sparse = ()
    assert model.sparse == () and "whole_weights" in model.traits()


def test_sparse_tensors_survive_a_copy_a_load_and_another_size(tiny, tmp_path: Path) -> None:
    lean = compress(tiny(), [Zeros(names=(*NAMES, "cls_token")), ToMe(r=2)])
    save(lean, tmp_path)
    larger = rebuilt(lean, {"img_size": 48})
    for other in (copy.deepcopy(lean), load(tmp_path), larger, rebuilt(lean, {"num_classes": 3})):
        assert other.sparse == lean.sparse == tuple(sorted((*NAMES, "cls_token")))
        assert all(torch.equal(zeros, zeros_of(other)[name]) for name, zeros in zeros_of(lean).items())


def test_zeros_that_resizing_would_fill_are_refused(tiny) -> None:
    lean = compress(tiny(), [Zeros(names=("patch_embed.proj.weight",))])
    with pytest.raises(Refused, match=r"patch_embed\.proj\.weight holds pruned weights, which resizing would fill"):
        rebuilt(lean, {"patch_size": 4})


def test_a_module_that_is_wrapped_for_a_while_stays_sparse(tiny) -> None:
    model = compress(tiny(), [Zeros()])
    block = model.blocks[1]
    block.mlp = Gated(block.mlp, block.mlp.fc1.in_features)
    assert model.sparse == ("blocks.0.attn.qkv.weight", "blocks.1.mlp.mlp.fc1.weight")
    model.load_state_dict(model.state_dict(), assign=True)
    assert [*sparse_parameters(copy.deepcopy(model))] == [*model.sparse]


def test_temporary_modules_of_a_recovery_keep_zeros(tmp_path: Path) -> None:
    """The steps are saved while an MLP with a sparse weight lies in a gate; `finish` multiplies that weight."""
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1}
    dense = create(Root("vit_tiny_patch16_224", {**small, "num_classes": 10}))
    data = Data(digits(), Preprocess.of(dense))
    lean = compress(dense, [Zeros()], data)
    methods, recovery = [Gates(epochs=1)], Recovery(epochs=1, batch_size=10, lr=1e-2)
    gated = compress(lean, methods, data, recovery=recovery, out=tmp_path / "run")
    assert gated.sparse == lean.sparse
    for name, zeros in zeros_of(lean).items():
        assert torch.equal(zeros, zeros_of(gated)[name]) and not torch.equal(
            gated.get_parameter(name), lean.get_parameter(name)
        )


def test_a_tensor_that_is_shared_has_one_name(tiny) -> None:
    model: Any = open_model(tiny())
    model.blocks[3].mlp.fc1.weight = model.blocks[1].mlp.fc1.weight
    model.sparse = NAMES
    assert model.sparse == tuple(sorted(NAMES))
    assert [*sparse_tensors(model)] == sorted((*NAMES, "blocks.3.mlp.fc1.weight"))


def test_zeros_stay_zeros_in_int8(tiny, noise, tmp_path: Path) -> None:
    lean = compress(tiny(), [Zeros()])
    rounded = compress(lean, [Int8(images=8)], noise)
    values = [f"ops.sites.{name.removesuffix('.weight').replace('.', '/')}.weight.values" for name in sorted(NAMES)]
    assert rounded.sparse == () and [*sparse_tensors(rounded)] == values
    assert "whole_weights" not in rounded.traits() and "float" not in rounded.traits()
    for name, key in zip(sorted(NAMES), values, strict=True):
        assert (rounded.state_dict()[key][zeros_of(lean)[name]] == 0).all()
    save(rounded, tmp_path)
    assert [*sparse_tensors(load(tmp_path))] == values
    rounded.sparse = ("head.bias",)
    assert [*sparse_tensors(rounded)] == ["head.bias", *values], "those of integers stay"


def test_a_model_of_parts_has_those_of_its_parts(tmp_path: Path) -> None:
    lean = compress(headed(), [Zeros(names=NAMES[:1])])
    lean = compress(lean, [Zeros(names=("fc1.weight",))], part="head")
    names = ("backbone.blocks.0.attn.qkv.weight", "head.fc1.weight")
    assert lean.sparse == names and lean.head.sparse == ("fc1.weight",)  # type: ignore[attr-defined]
    save(lean, tmp_path)
    again = compose(lean.wiring, lean.parts)  # type: ignore[attr-defined]
    for other in (load(tmp_path), copy.deepcopy(lean), again, rebuilt(lean, {"backbone.img_size": 12})):
        assert other.sparse == names
        assert all(torch.equal(zeros, zeros_of(other)[name]) for name, zeros in zeros_of(lean).items())


def test_what_needs_whole_weights_is_refused_behind_zeros(tiny, noise) -> None:
    data: Any = noise
    for methods in ([Zeros(), NViT(macs=0.5)], [Zeros(), Zeros()]):
        with pytest.raises(Refused, match=r"needs weights not pruned to zeros, which test_zeros takes"):
            compress(tiny(), methods, data)
    with pytest.raises(Refused, match="nvit needs weights not pruned to zeros, which this model"):
        compress(compress(tiny(), [Zeros()]), [NViT(macs=0.5)], data)
    assert TRAITS["whole_weights"]
    cells = {(cell.first, cell.second): cell.verdict for cell in compatibility(["nvit", "test_zeros", "int8", "evit"])}
    assert (cells["nvit", "test_zeros"], cells["test_zeros", "nvit"]) == ("yes", "no")
    assert cells["test_zeros", "int8"] == cells["test_zeros", "evit"] == cells["evit", "test_zeros"] == "yes"
    assert cells["int8", "test_zeros"] == "no"


def test_a_sparse_set_that_no_plan_names_is_not_saved(tiny, tmp_path: Path) -> None:
    lean = compress(tiny(), [Zeros()])
    lean.sparse = (*lean.sparse, "head.weight")
    with pytest.raises(Refused, match=r"head\.weight is sparse here, but not by its plans"):
        save(lean, tmp_path)
    lean.sparse = NAMES[:1]
    with pytest.raises(Refused, match=r"blocks\.1\.mlp\.fc1\.weight is sparse by its plans, but not here"):
        save(lean, tmp_path)
    assert not [*tmp_path.iterdir()]
