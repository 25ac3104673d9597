from __future__ import annotations

import numpy as np
import pytest
from pictures import picture, png
from PIL import Image

from leanvit.data.decode import decode, is_grey, with_channels
from leanvit.errors import BadInput


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
