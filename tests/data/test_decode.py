from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from leanvit.data import Preprocess, UnreadableImage
from leanvit.data import decode as decoding
from leanvit.data.decode import decode, header, is_grey, with_channels
from leanvit.errors import BadInput
from pictures import picture, png


def test_decodes_bytes_and_files_alike(tmp_path):
    image = picture(1)
    image.save(tmp_path / "a.png")
    from_bytes, from_file = decode(png(image), key="k"), decode(tmp_path / "a.png", key="k")
    assert np.array_equal(from_bytes, image) and np.array_equal(from_file, image)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff\xd8junk" * 9])
def test_what_cannot_be_decoded_names_its_key(damage):
    with pytest.raises(BadInput, match=r"image 'cat/7\.png' cannot be decoded"):
        decode(damage(png(picture(1))), key="cat/7.png")


def test_missing_file_names_its_key(tmp_path):
    with pytest.raises(BadInput, match=r"image 'gone' cannot be decoded: .*No such file"):
        decode(tmp_path / "gone.png", key="gone")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(mode, channels):
    image = picture(2).convert("L").convert(mode) if mode == "LA" else picture(2, mode=mode)
    assert with_channels(image, channels).mode == {1: "L", 3: "RGB"}[channels]


def test_sixteen_bit_grey_keeps_its_upper_byte():
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    assert is_grey(image)
    assert np.asarray(with_channels(image, 1)).tolist() == [[0, 0, 1, 255]]
    assert np.asarray(with_channels(image, 3))[0, :, 2].tolist() == [0, 0, 1, 255]


def test_float_images_are_refused():
    with pytest.raises(BadInput, match="no known range"):
        with_channels(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), 3)


def stored(image, kind, **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def corners(image):
    """Red left half, blue right half?"""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return ["red" if pixels[y, x, 0] > pixels[y, x, 2] else "blue" for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2))]


def halves(size=(32, 16)):
    image = Image.new("RGB", size, (200, 0, 0))
    image.paste((0, 0, 200), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize(("tag", "expected"), [(1, "rbrb"), (3, "brbr"), (6, "rrbb"), (8, "bbrr")])
def test_exif_orientation_is_applied(tag, expected):
    exif = Image.Exif()
    exif[0x0112] = tag
    encoded = stored(halves(), "JPEG", exif=exif, quality=95)
    image = decode(encoded, key="k")
    assert "".join(name[0] for name in corners(image)) == expected
    assert image.size == ((16, 32) if tag in (6, 8) else (32, 16))
    assert header(encoded, key="k").rotated == (tag != 1) and header(encoded, key="k").size == (32, 16)


def test_animated_images_give_their_first_frame():
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    for kind in ("GIF", "WEBP", "PNG"):
        encoded = stored(first, kind, save_all=True, append_images=[second])
        red, _, blue = np.asarray(with_channels(decode(encoded, key="k"), 3)).reshape(-1, 3).mean(axis=0)
        assert red > 200 > 50 > blue and header(encoded, key="k").frames == 2


def test_one_pixel_passes_through_every_transform():
    image = with_channels(decode(png(Image.new("RGBA", (1, 1), (10, 20, 30, 0))), key="k"), 3)
    preprocess = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    for augment in (None, "light", "randaug"):
        assert preprocess.u8_transform(augment)(image).shape == (16, 16, 3)


def test_cmyk_keeps_its_colours():
    image = with_channels(decode(stored(halves().convert("CMYK"), "JPEG", quality=95), key="k"), 3)
    assert corners(image) == ["red", "blue", "red", "blue"]


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(BadInput, match="values 0 to 70000 has no known range"):
        with_channels(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), 3)


def test_large_images_come_smaller(monkeypatch):
    monkeypatch.setattr(decoding, "WORKING_PIXELS", 64 * 64)
    monkeypatch.setattr(decoding, "_SHORT_SIDE", 16)
    for kind in ("JPEG", "PNG"):
        big = decode(stored(halves((256, 256)), kind), key="k")
        assert big.size == (64, 64) and corners(big) == ["red", "blue", "red", "blue"]
        assert decode(stored(halves((64, 64)), kind), key="k").size == (64, 64)
        assert decode(stored(halves((2000, 20)), kind), key="k").size == (2000, 20), "its short side is short already"


def test_bombs_are_refused_before_they_are_decoded():
    encoded = png(Image.new("1", (1000, 1000)))
    with pytest.raises(UnreadableImage, match="1000x1000 pixels are more than max_pixels=999999"):
        decode(encoded, key="k", max_pixels=999_999)
    bomb = png(Image.new("1", (20_000, 10_000)))
    with pytest.raises(UnreadableImage, match="image 'k' cannot be decoded"):
        decode(bomb, key="k")
    assert header(bomb, key="k", max_pixels=10**9).size == (20_000, 10_000)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_the_error_keeps_its_key_between_processes():
    with pytest.raises(UnreadableImage) as caught:
        decode(b"", key="cat/1.png")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.key, str(again)) == ("cat/1.png", str(caught.value))
