"""Encoded bytes or files in, 8-bit PIL images out; whatever cannot be decoded is an error that names its key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError, features

from leanvit.data.depth import UPPER_BYTE, PixelRange, eight_bits, is_deep
from leanvit.errors import BadInput

# Endings by which images are found in a folder. The format of a file is recognised by its content, never by its ending.
EXTENSIONS = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp",
}  # fmt: skip
# Pillow's names of the formats that are opened (MPO is what cameras write as JPEG). Of the others some call programs
# (EPS: Ghostscript), some have no mark to be known by (TGA), and none is a format of photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
HEIF = "HEIF"  # opened too where pillow-heif is installed
CHANNELS = (1, 3, 4)  # that a sample image may have: the most that Pillow reads
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: half a gigabyte as RGB
WORKING_PIXELS = 2**24  # 4096 x 4096: larger images are halved until they are no larger ...
_SHORT_SIDE = 1024  # ... or until halving would leave less than this many pixels on the short side
_ORIENTATION = 0x0112  # EXIF tag
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


class UnreadableImage(BadInput):
    """An image that cannot be decoded or turned into 8 bits; `key` is its key. `on_bad="skip"` passes over these."""

    key: str

    @staticmethod
    def of(key: str, reason: str) -> UnreadableImage:
        """The error whose text starts with `image '<key>'`."""
        error = UnreadableImage(f"image {key!r} {reason}")
        error.key = key  # not an argument of the constructor: the error is pickled on its way out of a worker
        return error


class BadImage(NamedTuple):
    """An image that was left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Header:
    """What the first bytes of an encoded image show."""

    format: str  # Pillow's name: "JPEG", "PNG", ...
    mode: str  # Pillow's mode: "RGB", "L", "CMYK", "P", "I;16", ...
    size: tuple[int, int]  # (width, height) as stored
    frames: int
    rotated: bool  # an EXIF orientation other than upright


