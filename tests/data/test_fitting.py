from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from timm.layers import to_2tuple

from leanvit.data import Preprocess, adapted_kwargs, check_fits, open_dataset
from leanvit.data.fitting import fitting_window, small_grid, strided_size
from leanvit.errors import BadInput

NAME = "vit_tiny_patch16_224"
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", "val", limit=10)


def test_every_mismatch_is_in_one_message(digits):
    model = timm.create_model(NAME, **SMALL)
    with pytest.raises(BadInput) as caught:
        check_fits(model, Preprocess.of(model), digits)
    text = str(caught.value)
    assert f"model {NAME} does not fit data 'digits'" in text and len(text.splitlines()) == 4
    assert "images of 8x8 would be enlarged 28x to 224x224: build the model with img_size=8, patch_size=1" in text
    assert "images have 1, the model's input 3: build the model with in_chans=1" in text
    assert "the model has 1000, the data 10: build the model with num_classes=10" in text


def test_what_preprocessing_bridges_can_be_accepted(digits):
    model = timm.create_model(NAME, **SMALL)
    with pytest.raises(BadInput) as caught:
        check_fits(model, Preprocess.of(model), digits, convert=True)
    assert "classes" in str(caught.value) and "resolution" not in str(caught.value)
    model = timm.create_model(NAME, **SMALL, num_classes=10)
    check_fits(model, Preprocess.of(model), digits, convert=True)


def test_preprocess_of_another_model(digits):
    model = timm.create_model(NAME, **SMALL, img_size=16, patch_size=4, in_chans=1, num_classes=10)
    check_fits(model, Preprocess.of(model), digits)
    with pytest.raises(BadInput) as caught:
        check_fits(model, Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3), digits, convert=True)
    assert "the model takes 16x16, preprocess gives 8x8: build the model with img_size=8" in str(caught.value)
    assert "the model takes 1, preprocess gives 3: build the model with in_chans=3" in str(caught.value)


def test_dynamic_image_size_takes_multiples_of_the_patch(digits):
    kwargs = {**SMALL, "img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 10, "dynamic_img_size": True}
    model = timm.create_model(NAME, **kwargs)
    check_fits(model, Preprocess((1, 8, 12), (0.5,), (0.5,)), digits)
    with pytest.raises(BadInput, match="resolution: the model takes 16x16, preprocess gives 9x8"):
        check_fits(model, Preprocess((1, 9, 8), (0.5,), (0.5,)), digits)


@pytest.mark.parametrize(
    "name", [NAME, "deit3_small_patch16_224", "eva02_tiny_patch14_224", "vit_base_patch32_clip_224"]
)
def test_adapted_models_fit_and_run(digits, name):
    kwargs = adapted_kwargs(name, {"depth": 1}, digits)
    assert kwargs == {"num_classes": 10, "in_chans": 1, "depth": 1, "img_size": 8, "patch_size": 1}
    model = timm.create_model(name, **kwargs).eval()
    check_fits(model, Preprocess.of(model), digits)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_tokens_a_fixed_stride_apart_take_images_up_to_twice_as_large(digits):
    kwargs = adapted_kwargs("t2t_vit_7", {"depth": 1, "embed_dim": 16, "token_dim": 8}, digits)
    assert (kwargs["img_size"], kwargs["in_chans"]) == (16, 1) and "patch_size" not in kwargs
    model = timm.create_model("t2t_vit_7", **kwargs).eval()
    check_fits(model, Preprocess.of(model), digits)
    assert Preprocess.of(model).input_size == (1, 16, 16) and model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert "img_size" not in adapted_kwargs("t2t_vit_7", {"pretrained": True}, digits)
    sizes = [strided_size(size, 16) for size in ((32, 32), (28, 20), (8, 8), (96, 100))]
    assert sizes == [(64, 64), (48, 32), (16, 16), (96, 112)]
    model = timm.create_model("t2t_vit_7", depth=1, num_classes=10, in_chans=1)
    with pytest.raises(BadInput, match=r"enlarged 28x to 224x224: build the model with img_size=16$"):
        check_fits(model, Preprocess.of(model), digits)


NARROW = {
    "dhvt_tiny_imagenet_patch16": {"embed_dim": 16, "num_heads": 2, "depth": 1},
    "litv2_small": {"embed_dim": 12, "num_heads": (1, 2, 3, 6), "depths": (1, 1, 1, 1)},
    "dualtoken_vit_small": {"dims": (8, 16, 32), "num_heads": (1, 2, 4), "depths": (1, 1, 1)},
    "dct_histo_tiny": {"dims": (8, 16, 32), "num_heads": (1, 2, 4), "depths": (1, 1, 1)},
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # of images of 8x8, 32x32, 28x20 and 90x100
        ("dhvt_tiny_imagenet_patch16", (((8, 8), 2), ((32, 32), 4), ((28, 20), 4), ((96, 112), None))),
        ("litv2_small", (((8, 8), 1), ((32, 32), 4), ((32, 32), 4), ((96, 128), None))),
        ("dualtoken_vit_small", (((32, 32), None), ((64, 64), None), ((32, 32), None), ((96, 128), None))),
        ("dct_histo_tiny", (((64, 64), None), ((64, 64), None), ((64, 64), None), ((96, 112), None))),
    ],
)
def test_leanvits_own_families_take_small_images(digits, name, sizes):
    for side, (size, patch) in zip(((8, 8), (32, 32), (28, 20), (90, 100)), sizes, strict=True):
        data = SimpleNamespace(classes=digits.classes, channels=1, image_size=side, spec="made")
        kwargs = adapted_kwargs(name, NARROW[name], data)
        assert to_2tuple(kwargs["img_size"]) == size and kwargs.get("patch_size") == patch
        model = timm.create_model(name, **kwargs).eval()
        check_fits(model, Preprocess.of(model), data, convert=True)
        assert model(torch.zeros(2, 1, *size)).shape == (2, 10)
    assert "img_size" not in adapted_kwargs(name, {"pretrained": True}, digits)
    assert adapted_kwargs(name, {"img_size": 128}, digits)["img_size"] == 128
    model = timm.create_model(name, **NARROW[name], img_size=224, num_classes=10, in_chans=1)
    (height, _), patch = sizes[0]
    mend = f"img_size={height}" + (f", patch_size={patch}" if patch else "")
    with pytest.raises(BadInput, match=rf"enlarged 28x to 224x224: build the model with {mend}$"):
        check_fits(model, Preprocess.of(model), digits)


