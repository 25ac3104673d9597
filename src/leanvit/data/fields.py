"""Fields: what a sample has beside its image, class and key, by name: a mask, boxes, depth, captions, stored labels.

A field is a source of values and a kind. The source is anything with `source[row]`: a list, an array, an object of
your own that reads a file. The kind says how a value is checked, moved as its image is moved, and put into a batch:

    photos = photos.with_field("mask", Masks(masks))                        # masks[i] is that of sample i
    photos = photos.with_field("teacher", Values(logits, keys=their_keys))  # in another order: found by key

A kind of your own is a subclass of `Field`. Pixels are those of the image as it is read: upright, and made smaller
where it has more than 4096x4096 of them (`data.decode`). A value that cannot be read or is not accepted makes its
sample one that cannot be read, like a damaged image: `UnreadableImage` with the key, and `on_bad="skip"` leaves the
sample out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from leanvit.data.decode import UnreadableImage, with_channels
from leanvit.data.geometry import Geometry
from leanvit.errors import BadInput, unknown

if TYPE_CHECKING:
    from leanvit.data.augment import Augment
    from leanvit.data.preprocess import Preprocess

LABEL = "label"  # the name of the class label or label vector, which `target` and `targets` hold
RESERVED = ("image", "images", "key", "keys", "target", "targets", LABEL)
_LOSSLESS = ("PNG", "TIFF", "BMP", "PPM")  # Pillow's names of formats that a mask or a depth map is read from
_NPY = b"\x93NUMPY"  # how a .npy file begins
_LOOKS = 8  # rows that are looked at for the shape of a value
_MOVES = ("auto_augment", "erase")  # of `Augment`: what changes an image in ways that no field follows


BOX_FORMS = {  # how a box is written -> what is accepted; the second is COCO's
    "xyxy": "left, top, right, bottom with 0 <= left < right <= width and 0 <= top < bottom <= height",
    "xywh": "left, top, width, height of a box inside the image, with width > 0 and height > 0",
}


class Source(Protocol):
    """Values by row. Raise any exception for a row that cannot be read; travels to other processes by pickle.

    One that also has `located(row) -> str` says where the value of a row stands, for errors ("t.csv line 7").
    """

    def __getitem__(self, row: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Field:
    """Values by sample, as they are: a batch has the list of them. Subclasses check, move and stack them."""

    source: Source | None = None  # None: in a stream, the values come with its samples (`Encoded.fields`)
    keys: Sequence[str] | None = field(default=None, kw_only=True)  # of the rows; None: row i is that of sample i
    rows: np.ndarray | None = field(default=None, kw_only=True)  # (N,) row of each sample; `with_field` sets it
    parse: Callable[[Any], Any] | None = field(default=None, kw_only=True)  # a stored value -> what `checked` takes

    parted_by: ClassVar[tuple[str, ...]] = ()  # fields of `Augment` that would part a value from its image
    spatial: ClassVar[bool] = False  # whether a value is moved with the image

    def checked(self, value: Any, size: tuple[int, int]) -> Any:
        """The value in one form, for an image of `size` (H, W). Raises BadInput for one that is not accepted."""
        return value

    def moved(self, value: Any, geometry: Geometry, preprocess: Preprocess) -> Any:
        """The value of the transformed image."""
        return value

    def batched(self, values: list[Any], preprocess: Preprocess) -> Any:
        """The values of a batch: a tensor whose first axis is the batch, or a list."""
        return values

    def blank(self, preprocess: Preprocess) -> Any:
        """A moved value without meaning, in the form of the others: for a process that has no image of a batch."""
        return None

    def take(self, indices: np.ndarray) -> Self:
        """The field of the samples at `indices`."""
        return self if self.rows is None else replace(self, rows=self.rows[indices])

    def of_samples(self, name: str, keys: Sequence[str]) -> Self:
        """The field with the row of each sample. Raises BadInput for samples without a row, or rows without one."""
        if self.source is None:
            raise BadInput(f"field {name!r} has no source; accepted: values by row, as in Masks(masks)")
        if self.rows is not None:
            raise BadInput(f"field {name!r} belongs to a data set already; accepted: a new one")
        if self.keys is None:
            source: Any = self.source
            held = len(source) if hasattr(source, "__len__") else len(keys)
            if held != len(keys):
                raise BadInput(
                    f"field {name!r} has {held} values, the data set {len(keys)} samples; accepted: one for each, in "
                    "their order, or keys=, the sample that each value is of"
                )
            return replace(self, rows=np.arange(len(keys)))
        return replace(self, rows=np.array([self._row(name, key) for key in keys], dtype=np.int64))

    def read(self, name: str, key: str, size: tuple[int, int], *, index: int | None = None, given: Any = None) -> Any:
        """The checked value of the sample with this key: of row `index`, else by key, else what was `given`.

        Raises UnreadableImage.
        """
        row = None
        try:
            if self.source is not None:
                row = int(self.rows[index]) if self.rows is not None else self._row(name, key)
                given = self.source[row]
            elif given is None:
                raise BadInput("is missing")
            return self.checked(given if self.parse is None else self.parse(given), size)
        except BadInput as error:
            what = f"has a field {name!r} that is not accepted{self._located(row)}: {error}"
            raise UnreadableImage.of(key, what) from None
        except Exception as error:  # whatever a source raises
            what = f"has a field {name!r} that cannot be read{self._located(row)}: {_reason(error)}"
            raise UnreadableImage.of(key, what) from error

    def settings(self) -> str:
        """What identifies the kind, for a run that is resumed."""
        return type(self).__name__

    @cached_property
    def _row_of(self) -> dict[str, int]:
        found = {key: row for row, key in enumerate(self.keys or ())}
        if len(found) < len(self.keys or ()):
            twice = Counter(self.keys or ()).most_common(1)[0][0]
            raise BadInput(f"keys of a field: {twice!r} comes twice; accepted: one value for each sample")
        return found

    def _row(self, name: str, key: str) -> int:
        row = self._row_of.get(key)
        if row is None:
            raise BadInput(f"field {name!r} has no value for the sample {key!r} (it has {len(self._row_of)} keys)")
        return row

    def _located(self, row: int | None) -> str:
        located = getattr(self.source, "located", None)
        return "" if row is None or located is None else f" ({located(row)})"


@dataclass(frozen=True, eq=False)
class Masks(Field):
    """A whole number for each pixel: (H, W), or (T, H, W) of a clip; in a batch (B, ..., H, W) int64.

    A value is an array, a tensor, a picture with one channel of whole numbers (of a palette, its indices), or such a
    picture or NumPy array encoded: bytes or a file. Resizing takes the nearest pixel. `ignore` is what padding gets,
    and the value of pixels that count for nothing. `classes` names the values 0, 1, ...; then others are refused.
    """

    ignore: int = field(default=255, kw_only=True)
    classes: tuple[str, ...] = field(default=(), kw_only=True)

    parted_by: ClassVar[tuple[str, ...]] = _MOVES
    spatial: ClassVar[bool] = True

    def checked(self, value: Any, size: tuple[int, int]) -> np.ndarray:
        found = _plane(value, size, "mask", leading=True)
        if found.dtype.kind not in "uib":
            raise BadInput(f"a mask of {found.dtype}; accepted: whole numbers")
        found = found.astype(np.int64)
        if self.classes:
            other = found[((found < 0) | (found >= len(self.classes))) & (found != self.ignore)]
            if other.size:
                raise BadInput(
                    f"a mask with the value {other[0]}, which is no class; accepted: 0 to {len(self.classes) - 1} "
                    f"({', '.join(self.classes[:8])}{', …' if len(self.classes) > 8 else ''}), or {self.ignore} for "
                    "pixels that count for nothing"
                )
        return found

    def moved(self, value: np.ndarray, geometry: Geometry, preprocess: Preprocess) -> np.ndarray:
        return geometry.gathered(value, outside=self.ignore)

    def batched(self, values: list[np.ndarray], preprocess: Preprocess) -> torch.Tensor:
        return _stacked(values, "masks")

    def blank(self, preprocess: Preprocess) -> np.ndarray:
        return np.zeros(preprocess.input_size[1:], dtype=np.int64)

    def settings(self) -> str:
        named = f" classes={','.join(self.classes)}" if self.classes else ""
        return f"{type(self).__name__} ignore={self.ignore}{named}"


@dataclass(frozen=True, eq=False)
class Depths(Field):
    """A distance for each pixel, (H, W), in the unit of the source times `scale`; in a batch (B, H, W) float32.

    A value is an array, a tensor, or a picture of one channel or a NumPy array, encoded or not. Resizing takes the
    nearest pixel, so that no distance is made up between an object and what lies behind it. `missing` is what padding
    gets, and what a number that is not finite becomes.
    """

    missing: float = field(default=0.0, kw_only=True)
    scale: float = field(default=1.0, kw_only=True)  # 0.001: millimetres are stored, metres come out

    parted_by: ClassVar[tuple[str, ...]] = _MOVES
    spatial: ClassVar[bool] = True

    def checked(self, value: Any, size: tuple[int, int]) -> np.ndarray:
        found = _plane(value, size, "depth map")
        if found.dtype.kind not in "uif":
            raise BadInput(f"a depth map of {found.dtype}; accepted: numbers")
        depth = found.astype(np.float32)
        depth = depth if self.scale == 1 else depth * np.float32(self.scale)
        return depth if np.isfinite(depth).all() else np.where(np.isfinite(depth), depth, np.float32(self.missing))

    def moved(self, value: np.ndarray, geometry: Geometry, preprocess: Preprocess) -> np.ndarray:
        return geometry.gathered(value, outside=self.missing)

    def batched(self, values: list[np.ndarray], preprocess: Preprocess) -> torch.Tensor:
        return _stacked(values, "depth maps")

    def blank(self, preprocess: Preprocess) -> np.ndarray:
        return np.zeros(preprocess.input_size[1:], dtype=np.float32)

    def settings(self) -> str:
        scaled = f" scale={self.scale}" if self.scale != 1 else ""
        return f"{type(self).__name__} missing={self.missing}{scaled}"


@dataclass(frozen=True, eq=False)
class Boxes(Field):
    """Boxes around objects, in pixels of the image: in a batch a list of {"boxes": (n, 4) float32 xyxy, "labels": (n,)
    int64}, in pixels of the transformed image, as torchvision's detection models take them.

    A value is such a mapping of arrays or tensors, or boxes alone, whose labels are 0; n may be 0. `form` says how its
    boxes are written: "xyxy", or "xywh" (left, top, width, height). `classes` names the labels 0, 1, ...; then others
    are refused. Boxes are cut off at the borders; what is left of less than a pixel a side is removed with its label
    (`geometry.MIN_BOX`).
    """

    classes: tuple[str, ...] = field(default=(), kw_only=True)
    form: str = field(default="xyxy", kw_only=True)  # one of `BOX_FORMS`

    parted_by: ClassVar[tuple[str, ...]] = _MOVES
    spatial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.form not in BOX_FORMS:
            raise unknown("form of boxes", self.form, BOX_FORMS)

    def checked(self, value: Any, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        given = value if isinstance(value, Mapping) else {"boxes": value}
        stored = _array(given.get("boxes")).astype(np.float32).reshape(-1, 4)
        labels = _array(given.get("labels", np.zeros(len(stored)))).astype(np.int64)
        if labels.shape != (len(stored),):
            raise BadInput(f"{len(stored)} boxes with labels of shape {labels.shape}; accepted: one label for each box")
        if self.classes and (other := labels[(labels < 0) | (labels >= len(self.classes))]).size:
            raise BadInput(f"a box of class {other[0]}; accepted: 0 to {len(self.classes) - 1}, its classes")
        boxes = stored if self.form == "xyxy" else np.hstack([stored[:, :2], stored[:, :2] + stored[:, 2:]])
        self._check_inside(boxes, stored, size)
        return {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}

    def _check_inside(self, boxes: np.ndarray, stored: np.ndarray, size: tuple[int, int]) -> None:
        height, width = size
        left, top, right, bottom = boxes.T
        outside = (left < 0) | (top < 0) | (right > width) | (bottom > height) | ~np.isfinite(boxes).all(axis=1)
        inverted = ~((left < right) & (top < bottom))
        for what, wrong in (("is outside the image", outside), ("is inverted or empty", inverted)):
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                numbers = [round(float(n), 3) for n in stored[row]]
                raise BadInput(f"box {row}, {numbers}, {what}, {width}x{height}; accepted: {BOX_FORMS[self.form]}")

    def moved(
        self, value: dict[str, torch.Tensor], geometry: Geometry, preprocess: Preprocess
    ) -> dict[str, torch.Tensor]:
        boxes, kept = geometry.boxed(value["boxes"])
        return {"boxes": boxes, "labels": value["labels"][kept]}

    def blank(self, preprocess: Preprocess) -> dict[str, torch.Tensor]:
        return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}

    def settings(self) -> str:
        named = f" classes={','.join(self.classes)}" if self.classes else ""
        return f"{type(self).__name__}{named}{'' if self.form == 'xyxy' else f' form={self.form}'}"


@dataclass(frozen=True, eq=False)
class Values(Field):
    """A number or an array of one shape for each sample (stored labels, tokens, embeddings); in a batch (B, ...).

    Whole numbers become int64, others float32; tensors keep their type.
    """

    def checked(self, value: Any, size: tuple[int, int]) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu()
        found = _array(value)
        kinds = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
        if found.dtype.kind not in kinds:
            raise BadInput(f"a value of {found.dtype}; accepted: numbers")
        return torch.from_numpy(found.astype(kinds[found.dtype.kind]))

    def batched(self, values: list[torch.Tensor], preprocess: Preprocess) -> torch.Tensor:
        return _stacked(values, "values")

    def blank(self, preprocess: Preprocess) -> torch.Tensor:
        source, rows = self.source, self.rows
        for row in range(_LOOKS if rows is None else min(_LOOKS, len(rows))):
            try:
                if source is not None:
                    value = source[row if rows is None else int(rows[row])]
                    return torch.zeros_like(self.checked(value if self.parse is None else self.parse(value), (0, 0)))
            except Exception:  # named when its sample is met
                continue
        return torch.zeros(())


@dataclass(frozen=True, eq=False)
class Texts(Field):
    """Captions: one text or several for each sample; in a batch a list, for each sample the list of its texts."""

    def checked(self, value: Any, size: tuple[int, int]) -> list[str]:
        texts = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(text, str) for text in texts):
            raise BadInput(f"{value!r:.80}; accepted: a text, or a list of texts")
        return texts

    def blank(self, preprocess: Preprocess) -> list[str]:
        return [""]


@dataclass(frozen=True, eq=False)
class Clips(Field):
    """Frames of the image's own size: T pictures, or (T, H, W) or (T, H, W, C) uint8; in a batch (B, T, C, H, W)
    float32, moved, resized and normalised as the image.

    The clips of a batch have one length.
    """

    parted_by: ClassVar[tuple[str, ...]] = (*_MOVES, "color_jitter")
    spatial: ClassVar[bool] = True

    def checked(self, value: Any, size: tuple[int, int]) -> list[Image.Image]:
        frames = [one if isinstance(one, Image.Image) else Image.fromarray(_array(one)) for one in value]
        other = next((one for one in frames if (one.height, one.width) != size), None)
        if other is not None or not frames:
            what = "no frame" if other is None else f"a frame of {other.width}x{other.height} pixels"
            raise BadInput(f"{what}; accepted: frames of the size of the image, {size[1]}x{size[0]}")
        return frames

    def moved(self, value: list[Image.Image], geometry: Geometry, preprocess: Preprocess) -> np.ndarray:
        channels = preprocess.input_size[0]
        interpolation = Image.Resampling[preprocess.interpolation.upper()]
        frames = (with_channels(one, channels, preprocess.pixel_range) for one in value)
        pixels = np.stack([np.array(geometry.pictured(one, interpolation)) for one in frames])
        return pixels if pixels.ndim == 4 else pixels[..., None]

    def batched(self, values: list[np.ndarray], preprocess: Preprocess) -> torch.Tensor:
        return preprocess.normalize(_stacked(values, "clips"))

    def blank(self, preprocess: Preprocess) -> np.ndarray:
        channels, height, width = preprocess.input_size
        return np.zeros((1, height, width, channels), dtype=np.uint8)


def check_augment(augment: Augment | None, fields: Mapping[str, Field]) -> None:
    """Raise BadInput, by name, for augmentation that would change an image and leave one of its fields as it is."""
    for named, kind in fields.items():
        for name in kind.parted_by:
            if getattr(augment, name, None):
                raise BadInput(
                    f"Augment.{name}={getattr(augment, name)!r} changes an image, but not its {named}; accepted where "
                    f"data has {type(kind).__name__}: augment 'light', or others without {' and '.join(kind.parted_by)}"
                )


def check_mixing(fields: Mapping[str, Field]) -> None:
    """Raise BadInput, by name, for fields that mixup and cutmix would part from their images."""
    for name, kind in fields.items():
        if kind.spatial:
            raise BadInput(
                f"mixup and cutmix mix images and their labels, but not their {name} ({type(kind).__name__}): set both "
                "to 0"
            )


def _stacked(values: Iterable[Any], what: str) -> torch.Tensor:
    """(B, ...). Raises BadInput for values of several shapes."""
    tensors = [torch.as_tensor(value) for value in values]
    shapes = sorted({tuple(one.shape) for one in tensors})
    if len(shapes) > 1:
        raise BadInput(f"{what} of shapes {shapes[0]} and {shapes[1]} cannot be one batch; accepted: one shape")
    return torch.stack(tensors)


def _plane(value: Any, size: tuple[int, int], what: str, *, leading: bool = False) -> np.ndarray:
    """(H, W), with `leading` also (T, H, W). Raises BadInput for another size than the image's."""
    if isinstance(value, bytes | Path):
        value = _stored(value, what)
    if isinstance(value, Image.Image) and len(value.getbands()) > 1:
        raise BadInput(f"a {what} of {len(value.getbands())} channels (mode {value.mode}); accepted: one channel")
    found = _array(value)
    if found.ndim not in ((2, 3) if leading else (2,)) or found.shape[-2:] != size:
        shape = "x".join(map(str, found.shape[::-1])) or "no axis"
        raise BadInput(f"a {what} of {shape} pixels; accepted: those of the image, {size[1]}x{size[0]}")
    return found


def _stored(encoded: bytes | Path, what: str) -> Image.Image | np.ndarray:
    """The values as they are stored: those of a mask are no intensities, and no orientation is applied.

    Raises BadInput for what is neither a lossless picture nor a NumPy array.
    """
    content = encoded.read_bytes() if isinstance(encoded, Path) else encoded
    if content.startswith(_NPY):
        return np.load(BytesIO(content), allow_pickle=False)
    try:
        with Image.open(BytesIO(content), formats=_LOSSLESS) as image:
            image.load()
    except UnidentifiedImageError:
        raise BadInput(
            f"a {what} that is no picture of a lossless format; accepted: {', '.join(_LOSSLESS)}, or a .npy array (a "
            "JPEG changes the values)"
        ) from None
    return image


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
