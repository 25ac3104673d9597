"""Columns that cannot become the fields that are asked for, and options that say more of them."""

from __future__ import annotations

from wrong import Case, Cli

from leanvit.data import Boxes, Masks, open_dataset


def _opened(name: str, spec: str, *says: str) -> Case:
    return Case(f"columns {name}", lambda: open_dataset(f"columns/{spec}", "train"), says)


def _read(name: str, options: str, *says: str) -> Case:
    """A table all of whose cells are wrong: the first is named when it is opened."""
    return _opened(name, f"{name}.csv?labels=none&{options}", rf"{name}\.csv line 2\): ", *says)


def _field(name: str, field: Masks | Boxes, *says: str) -> Case:
    call = lambda: open_dataset("photos/train").take([2]).with_field("it", field)[0]  # noqa: E731
    return Case(f"field {name}", call, ("image 'cat/2.png' has a field 'it' that is not accepted", *says))


CASES = [
    _opened("not there", "good.csv?mask=masks", r"good\.csv: mask='masks' is no column: did you mean 'mask'"),
    _opened("several", "good.csv?mask=mask,depth", "mask=mask,depth names several columns; accepted: one"),
    _opened("twice", "good.csv?label=text&caption=text", "column 'text' is used twice, for caption= and label="),
    _opened("two fields", "good.csv?mask=mask&depth=mask", "column 'mask' is used twice, for mask= and depth="),
    _opened("label as caption", "good.csv?caption=label", "no label column; .*labels=none opens the images without"),
    _opened("no field", "good.csv?ignore=9", "ignore= is about a field that is not there; add mask=COLUMN"),
    _opened("ignore", "good.csv?mask=mask&ignore=all", "ignore='all'; accepted: a whole number >= 0"),
    _opened("mask classes", "good.csv?mask=mask&mask_classes=a,a", "mask_classes=a,a names 'a' twice; accepted: each"),
    Case(
        "columns value",
        lambda: list(open_dataset("columns/good.csv?mask=mask&mask_classes=a")),
        (r"good\.csv line 3\): a mask with the value 1, which is no class; accepted: 0 to 0 \(a\), or 255",),
    ),
    _opened("boxes", "good.csv?objects=boxes&boxes=cxcywh", "unknown boxes of data .* 'cxcywh': .*Known: xywh, xyxy"),
    _opened("object classes", "good.csv?objects=boxes&object_classes=,", "object_classes is empty; accepted: names"),
    _opened("scale", "good.csv?depth=depth&depth_scale=-1", "depth_scale='-1'; accepted: a number above 0"),
    _opened("fractions", "fractions.csv?labels=none&objects=boxes", "reach to 0.6.* at most, as fractions", "pixels"),
    _read("lossy", "mask=mask", "a mask that is no picture of a lossless format; accepted: PNG, TIFF, BMP, PPM"),
    _read("small", "mask=mask", "a mask of 4x4 pixels; accepted: those of the image, 8x8"),
    _read("colour", "mask=mask", r"a mask of 3 channels \(mode RGB\); accepted: one channel"),
    _read("gone", "mask=mask", "there is no file columns/gone0.png"),
    _read("flat", "objects=boxes", r"box 0, \[1.0, 1.0, 4.0, 0.0\], is inverted or empty, 8x8; accepted: left"),
    _read("outside", "objects=boxes", r"box 0, \[1.0, 1.0, 4.0, 7.02\], is outside the image, 8x8", "boxes=xyxy: left"),
    _read("no-json", "objects=boxes", "'1 1 4 4' is no JSON"),
    _field("mask value", Masks([[[2] * 8] * 8], classes=("a", "b")), "a mask with the value 2, .* 0 to 1", "255 for"),
    _field(
        "box class", Boxes([{"boxes": [[0, 0, 1, 1]], "labels": [2]}], classes=("a",)), "a box of class 2; .*0 to 0"
    ),
    Case("form of boxes", lambda: Boxes([], form="cxcywh"), ("unknown form of boxes 'cxcywh'", "Known: xywh, xyxy")),
]
CLI = [
    Cli("data mask of a folder", ("data", "photos?mask=mask"), ("mask= is for data with columns; accepted: .csv and",)),
    Cli("data caption of digits", ("data", "digits?caption=text"), ("caption= is for data with columns; accepted:",)),
    Cli("data column not there", ("data", "columns/good.csv?depth=dept"), ("depth='dept' is no column: did you mean",)),
    Cli(
        "data without captions",
        ("data", "columns/gone.csv?labels=none&caption=text"),
        (r"image '0.png' has a field 'caption' .*\(column 'text', gone.csv line 2\): is missing; accepted: a text",),
    ),
    Cli(
        "train on data without objects",
        ("train", "colour", "--data", "columns/gone.csv?objects=boxes", "--out", "new"),
        ("has a field 'objects' that is not accepted", "is missing; accepted: an empty list where there is no object"),
    ),
]