def test_a_patch_that_is_given_decides_the_size(digits):
    assert adapted_kwargs("litv2_small", {"patch_size": 2}, digits)["img_size"] == 16
    assert adapted_kwargs("dhvt_tiny_imagenet_patch16", {"patch_size": 4}, digits)["img_size"] == 8


def test_cifar_gets_patches_of_four(real):
    cifar = open_dataset(real("cifar10"), "val", limit=10)
    assert adapted_kwargs(NAME, {}, cifar) == {"num_classes": 10, "in_chans": 3, "img_size": 32, "patch_size": 4}


def test_what_the_caller_gave_is_kept(digits):
    def resolution(**given):
        fitted = adapted_kwargs(NAME, given, digits)
        return fitted.get("img_size"), fitted.get("patch_size")

    assert resolution(img_size=32) == (32, 4)
    assert resolution(patch_size=3) == (9, 3)
    assert resolution(img_size=24, patch_size=8) == (24, 8)
    assert resolution(img_size=224) == (224, None)
    assert adapted_kwargs(NAME, {"num_classes": 3, "in_chans": 3}, digits)["num_classes"] == 3


def test_pretrained_weights_keep_their_resolution(digits):
    fitted = adapted_kwargs(NAME, {"pretrained": True}, digits)
    assert fitted == {"pretrained": True, "num_classes": 10, "in_chans": 1}


def test_large_images_and_other_families_keep_their_resolution(digits, real):
    photos = open_dataset(real("imagenet_sample"), "val", limit=10)
    assert adapted_kwargs(NAME, {}, photos) == {"num_classes": 1000, "in_chans": 3}
    assert adapted_kwargs("resnet18", {}, digits) == {"num_classes": 10, "in_chans": 1}


def test_middling_images_are_rounded_up_to_the_patch(tmp_path):
    from pictures import picture

    (tmp_path / "a").mkdir()
    for number in range(2):
        picture(number, (100, 90)).save(tmp_path / "a" / f"{number}.png")
    assert adapted_kwargs(NAME, {}, open_dataset(tmp_path))["img_size"] == (96, 112)
    assert "patch_size" not in adapted_kwargs(NAME, {}, open_dataset(tmp_path))


def test_unknown_models(digits):
    with pytest.raises(BadInput, match="unknown model 'vit_tiny_patch16_22': did you mean 'vit_tiny_patch16_224'"):
        adapted_kwargs("vit_tiny_patch16_22", {}, digits)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), ((32, 32), 4)),
        ((8, 8), ((8, 8), 1)),
        ((28, 28), ((28, 28), 4)),
        ((64, 64), ((64, 64), 8)),
        ((64, 32), ((64, 32), 4)),
        ((31, 31), ((32, 32), 4)),
        ((3, 3), ((3, 3), 1)),
    ],
)
def test_small_images_become_about_64_tokens(size, expected):
    (height, width), patch = small_grid(size)
    assert ((height, width), patch) == expected
    assert height % patch == width % patch == 0


SWIN = {"embed_dim": 12, "depths": (1, 1, 1), "num_heads": (1, 1, 1)}


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_base_window12to16_192to256"])
def test_adapted_swins_fit_and_run(digits, name):
    kwargs = adapted_kwargs(name, SWIN, digits)
    window = 4 if "window7" in name else 16  # of a grid of 8x8: the whole of it where the model's window reaches so far
    assert kwargs == {"num_classes": 10, "in_chans": 1, **SWIN, "img_size": 8, "patch_size": 1, "window_size": window}
    model = timm.create_model(name, **kwargs).eval()
    check_fits(model, Preprocess.of(model), digits)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert adapted_kwargs(name, {"window_size": 3}, digits)["window_size"] == 3
    assert "window_size" not in adapted_kwargs(name, {"pretrained": True}, digits)


def test_the_window_that_pads_least():
    assert fitting_window((56, 56), 7, 4) == 7 and fitting_window((8, 8), 7, 4) == 4
    assert fitting_window((24, 24), 7, 4) == 6 and fitting_window((24, 16), 8, 4) == 4
