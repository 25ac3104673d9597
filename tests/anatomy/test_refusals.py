"""What the adapters do not understand is refused by name, before anything runs."""

from __future__ import annotations

import importlib
import inspect
import types

import pytest
import timm
import torch
from torch import nn

from leanvit.anatomy import Step, close_model, open_model
from leanvit.anatomy.adapters.hybrid import CLASSES as HYBRIDS
from leanvit.anatomy.adapters.refusals import REASONS
from leanvit.errors import Refused
from zoo import SMALL, build

FOREIGN = [
    ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 1}, "patch_embed is a HybridEmbed"),
    ("vitamin_small_224", {"depth": 1}, "patch_embed is a HybridEmbed"),
    ("vit_base_patch16_224", {**SMALL, "global_pool": "prr", "depth": 1}, "attn_pool is a AttentionPoolPrr"),
    ("deit_tiny_distilled_patch16_224", {**SMALL, "reg_tokens": 2, "depth": 1}, "distilled model with reg_tokens"),
    ("resnet18", {}, "ResNet .*it has no attention of a vision transformer"),
    ("samvit_base_patch16", {**SMALL, "depth": 1, "global_attn_indexes": ()}, "VisionTransformerSAM .*segmentation"),
    ("xcit_nano_12_p16_224", {"depth": 1, "cls_attn_layers": 1}, "Xcit .*over channels.*Supported: plain vision"),
]


@pytest.mark.parametrize(("name", "kwargs", "reason"), FOREIGN, ids=[case[0] for case in FOREIGN])
def test_foreign_families_and_parts_are_named(name, kwargs, reason):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(Refused, match=reason):
        open_model(model)


def test_every_class_of_timm_with_attention_has_its_reason():
    """Each model class of timm whose file speaks of attention is opened, or has a reason of its own."""
    opened = {"VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "VisionTransformerRelPos"}
    opened |= {"SwinTransformer", "SwinTransformerV2"}.union(*HYBRIDS.values())
    classes = set()
    for name in timm.list_modules():
        module = importlib.import_module(timm.model_entrypoint(timm.list_models(module=name)[0]).__module__)
        source = inspect.getsource(module) if module.__name__.startswith("timm.") else ""  # others register there too
        if "softmax" not in source and "Attention" not in source:
            continue
        classes |= {
            key for key, cls in vars(module).items()
            if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
            and hasattr(cls, "forward_features")
        }  # fmt: skip
    convolutional = {"GhostNet", "NormFreeNet", "ResNet"}  # "attention" is there of channels
    assert not classes - opened - convolutional - set(REASONS)
    assert len(classes & set(REASONS)) > 20


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
