from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from leanvit.data import Preprocess, UnreadableImage
from leanvit.data import decode as decoding
from leanvit.data.decode import decode, header, with_channels
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


# --- every mode, format and size ------------------------------------------------------------------------------------

EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
RED, GREY = (200, 30, 60), 120


def flat(mode, size):
    """An image of one colour in a mode; deep ones hold the middle of 0 to 4095."""
    if mode in DEEP:
        values = np.full(size[::-1], 2048, np.float32 if mode == "F" else np.int32 if mode == "I" else np.uint16)
        if mode not in ("I;16L", "I;16B", "I;16N"):
            return Image.fromarray(values)
        return Image.frombytes(mode, size, values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(Image.new("RGB", size, RED), to_lab)
    if mode in ("1", "L", "LA", "La"):
        grey = Image.new("L", size, 255 if mode == "1" else GREY)
        return grey.convert("LA").convert("La") if mode == "La" else grey.convert(mode)
    if mode in ("P", "PA"):
        return Image.new("RGB", size, RED).quantize(8).convert(mode)
    red = Image.new("RGB", size, RED)
    return red.convert("RGBA").convert(mode) if mode == "RGBa" else red.convert(mode)


def expected(mode, channels):
    if mode in DEEP:
        return [round(2048 * 255 / 4095)] * channels
    colour = (255,) * 3 if mode == "1" else (GREY,) * 3 if mode in ("L", "LA", "La") else RED
    return list(colour) if channels == 3 else [Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))]


@pytest.mark.parametrize("mode", [*EIGHT_BITS, *DEEP])
def test_every_mode_at_every_size(mode, monkeypatch):
    """Small and halved, grey and colour; in the formats that take the mode, and as it may come out of a decoder."""
    monkeypatch.setattr(decoding, "WORKING_PIXELS", 32 * 32)
    monkeypatch.setattr(decoding, "_SHORT_SIDE", 8)
    for size in ((24, 20), (96, 64)):
        made = flat(mode, size)
        factor = decoding._factor(size)
        images = [made if factor == 1 else decoding._reduced(made, factor, False)]
        more = ("WEBP", "GIF", "BMP", "PPM", "AVIF", "JPEG2000")  # these clip deep values when they are written
        for kind in ("PNG", "TIFF", *(more if mode in EIGHT_BITS else ())):
            try:
                encoded = stored(made, kind, **({"lossless": True} if kind == "WEBP" else {}))
            except (OSError, ValueError, KeyError):
                continue  # the format does not take the mode
            images.append(decode(encoded, key="k"))
        for image in images:
            assert max(image.size) == (24 if size == (24, 20) else 48 if factor == 2 else 24)
            for channels in (1, 3):
                sample = with_channels(image, channels, (0, 4095))
                assert sample.mode == {1: "L", 3: "RGB"}[channels] and sample.size == image.size
                pixels = np.asarray(sample).reshape(-1, channels).astype(int)
                assert np.abs(pixels - expected(mode, channels)).max() <= 4, (mode, image.mode, image.format)


def test_a_palette_is_never_averaged(monkeypatch):
    """Black and white that lie far apart in the palette: indices in between are other colours."""
    monkeypatch.setattr(decoding, "WORKING_PIXELS", 8 * 8)
    monkeypatch.setattr(decoding, "_SHORT_SIDE", 4)
    image = Image.fromarray(np.tile(np.array([[0, 2]], np.uint8), (32, 16)), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 255, 255])
    assert np.unique(np.asarray(with_channels(decode(png(image), key="k"), 3)).reshape(-1, 3), axis=0).tolist() in (
        [[127] * 3],
        [[128] * 3],
    )


def test_four_bands_are_kept_as_they_are(monkeypatch):
    bands = np.random.default_rng(3).integers(0, 256, (64, 48, 4), dtype=np.uint8)
    for mode in ("RGBA", "CMYK"):
        encoded = stored(Image.fromarray(bands, mode), "TIFF")
        assert np.array_equal(np.asarray(with_channels(decode(encoded, key="k"), 4)), bands), "not weighed by alpha"
        monkeypatch.setattr(decoding, "WORKING_PIXELS", 32 * 32)
        monkeypatch.setattr(decoding, "_SHORT_SIDE", 8)
        half = np.asarray(with_channels(decode(encoded, key="k", plain_bands=True), 4))
        for band in range(4):
            assert np.array_equal(half[..., band], Image.fromarray(bands[..., band].copy()).reduce(2))
        monkeypatch.undo()
    sample = with_channels(Image.fromarray(bands, "CMYK"), 4)
    assert np.array_equal(sample.convert("RGB"), bands[..., :3])
    with pytest.raises(BadInput, match=r"it has 3 channels \(mode 'RGB'\), and channels=4 is declared"):
        with_channels(picture(1), 4)
    with pytest.raises(BadInput, match="pictures of 5 channels cannot be read; accepted: 1, 3, 4"):
        with_channels(picture(1), 5)


