"""What the adapters do not understand is refused by name, before anything runs."""

from __future__ import annotations

import types

import pytest
import timm
import torch
from torch import nn

from leanvit.anatomy import Step, close_model, open_model
from leanvit.errors import Refused
from zoo import SMALL, build

FOREIGN = [
    ("eva02_tiny_patch14_224", {**SMALL, "depth": 1}, "Eva .*Supported: plain vision"),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 1}, "patch_embed is a HybridEmbed"),
    ("vit_small_patch16_18x2_224", SMALL, r"blocks\.0 is a ParallelThingsBlock"),
    ("vit_base_patch16_rpn_224", SMALL, r"blocks\.0 is a ResPostBlock"),
    ("vit_base_patch16_xp_224", SMALL, r"blocks\.0 is a ParallelScalingBlock"),
    ("vit_dwee_patch16_reg1_gap_256", SMALL, r"blocks\.0\.attn is a DiffAttention"),
    ("vit_base_patch16_siglip_224", SMALL, "attn_pool"),
    ("vitamin_small_224", {"depth": 1}, "patch_embed is a HybridEmbed"),
    ("vit_relpos_small_patch16_224", SMALL, "VisionTransformerRelPos"),
    ("resnet18", {}, "ResNet"),
]


@pytest.mark.parametrize(("name", "kwargs", "told"), FOREIGN, ids=[case[0] for case in FOREIGN])
def test_foreign_families_and_parts_are_named(name, kwargs, told):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(Refused, match=told):
        open_model(model)


def tiny() -> nn.Module:
    return build("vit_tiny_patch16_224", depth=2)


def test_an_unknown_child_of_the_model_is_named():
    model = tiny()
    model.adapter = nn.Linear(2, 2)
    with pytest.raises(Refused, match="adapter"):
        open_model(model)


@pytest.mark.parametrize(
    ("where", "name"), [("blocks.1", "lora"), ("blocks.1.attn", "rope"), ("blocks.1.mlp", "gate2")]
)
def test_an_unknown_child_of_a_block_is_named(where, name):
    model = tiny()
    model.get_submodule(where).add_module(name, nn.Linear(2, 2))
    with pytest.raises(Refused, match=f"{where}.*{name}"):
        open_model(model)


def test_an_unknown_parameter_is_named():
    model = tiny()
    model.prompt = nn.Parameter(torch.zeros(1, 2, 24))
    with pytest.raises(Refused, match="prompt"):
        open_model(model)


def test_a_subclass_with_another_forward_is_named():
    class Sparse(type(tiny().blocks[0].attn)):
        pass

    model = tiny()
    model.blocks[1].attn.__class__ = Sparse
    with pytest.raises(Refused, match=r"blocks\.1\.attn is a Sparse"):
        open_model(model)


@pytest.mark.parametrize("where", ["", "blocks.1", "blocks.0.attn.qkv"])
def test_a_patched_forward_is_named(where):
    model = tiny()
    module = model.get_submodule(where)
    module.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, module)
    with pytest.raises(Refused, match=f"{where or 'the model'} has a forward of its own"):
        open_model(model)


REGISTER = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("where", ["", "blocks.0.mlp"])
def test_hooks_are_named(where, register):
    model = tiny()
    getattr(model.get_submodule(where), register)(lambda *args: None)
    with pytest.raises(Refused, match=f"{where or 'the model'} carries .*hooks"):
        open_model(model)


def test_a_forward_that_differs_is_found_by_comparison():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    model = tiny()
    model.blocks[0].attn.fused_attn = False
    model.blocks[0].attn.attn_drop = Doubled()  # timm's explicit path calls it, whatever it is
    with pytest.raises(Refused, match="output differs from the original"):
        open_model(model)
    assert not model.training


def test_closing_refuses_what_timm_would_not_run():
    opened = open_model(tiny())
    step = Step()
    type(step).source = ""
    opened.blocks[0].between.append(step)
    with pytest.raises(Refused, match="Step"):
        close_model(opened)

    opened = open_model(tiny())
    opened.blocks[1].attn.terms = (lambda phases, state: phases,)
    with pytest.raises(Refused, match=r"blocks\.1\.attn holds score terms"):
        close_model(opened)

    opened = open_model(tiny())
    opened.blocks[1].mlp = nn.Linear(24, 24)
    with pytest.raises(Refused, match=r"blocks\.1\.mlp is a Linear"):
        close_model(opened)
