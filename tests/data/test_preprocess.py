from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from leanvit.data import Augment, Preprocess, UnreadableImage, keyed, loader, open_dataset
from leanvit.errors import BadInput
from pictures import picture

SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}
PLAIN = Preprocess((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def vit(**kwargs):
    return timm.create_model("vit_tiny_patch16_224", **SMALL, **kwargs)


def test_of_is_timms_configuration():
    model = vit()
    config = resolve_model_data_config(model)
    assert Preprocess.of(model).to_json() == {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def test_the_instance_wins_over_its_configuration():
    assert Preprocess.of(vit(img_size=96)).input_size == (3, 96, 96)
    assert Preprocess.of(vit(img_size=(64, 32))).input_size == (3, 64, 32)
    grey = Preprocess.of(vit(img_size=32, patch_size=4, in_chans=1))
    assert (grey.input_size, grey.mean, grey.std, grey.crop_pct) == ((1, 32, 32), (0.5,), (0.5,), 1.0)
    assert Preprocess.of(vit(img_size=96)).crop_pct == 0.9  # as configured: not a small input


def test_mean_of_another_number_of_channels_is_the_average():
    grey = Preprocess.of(timm.create_model("deit_tiny_patch16_224", **SMALL, in_chans=1))
    assert grey.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


def test_of_an_opened_model():
    anatomy = pytest.importorskip("leanvit.anatomy")
    kwargs = {"img_size": 48, "in_chans": 1}
    assert Preprocess.of(anatomy.open_model(vit(**kwargs))) == Preprocess.of(vit(**kwargs))


def test_of_a_convolutional_net():
    assert Preprocess.of(timm.create_model("resnet10t", in_chans=1)).input_size == (1, 176, 176)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(40, 40), (48, 32), (32, 32)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("shape", [(57, 44), (32, 32), (20, 31)])
def test_eval_transform_is_timms_and_u8_is_its_pixels(mode, size, crop_pct, shape):
    preprocess = Preprocess((3, *size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", crop_pct, mode)
    image = picture(4, shape)
    out = preprocess.eval_transform()(image)
    config = preprocess.to_json() | {"input_size": preprocess.input_size}
    assert torch.equal(out, create_transform(**config)(image))
    pixels = preprocess.u8_transform()(image)
    assert pixels.shape == (*size, 3) and pixels.dtype == np.uint8
    assert torch.equal(preprocess.normalize(pixels), out)
    assert torch.equal(preprocess.normalize(np.stack([pixels, pixels]))[1], out)


def test_u8_on_real_photographs(real):
    preprocess = Preprocess.of(vit())
    whole, pixels = preprocess.eval_transform(), preprocess.u8_transform()
    for sample in open_dataset(real("imagenet_sample"), "val", limit=8):
        assert torch.equal(preprocess.normalize(pixels(sample.image)), whole(sample.image))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_channels_follow_the_model(mode):
    for channels in (1, 3):
        preprocess = Preprocess((channels, 16, 16), (0.5,) * channels, (0.5,) * channels)
        assert preprocess.eval_transform()(picture(1, mode=mode)).shape == (channels, 16, 16)
        assert preprocess.u8_transform()(picture(1, mode=mode)).shape == (16, 16, channels)


def test_no_augmentation_is_the_eval_transform():
    image = picture(2)
    assert torch.equal(PLAIN.train_transform(None)(image), PLAIN.eval_transform()(image))


@pytest.mark.parametrize(
    "augment", ["light", "randaug", Augment(crop="resized"), Augment(crop="none", color_jitter=0.4)]
)
def test_augmentation_is_a_function_of_the_seed(augment):
    transform, image = PLAIN.train_transform(augment), picture(2, (32, 32))
    torch.manual_seed(0)

    def drawn(*parts):
        with keyed.global_rng(*parts):
            return transform(image)

    assert drawn(1).shape == (3, 32, 32)
    assert torch.equal(drawn(1), drawn(1))
    assert len({drawn(i).numpy().tobytes() for i in range(8)}) > 3


def test_large_inputs_are_cropped_resized_and_small_ones_padded():
    small, large = (Preprocess((3, s, s), (0.5,) * 3, (0.5,) * 3) for s in (64, 65))
    assert "ShiftFlip" in repr(small.u8_transform("light").transforms)
    assert "RandomResizedCrop" in repr(large.u8_transform("light").transforms)


def test_json_round_trip_and_fingerprint():
    text = json.dumps(PLAIN.to_json())
    again = Preprocess.from_json(json.loads(text))
    assert again == PLAIN and again.fingerprint() == PLAIN.fingerprint() and len(PLAIN.fingerprint()) == 16
    other = Preprocess.from_json(PLAIN.to_json() | {"crop_pct": 0.9})
    assert other.fingerprint() != PLAIN.fingerprint()
    assert (
        Preprocess((3, 32, 32), (0, 0, 0), (1, 1, 1)).fingerprint()
        == Preprocess((3, 32, 32), (0.0,) * 3, (1.0,) * 3).fingerprint()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_pc": 1}, "unknown field 'crop_pc': did you mean 'crop_pct'"),
        ({"input_size": [3, 32]}, r"input_size is \[3, 32\]; accepted: \(channels, height, width\)"),
        ({"input_size": [65, 32, 32]}, "1 to 64 channels"),
        ({"input_size": [4, 32, 32]}, r"mean is \(0.4, 0.5, 0.6\); accepted: 4 values"),
        ({"std": [0.5, float("inf"), 0.5]}, "std is .*accepted: a list, each a number above 0"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean is .*accepted: a list, each a number"),
        ({"crop_pct": 0.001}, "images would be resized to 32000x32000 pixels"),
        ({"pixel_range": [4095, 0]}, r"pixel_range is \[4095, 0\]; accepted: \(low, high\)"),
        ({"pixel_range": [0]}, r"accepted: \(low, high\) with low < high"),
        ({"input_size": [3, 32.5, 32]}, r"input_size is \[3, 32.5, 32\]; accepted: \(channels, height, width\)"),
        ({"mean": [0.5]}, r"mean is \(0.5,\); accepted: 3 values"),
        ({"mean": "0.5"}, "mean is '0.5'; accepted: a list, each a number"),
        ({"std": [0.5, 0, 0.5]}, "accepted: a list, each a number above 0"),
        ({"crop_pct": 0}, "crop_pct is 0; accepted: a number above 0"),
        ({"crop_mode": "centre"}, r"Preprocess\.crop_mode is 'centre'; .*did you mean 'center'"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
    ],
)
def test_from_json_is_strict(change, message):
    with pytest.raises(BadInput, match=message):
        Preprocess.from_json(PLAIN.to_json() | change)


def test_from_json_names_what_is_missing():
    data = PLAIN.to_json()
    del data["std"]
    with pytest.raises(BadInput, match="missing field\\(s\\) std"):
        Preprocess.from_json(data)
    with pytest.raises(BadInput, match="preprocess is a list"):
        Preprocess.from_json([])


def test_transforms_travel_to_worker_processes():
    image = picture(1)
    for transform in (PLAIN.eval_transform(), PLAIN.u8_transform(), PLAIN.train_transform("randaug")):
        with keyed.global_rng(1):
            here = transform(image)
        with keyed.global_rng(1):
            there = pickle.loads(pickle.dumps(transform))(image)
        assert np.array_equal(here, there)


@pytest.mark.parametrize(("mode", "refused"), [("center", True), ("squash", False), ("border", True)])
@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_the_size_after_resizing_is_bounded(mode, refused, size):
    """177 bytes of PNG that would be 22,400,000 x 224 pixels: refused before anything is resized."""
    strip = Image.new("RGB", size)
    preprocess = Preprocess((3, 224, 224), (0.5,) * 3, (0.5,) * 3, crop_mode=mode)
    for transform in (preprocess.eval_transform(), *map(preprocess.u8_transform, (None, "light", Augment(crop="pad")))):
        if refused:
            with pytest.raises(BadInput, match=f"it has {size[0]}x{size[1]} pixels"):
                transform(strip)
        else:
            assert np.prod(transform(strip).shape) == 3 * 224 * 224


def test_a_strip_is_named_by_the_loader_and_skipped_where_asked(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        picture(1, size=(40, 40)).save(tmp_path / label / "good.png")
    Image.new("RGB", (100_000, 1)).save(tmp_path / "a" / "strip.png")
    assert (tmp_path / "a" / "strip.png").stat().st_size < 1000
    preprocess = Preprocess((3, 224, 224), (0.5,) * 3, (0.5,) * 3)
    for augment in (None, "light", "randaug"):
        with pytest.raises(UnreadableImage, match=r"image 'a/strip\.png' is not accepted: it has 100000x1 pixels"):
            list(loader(open_dataset(tmp_path), preprocess, batch_size=3, train=augment is not None, augment=augment))
        dataset = open_dataset(f"{tmp_path}?on_bad=skip")
        (batch,) = loader(dataset, preprocess, batch_size=3, train=augment is not None, augment=augment)
        assert sorted(batch.keys) == ["a/good.png", "b/good.png"] and [bad.key for bad in batch.bad] == ["a/strip.png"]


def test_own_settings_are_checked():
    own = PLAIN.with_settings({"mean": [0.1, 0.2, 0.3], "std": None, "interpolation": "lanczos", "crop_pct": 0.5})
    assert (own.mean, own.std, own.interpolation, own.crop_pct) == ((0.1, 0.2, 0.3), PLAIN.std, "lanczos", 0.5)
    assert PLAIN.with_settings(None) == PLAIN
    with pytest.raises(BadInput, match=r"mean is \(0.5,\); accepted: 3 values, one a channel"):
        PLAIN.with_settings({"mean": [0.5]})
    with pytest.raises(BadInput, match="unknown preprocessing 'crop'"):
        PLAIN.with_settings({"crop": 1})