def decode(encoded: bytes | Path, *, key: str, max_pixels: int = MAX_PIXELS, plain_bands: bool = False) -> Image.Image:
    """Decode the first frame of one image completely, upright, in its own mode.

    EXIF orientation is applied. Images of more than `WORKING_PIXELS` come at a half, quarter or eighth of their size
    (JPEG already in its decoder), whatever the model's input, so that a result does not depend on who asks. What is no
    intensity cannot be averaged and comes in another mode then: palettes as "RGB" or "RGBA", 16-bit grey as "I".

    plain_bands: a fourth band is a channel as the others, no alpha that weighs them where an image is made smaller.

    Raises UnreadableImage, naming `key`, when it is missing, truncated, not an image of one of `FORMATS`, or has more
    than `max_pixels`.
    """
    try:
        with _opened(encoded, max_pixels) as image:
            kind, factor, deep_colour = image.format, _factor(image.size), _has_deep_colour(image)
            if factor > 1 and kind == "JPEG":
                width, height = image.size
                image.draft(None, (width // factor, height // factor))
            image.load()
        image = image if _factor(image.size) == 1 else _reduced(image, _factor(image.size), plain_bands)
        if deep_colour:
            image.info[UPPER_BYTE] = True
        if kind == "JPEG" and not {"exif", "xmp"} & image.info.keys():
            return image  # most images, quicker
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    except Exception as error:  # decoders raise every kind; whichever it is, the bytes are no readable image
        raise _unreadable(key, encoded, error) from error


def header(encoded: bytes | Path, *, key: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Format, mode, size, frames and orientation, without decoding the pixels. Raises UnreadableImage."""
    try:
        with _opened(encoded, max_pixels) as image:
            rotated = image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.format or "?", image.mode, image.size, getattr(image, "n_frames", 1), rotated)
    except Exception as error:
        raise _unreadable(key, encoded, error) from error


def header_is_deep(encoded: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an image's header says that it has more than 8 bits; False where it cannot be read."""
    try:
        with _opened(encoded, max_pixels) as image:
            return is_deep(image) or _has_deep_colour(image)
    except Exception:  # whoever decodes it says why
        return False


def is_grey(image: Image.Image) -> bool:
    """Whether the image's mode holds one channel of intensity."""
    return image.mode in _GREY_MODES


def with_channels(image: Image.Image, channels: int, pixel_range: PixelRange | None = None) -> Image.Image:
    """The image with 8 bits: grey ("L", `channels` = 1), "RGB" (3), or four plain bands ("RGBX", 4).

    With 1 and 3, alpha or a fourth band is dropped. With 4, the bands are taken as they are, without weighing any by
    another: red, green, blue and alpha, or those of a CMYK image. pixel_range: (low, high), the values of black and
    white of images with more than 8 bits.

    Raises BadInput for other numbers of channels, for 4 of an image that has not four, and for images of more than 8
    bits without a range, or with values outside of it.
    """
    if channels not in CHANNELS:
        raise BadInput(f"pictures of {channels} channels cannot be read; accepted: {', '.join(map(str, CHANNELS))}")
    if is_deep(image):
        image = eight_bits(image, pixel_range)
    if channels == 4:
        return _four_bands(image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else _convertible(image).convert(mode)


def _convertible(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow converts to grey and colour alike, and averages rightly."""
    mode = image.mode
    if mode in ("P", "PA"):
        return image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    if mode in ("LAB", "HSV"):
        return image.convert("RGB")
    other = {"La": "LA", "RGBa": "RGBA", "1": "L"}.get(mode)
    return image if other is None else image.convert(other)


def _four_bands(image: Image.Image) -> Image.Image:
    if image.mode == "RGBX":
        return image
    if image.mode in ("P", "PA", "RGBa"):
        image = _convertible(image)
    bands = image.split()
    if len(bands) != 4:
        raise BadInput(f"it has {len(bands)} channels (mode {image.mode!r}), and channels=4 is declared")
    return Image.merge("RGBX", bands)


def _reduced(image: Image.Image, factor: int, plain_bands: bool) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.convert("I").reduce(factor)
    if plain_bands and image.mode == "RGBA":
        image = _four_bands(image)
    return _convertible(image).reduce(factor)


def _has_deep_colour(image: Image.Image) -> bool:
    """Whether the file holds 16 bits a channel, and Pillow has no mode for them: it will give the upper byte."""
    if image.mode == "F" or image.mode.startswith("I"):
        return False
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", None) or ())


def _opened(encoded: bytes | Path, max_pixels: int) -> Image.Image:
    """The image with its header read. Raises ValueError beyond `max_pixels`."""
    limit = Image.MAX_IMAGE_PIXELS
    if max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # the user asked for more than Pillow allows
    try:
        image = _identified(encoded)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(f"{width}x{height} pixels are more than max_pixels={max_pixels}")
    return image


def _identified(encoded: bytes | Path) -> Image.Image:
    """The image of one of `FORMATS`, or of HEIF. Raises UnidentifiedImageError."""
    try:
        return Image.open(_source(encoded), formats=_formats())
    except UnidentifiedImageError:
        if _brand(encoded) not in _HEIF_BRANDS or not _can_open_heif():
            raise
        return Image.open(_source(encoded), formats=(HEIF,))


def _source(encoded: bytes | Path) -> Path | BytesIO:
    return encoded if isinstance(encoded, Path) else BytesIO(encoded)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _can_open_heif() -> bool:
    """Whether pillow-heif is installed; tells Pillow of it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _brand(encoded: bytes | Path) -> bytes:
    """The brand of a file of the HEIF family (HEIC, AVIF); empty for any other."""
    if isinstance(encoded, Path):
        with encoded.open("rb") as file:
            encoded = file.read(12)
    return encoded[8:12] if encoded[4:8] == b"ftyp" else b""


def _unreadable(key: str, encoded: bytes | Path, error: Exception) -> UnreadableImage:
    return UnreadableImage.of(key, f"cannot be decoded: {_reason(encoded, error)}")


def _reason(encoded: bytes | Path, error: Exception) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    brand = _brand(encoded)
    if brand in _HEIF_BRANDS and not _can_open_heif():
        return "it is a HEIC image, which needs pillow-heif: pip install 'leanvit[heic]'"
    if brand in _AVIF_BRANDS and not features.check("avif"):
        return "it is an AVIF image, which this Pillow cannot read: pip install 'pillow>=11.3'"
    return f"not an image of an accepted format ({', '.join(_formats())}), or damaged at its start"


def _factor(size: tuple[int, int]) -> int:
    """1, 2, 4 or 8: by how much an image of that size is reduced."""
    width, height = size
    factor = 1
    while factor < 8 and width * height > WORKING_PIXELS * factor**2 and min(size) >= 2 * factor * _SHORT_SIDE:
        factor *= 2
    return factor
