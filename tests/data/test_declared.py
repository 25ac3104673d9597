from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from leanvit.data import Preprocess, UnreadableImage, check_fits, loader, open_dataset
from leanvit.data.depth import parse_range, range_text
from leanvit.errors import BadInput
from pictures import picture, png
from shards import write_shard

GREY = np.random.default_rng(0).integers(0, 256, (12, 10)).astype(np.uint16)
GREY[0, :2] = 0, 255


def write(root, splits, make, ending="png"):
    """`root/<split>/<class>/<number>`, each image `make(number)`."""
    number = 0
    for split, each in splits.items():
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for _ in range(each):
                image = make(number)
                (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
                    folder / f"{number}.{ending}"
                )
                number += 1
    return root


def values(dataset, index=0):
    return np.asarray(dataset[index].image)


# --- range ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "kind", "ending", "text"),
    [
        (1, np.uint16, "png", "0-255 (8 bits)"),
        (4, np.uint16, "png", "0-1023 (10 bits)"),
        (16, np.uint16, "png", "0-4095 (12 bits)"),
        (64, np.uint16, "tif", "0-16383 (14 bits)"),
        (257, np.uint16, "png", "0-65535 (16 bits)"),
        (257, np.int32, "tif", "0-65535 (16 bits)"),
        (1 / 255, np.float32, "tif", "0-1 taken"),
        (1, np.float32, "tif", "0-255 taken"),
    ],
)
def test_the_depth_of_pictures_is_found_and_said(tmp_path, scale, kind, ending, text):
    """F4: what has 8, 12 or 16 bits looks the same, in both splits, in either order of opening."""
    write(tmp_path / "d", {"train": 3, "val": 2}, lambda n: (GREY * scale).astype(kind), ending)
    for split in ("val", "train"):
        dataset = open_dataset(tmp_path / "d", split)
        assert text in dataset.note and "looked at; ?range=LOW-HIGH for another" in dataset.note
        assert dataset.channels == 1 and np.abs(values(dataset).astype(int) - GREY).max() <= 1
        assert values(dataset).max() >= 254


def test_every_split_has_the_range_of_the_training_split(tmp_path):
    root = write(tmp_path / "d", {"train": 2, "val": 2}, lambda n: GREY * (16 if n < 4 else 1))
    val = open_dataset(root, "val")
    assert val.pixel_range == open_dataset(root, "train").pixel_range == (0, 4095)
    assert values(val).max() == round(255 * 255 / 4095), "its own values would have made it 8 bits"
    assert open_dataset(f"{root}?range=0-1000", "val").pixel_range == (0, 1000)
    assert "look like 0-255, but are read as 0-4095" in val.note
    assert "look like" not in open_dataset(root, "train").note + open_dataset(f"{root}?range=0-4095", "val").note


def test_a_value_outside_of_the_range_is_an_error_that_names_image_and_option(tmp_path):
    root = write(tmp_path / "d", {"train": 1, "val": 1}, lambda n: GREY * (1 if n < 2 else 16))
    with pytest.raises(UnreadableImage, match=r"image 'a/2\.png' is not accepted: its values, 0 to 4080, are outside"):
        open_dataset(root, "val")[0]
    stated = open_dataset(f"{root}?range=-100-4080", "val")
    assert (values(stated).min(), values(stated).max()) == (round(100 * 255 / 4180), 255)
    skipped = open_dataset(f"{root}?on_bad=skip&range=0-300", "val")
    with pytest.raises(BadInput, match="none of its 2 images can be read"):
        skipped.readable()
    assert [bad.key for bad in skipped.bad] == ["a/2.png", "b/3.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: GREY.astype(np.int32) * 1000, "values 0 to 255000 in the 2 looked at"),
        (lambda n: GREY.astype(np.int32) - 5, "values -5 to 250"),
        (lambda n: (GREY * 3.5).astype(np.float32), "float pictures .* values 0 to 892.5"),
        (lambda n: np.full((4, 4), np.nan, np.float32), "values nan to nan"),
        (lambda n: GREY.astype((np.float32, np.int32)[n % 2]), r"pictures \(mode F, I\)"),
    ],
)
def test_where_the_values_leave_it_open_it_is_asked_for(tmp_path, make, message):
    root = write(tmp_path / "d", {"train": 1, "val": 1}, make, "tif")
    with pytest.raises(BadInput, match=message + r".* not known; accepted: \?range=LOW-HIGH"):
        open_dataset(root, "train")


def test_a_deep_picture_among_others_is_named_where_it_was_not_looked_at(tmp_path):
    root = write(tmp_path / "d", {"train": 20}, lambda n: GREY if n == 1 else picture(n, mode="L"))
    dataset = open_dataset(root)
    assert dataset.pixel_range is None and "range" not in dataset.note
    with pytest.raises(UnreadableImage, match=r"image 'a/1\.png' is not accepted: an integer image .*\?range=0-4095"):
        dataset[dataset.keys.index("a/1.png")]
    assert "range=0-255 is not used: the images looked at have 8 bits" in open_dataset(f"{root}?range=0-255").note