# --- formats ----------------------------------------------------------------------------------------------------------


def test_only_accepted_formats_are_opened_whatever_the_ending(tmp_path, monkeypatch):
    """An EPS named .jpg starts Ghostscript in Pillow; here its plugin is never asked."""
    asked = []
    Image.init()
    for name, (_, accept) in list(Image.OPEN.items()):
        if name not in (*decoding.FORMATS, decoding.HEIF):
            monkeypatch.setitem(Image.OPEN, name, (lambda *a, n=name: asked.append(n), accept))
    eps = tmp_path / "a.jpg"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    others = [stored(picture(1), kind) for kind in ("TGA", "PCX", "ICO", "SGI", "DDS", "IM")]
    for encoded in (eps, eps.read_bytes(), *others, b"text", b""):
        with pytest.raises(
            UnreadableImage, match=r"image 'k' cannot be decoded: .*accepted format \(JPEG, .*JPEG2000"
        ) as caught:
            decode(encoded, key="k")
        assert "BytesIO" not in str(caught.value) and "0x" not in str(caught.value)
        with pytest.raises(UnreadableImage, match="accepted format"):
            header(encoded, key="k")
    assert not asked


@pytest.mark.extra("pillow_heif", of="heic")
def test_heic_is_read_where_its_package_is():
    import pillow_heif

    stream = BytesIO()
    pillow_heif.from_pillow(halves((64, 48))).save(stream, quality=90)
    image = decode(stream.getvalue(), key="k")
    assert image.size == (64, 48) and corners(image) == ["red", "blue", "red", "blue"]
    assert header(stream.getvalue(), key="k").format == "HEIF"
    with pytest.raises(UnreadableImage, match="64x48 pixels are more than max_pixels=99"):
        decode(stream.getvalue(), key="k", max_pixels=99)


@pytest.mark.parametrize(
    ("brand", "message"),
    [("heic", r"needs pillow-heif: pip install 'leanvit\[heic\]'"), ("avif", r"pip install 'pillow>=11\.3'")],
)
def test_what_is_missing_is_named(brand, message, monkeypatch):
    monkeypatch.setattr(decoding, "_can_open_heif", lambda: False)
    monkeypatch.setattr(decoding.features, "check", lambda name: False)
    with pytest.raises(UnreadableImage, match=message):
        decode(b"\0\0\0\x18ftyp" + brand.encode() + bytes(40), key="k")


# --- damaged ----------------------------------------------------------------------------------------------------------

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
WHOLE = {kind: stored(picture(7, (40, 30)), kind) for kind in KINDS}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    cut=st.floats(0.0, 1.0),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 7)), max_size=6),
    start=st.booleans(),
    tail=st.binary(max_size=24),
)
def test_damaged_bytes_are_an_image_or_an_error_that_names_the_key(kind, cut, flips, start, tail):
    """Cut short, bits flipped (half of the time in the header), followed by anything: one of the two, and bounded."""
    encoded = bytearray(WHOLE[kind])
    for place, bit in flips:
        encoded[int(place * (min(64, len(encoded)) if start else len(encoded)))] ^= 1 << bit
    encoded = bytes(encoded[: max(1, int(cut * len(encoded)))] if cut < 0.9 else encoded) + tail
    try:
        image = decode(encoded, key="k", max_pixels=10_000)
        sample = with_channels(image, 3, (0, 65535))
    except UnreadableImage as error:
        assert error.key == "k" and str(error).startswith("image 'k' cannot be decoded: ")
        assert "BytesIO" not in str(error)
    except BadInput as error:  # 32-bit values after damage of the header
        assert "range" in str(error)
    else:
        assert sample.mode == "RGB" and image.width * image.height <= 10_000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(noise=st.binary(max_size=200), kind=st.sampled_from(KINDS), length=st.integers(0, 16))
def test_noise_behind_a_right_start_is_no_image(noise, kind, length):
    try:
        decode(WHOLE[kind][:length] + noise, key="k", max_pixels=10_000)
    except UnreadableImage as error:
        assert error.key == "k"
