from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from leanvit.errors import BadInput, Refused
from leanvit.recipe import Root, compress, create, root_of
from leanvit.recipe.history import _Valueless
from zoo import build_swin


def test_timm_record_is_the_root(tiny) -> None:
    root = root_of(tiny(img_size=(16, 32)))
    assert root.name == "vit_tiny_patch16_224"
    assert root.kwargs["img_size"] == [16, 32] and root.kwargs["depth"] == 4 and root.kwargs["num_classes"] == 7


def test_a_changed_classifier_is_in_the_root(tiny) -> None:
    model = tiny()
    model.reset_classifier(3)
    assert root_of(model).kwargs["num_classes"] == 3


def test_a_root_that_timm_forgot_must_be_given(tiny) -> None:
    model = tiny()
    del model._model_args
    with pytest.raises(Refused, match=r"does not rebuild this model: .*cls_token"):
        root_of(model)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    assert compress(model, [], root=Root("vit_tiny_patch16_224", given)).history.root.kwargs["depth"] == 4


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_heads": 4}, "blocks.0.attn"),  # same shapes
        ({"global_pool": "avg", "fc_norm": False}, "global_pool"),
        ({"act_layer": "relu"}, "act"),
        ({"drop_rate": 0.5}, "head_drop"),
    ],
)
def test_a_wrong_root_is_found_though_the_shapes_agree(tiny, wrong: dict, named: str) -> None:
    model = tiny(**wrong)
    with pytest.raises(Refused, match=named):
        root_of(model, kwargs={k: v for k, v in model._model_args.items() if k not in wrong} | {"num_heads": 3})


def test_code_is_no_constructor_argument() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, norm_layer=nn.LayerNorm)
    with pytest.raises(BadInput, match="norm_layer"):
        root_of(model)
    for kwargs in ({"pretrained": True}, {"checkpoint_path": "x"}, {"features_only": True}):
        with pytest.raises(BadInput, match=next(iter(kwargs))):
            Root("vit_tiny_patch16_224", kwargs)


def test_what_timm_cannot_build_is_said_in_its_words() -> None:
    with pytest.raises(BadInput, match="timm cannot build vit_tiny_patch16_224 with depht=3"):
        create(Root("vit_tiny_patch16_224", {"depht": 3}))


def test_compress_leaves_the_given_model_alone(tiny) -> None:
    from leanvit.tokens.evit import EViT

    model, image = tiny(), torch.randn(1, 3, 32, 32)
    before = model(image)
    lean = compress(model, [EViT(keep_rate=0.5, blocks=(1,))])
    assert torch.equal(model(image), before) and not torch.equal(lean(image), before)


def test_a_swin_that_was_resized_is_proven_by_its_windows_per_stage() -> None:
    model = build_swin("swinv2_tiny_window8_256")
    model.set_input_size((48, 40))
    root = root_of(model)
    assert root.kwargs["window_size"] == [[6, 5]] * 3 and tuple(root.kwargs["img_size"]) == (48, 40)
    assert [block.attn.window for block in create(root).blocks] == [(6, 5)] * 5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xxs"])
def test_without_values_it_is_the_same_model(name: str) -> None:
    on_meta, built = create(Root(name, {"num_classes": 3}), device="meta"), create(Root(name, {"num_classes": 3}))
    assert on_meta.make() == built.make()
    assert {k: (t.shape, t.dtype) for k, t in on_meta.state_dict().items()} == {
        k: (t.shape, t.dtype) for k, t in built.state_dict().items()
    }
    assert all(t.is_meta for t in on_meta.parameters()) and not any(t.is_meta for t in built.parameters())


def test_only_values_of_the_meta_device_are_left_out() -> None:
    with _Valueless():
        assert torch.equal(torch.zeros(2).add_(1).clamp_(max=0.5), torch.full((2,), 0.5))
        hollow = torch.empty(2, 3, device="meta")
        assert hollow.normal_().clamp_(min=0) is hollow
        with pytest.raises(RuntimeError):
            hollow.add_(torch.empty(4, device="meta"))