def deep_png(pixels):
    """16-bit RGB, which Pillow does not write: its upper byte is what it reads."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_read_by_its_upper_byte_or_refused(tmp_path):
    colour = np.stack([GREY, GREY, GREY], axis=-1)
    for bits, scale in ((16, 257), (12, 16)):
        for label in ("a", "b"):
            folder = tmp_path / str(bits) / "train" / label
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(deep_png(colour * scale))
    dataset = open_dataset(tmp_path / "16")
    assert dataset.pixel_range == (0, 65535) and np.array_equal(values(dataset), colour)
    Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3).eval_transform()(dataset[0].image)
    with pytest.raises(BadInput, match=r"16-bit pictures \(mode RGB\).*upper byte: convert it to 8 bits"):
        open_dataset(tmp_path / "12")
    with pytest.raises(UnreadableImage, match="right for range=0-65535 only, not for range=0-4095"):
        open_dataset(f"{tmp_path / '12'}?range=0-4095")[0]


def test_streams_and_tables_go_the_same_way(tmp_path):
    pytest.importorskip("webdataset")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = png(Image.fromarray(GREY * 16))
    members = {
        f"{n}.{end}": held for n in range(4) for end, held in (("png", encoded), ("cls", b"01"[n % 2 : n % 2 + 1]))
    }
    write_shard(tmp_path / "s.tar", members)
    table = pa.table({"image": [{"bytes": encoded, "path": f"{n}.png"} for n in range(4)], "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    for spec in (f"wds:{tmp_path}/s.tar", str(tmp_path / "t.parquet")):
        dataset = open_dataset(spec)
        assert dataset.pixel_range == (0, 4095) and "12 bits" in dataset.note
        assert np.abs(np.asarray(next(iter(dataset)).image).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(("text", "found"), [("0-4095", (0, 4095)), ("-1024-3071", (-1024, 3071)), ("0-1.5", (0, 1.5))])
def test_ranges_are_read_and_written(text, found):
    assert parse_range(text, where="data") == found and range_text(found) == text


@pytest.mark.parametrize("text", ["", "12", "5-1", "0-nan", "a-b", "0-1e999", "0..5", "0-4095-3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(BadInput, match="accepted: LOW-HIGH"):
        parse_range(text, where="data")


def test_a_run_keeps_the_range_that_it_was_trained_with(tmp_path):
    """A folder of val alone, whose own values are darker, is not scored with another range without a word."""
    import timm

    root = write(tmp_path / "d", {"val": 2}, lambda n: GREY)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=2, in_chans=1)
    trained = replace(Preprocess.of(model), pixel_range=(0, 4095))
    assert Preprocess.from_json(trained.to_json()) == trained
    assert "pixel_range" not in replace(trained, pixel_range=None).to_json()
    assert trained.fingerprint() == replace(trained, pixel_range=None).fingerprint()
    with pytest.raises(BadInput, match=r"values 0-4095, .* taken as 0-255: give the data \?range=0-4095"):
        check_fits(model, trained, open_dataset(root, "val"))
    check_fits(model, trained, open_dataset(f"{root}?range=0-4095", "val"))
    check_fits(model, trained, open_dataset(f"{root}?range=0-300", "val"))
    assert trained.u8_transform()(Image.fromarray(GREY * 16)).max() > 200


# --- channels ---------------------------------------------------------------------------------------------------------


def bands(number, size=(20, 24)):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 4), dtype=np.uint8), "RGBA")


def test_declared_channels_are_read_as_they_are(tmp_path):
    root = write(tmp_path / "d", {"train": 2}, bands)
    assert open_dataset(root).channels == 3
    four = open_dataset(f"{root}?channels=4")
    assert four.channels == 4 and "20x24x4" in repr(four)
    for dataset in (four, four.cached()):
        assert dataset[1].image.mode == "RGBX" and np.array_equal(values(dataset, 1), np.asarray(bands(1)))
    assert values(open_dataset(f"{root}?channels=1")).ndim == 2
    preprocess = Preprocess((4, 16, 16), (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    batch = next(iter(loader(four, preprocess, batch_size=4, train=True, augment="light")))
    assert batch.images.shape == (4, 4, 16, 16)
    pixels = preprocess.u8_transform()(four[0].image)
    for band in range(4):
        alone = Preprocess((1, 16, 16), (0.5,), (0.5,)).u8_transform()(Image.fromarray(values(four)[..., band].copy()))
        assert np.array_equal(pixels[..., band], alone[..., 0]), "no band weighs another"


@pytest.mark.parametrize("text", ["2", "5", "0", "four"])
def test_other_numbers_of_channels_are_refused(tmp_path, text):
    root = write(tmp_path / "d", {"train": 1}, bands)
    with pytest.raises(BadInput, match=rf"channels='?{text}'?; accepted"):
        open_dataset(f"{root}?channels={text}")


def test_pictures_with_fewer_bands_are_named(tmp_path):
    root = write(tmp_path / "d", {"train": 1}, picture)
    with pytest.raises(UnreadableImage, match=r"image 'a/0\.png' is not accepted: it has 3 channels"):
        open_dataset(f"{root}?channels=4")[0]


def test_model_and_data_of_other_channels_do_not_fit(tmp_path):
    import timm

    root = write(tmp_path / "d", {"train": 1}, bands)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=2, in_chans=4)
    preprocess = Preprocess.of(model)
    for convert in (False, True):  # a fourth channel cannot be made up
        with pytest.raises(BadInput, match=r"images have 3, .*in_chans=3, or read 4 of the images: .*\?channels=4"):
            check_fits(model, preprocess, open_dataset(root), convert=convert)
    check_fits(model, preprocess, open_dataset(f"{root}?channels=4"))


@pytest.mark.parametrize("augment", ["randaug"])
def test_augmentation_of_colours_is_refused_by_name(augment):
    preprocess = Preprocess((4, 16, 16), (0.5,) * 4, (0.5,) * 4)
    with pytest.raises(BadInput, match=r"Augment.auto_augment='rand-m9.*1 or 3 channels, these have 4"):
        preprocess.u8_transform(augment)
    with pytest.raises(BadInput, match="the model takes 6 channels; accepted: 1, 3, 4"):
        Preprocess((6, 16, 16), (0.5,) * 6, (0.5,) * 6).eval_transform()
