"""`look`: what it says of healthy and of unhealthy data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from leanvit.errors import BadInput
from leanvit.verbs.looking import look
from pictures import picture, write_folder
from shards import write_shards


@pytest.fixture
def sick(tmp_path) -> Path:
    """Two splits with everything that can be wrong: bad, rotated, animated, doubled, leaking images; an empty class;
    a class without a training image, a constant image, a file of another kind."""
    root = tmp_path / "pets"
    write_folder(root / "train", {"cat": 6, "puppy": 3})
    write_folder(root / "val", {"cat": 2, "puppy": 2}, seed=50)
    (root / "train" / "empty").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("")
    write_folder(root / "val", {"grey": 1})
    (root / "train" / "grey").mkdir()
    Image.new("RGB", (24, 20), (7, 8, 9)).save(root / "train" / "puppy" / "constant.png")
    cats = root / "train" / "cat"
    (cats / "000.png").write_bytes((cats / "000.png").read_bytes()[:50])
    (cats / "002.png").write_bytes((cats / "001.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(9, (40, 20)).save(cats / "turned.jpg", exif=exif)
    picture(8).save(cats / "moving.gif", save_all=True, append_images=[picture(7)])
    (root / "val" / "puppy" / "000.png").write_bytes((root / "train" / "puppy" / "001.png").read_bytes())
    return root


def text_of(found) -> str:
    console = Console(width=160, record=True)
    console.begin_capture()
    console.print(*found.shown(), sep="\n")
    return console.end_capture()


def test_what_is_wrong_is_found(sick):
    found = look(str(sick), every=True)
    train, val = found.splits
    assert (found.form, found.classes) == ("image folder", ("cat", "grey", "puppy"))
    assert (train.images, val.images) == (12, 5) and train.per_class == {"cat": 8, "grey": 0, "puppy": 4}
    assert train.left_out == {"with the ending .txt": 1, "empty folders (train/empty, train/grey)": 2}
    assert (train.constant, val.constant, train.without, val.without) == (1, 0, ("grey",), ())
    assert [bad.key for bad in train.bad] == ["cat/000.png"] and "cannot be decoded" in train.bad[0].reason
    assert (train.rotated, train.animated) == (1, 1)
    assert train.duplicates == (("cat/001.png", "cat/002.png"),) and train.imbalance == 2
    assert train.formats == {"PNG": 9, "JPEG": 1, "GIF": 1} and train.widths[2] == 40
    assert found.leak is not None and found.leak.pairs == (("puppy/001.png", "puppy/000.png"),)
    payload = json.loads(json.dumps(found.to_json()))
    assert payload["splits"][0]["bad"][0]["key"] == "cat/000.png" and payload["splits"][0]["imbalance"] == 2
    assert payload["splits"][0]["classes_without_images"] == ["grey"] and payload["splits"][0]["constant"] == 1
    assert payload["splits"][0]["left_out"] == train.left_out and "'grey'" in payload["splits"][0]["note"]
    text = text_of(found)
    for part in (
        "1 images cannot be read",
        "upright by their EXIF",
        "1 images are in train and in val",
        "cat/001.png = cat/002.png",
        "train: no training image of class 'grey'",
        "train: left out: 1 with the ending .txt, 2 empty folders (train/empty, train/grey)",
        "train: 1 images are constant: all pixels are equal (of all)",
        "█",
    ):
        assert part in text, part


def test_a_class_without_an_image_of_val(tmp_path):
    for split, counts in (("train", {"a": 2, "b": 2}), ("val", {"a": 2})):
        write_folder(tmp_path / split, counts)
    assert "val: 1 classes without an image (b)" in text_of(look(str(tmp_path)))
    shutil.rmtree(tmp_path / "train")
    found = look(str(write_folder(tmp_path, {"test/a": 1})))
    assert [split.split for split in found.splits] == ["val"] and found.leak is None


def test_a_single_image_a_class_and_a_single_class(tmp_path):
    assert "at most one image a class" in text_of(look(str(write_folder(tmp_path / "few", {"a": 1, "b": 1}))))
    assert "one class only, 'a'" in text_of(look(str(write_folder(tmp_path / "one", {"a": 2}))))


def test_a_sample_is_read_and_said(sick):
    found = look(str(sick), sample=4)
    assert [split.read for split in found.splits] == [4, 4] and found.sampled
    assert found.splits[0].per_class["cat"] == 8, "the balance is of all images"


def test_streams_several_labels_and_embedded_data(tmp_path, sick):
    pytest.importorskip("webdataset")
    found = look(f"wds:{write_shards(tmp_path, 's', count=2, size=5)}", sample=7)
    (split,) = found.splits
    assert (found.form, split.images, split.counted, sum(split.per_class.values())) == ("webdataset shards", 10, 7, 7)
    (sick / "t.csv").write_text("image,a,b\ntrain/cat/001.png,1,0\ntrain/puppy/001.png,0,0\n")
    several = look(f"{sick}/t.csv")
    assert (
        several.label_kind == "several"
        and several.splits[0].unlabelled == 1
        and several.splits[0].per_class == {"a": 1, "b": 0}
    )
    digits = look("digits?classes=1,2", sample=5)
    assert digits.classes == ("1", "2") and digits.splits[0].modes == {"L": 5} and not digits.leak.pairs


def test_whether_a_model_fits():
    args = "vit_tiny_patch16_224"
    assert "build the model with num_classes=2" in str(look("digits?classes=1,2", model=args, sample=1).fit)


def test_the_grid_shows_every_class(sick, tmp_path):
    look(str(sick), sample=1, grid=tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as image:
        rows = np.asarray(image.convert("RGB")).astype(int)
    coloured = (np.ptp(rows, axis=2) > 30).any(axis=1)
    assert rows.shape[0] > 3 * 112 and coloured.sum() > 100
    for wrong, text in (("g.png", "exists: give another path, or --overwrite"), ("g.jpg", "ends in .png")):
        with pytest.raises(BadInput, match=text):
            look(str(sick), grid=tmp_path / wrong)
    with pytest.raises(BadInput, match="there is no folder"):
        look(str(sick), grid=tmp_path / "no" / "g.png")


@pytest.fixture
def scenes(tmp_path) -> Path:
    """A table of eight grey images with masks (0, 1 and, below, 255), a box, captions and depth; one has no caption."""
    lines = ["image,mask,text,objects,depth"]
    for n in range(8):
        Image.new("RGB", (24, 20), (90, 90, 90)).save(tmp_path / f"{n}.png")
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[:, :6], mask[15:] = 1, 255
        Image.fromarray(mask).save(tmp_path / f"mask{n}.png")
        Image.fromarray(np.where(mask == 1, 0, 100 + n).astype(np.uint16)).save(tmp_path / f"depth{n}.png")
        box = f'"{{""bbox"": [[{2 * n}, 3, 4, 6]], ""category"": [{n % 2}]}}"'
        lines.append(f"{n}.png,mask{n}.png,{'' if n == 5 else 'two words'},{box},depth{n}.png")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path


def test_what_fields_hold_is_counted(scenes):
    spec = f"{scenes}/t.csv?labels=none&mask=mask&mask_classes=a,b,c&caption=text&objects=objects&depth=depth"
    found = look(spec, every=True)
    (split,) = found.splits
    assert [bad.key for bad in split.bad] == ["5.png"] and "'text', t.csv line 7): is missing" in split.bad[0].reason
    mask, boxes, text, depth = (split.fields[name] for name in ("mask", "objects", "caption", "depth"))
    assert mask.counts == {"a": 7 * 15 * 18, "b": 7 * 15 * 6, "c": 0} and mask.numbers == {"ignored_share": 0.25}
    assert boxes.counts == {"0": 4, "1": 3} and boxes.numbers == {"boxes_per_image": 1.0}
    assert text.numbers == {"texts_per_image": 1.0, "words_per_text": 2.0} and text.samples == 7
    assert depth.numbers["nearest"] == 100 and depth.numbers["farthest"] == 107
    assert depth.numbers["missing_share"] == pytest.approx(90 / 480)
    assert json.loads(json.dumps(found.to_json()))["splits"][0]["fields"]["objects"]["counts"] == {"0": 4, "1": 3}
    shown = text_of(found)
    for part in (
        "all: field mask (Masks) of 7 images: ignored share 25.0%",
        "│ a             │ 75.0%",
        "all: field objects (Boxes) of 7 images: boxes per image 1",
        "all: field depth (Depths) of 7 images: nearest 100, farthest 107, missing share 18.8%",
    ):
        assert part in shown, part
    unnamed = look(f"{scenes}/t.csv?labels=none&mask=mask", every=True).splits[0].fields["mask"]
    assert list(unnamed.counts) == ["0", "1"]


def test_masks_and_boxes_are_drawn_over_the_grid(scenes, tmp_path):
    def pixels(options):
        look(f"{scenes}/t.csv?labels=none{options}", sample=1, grid=tmp_path / "g.png", overwrite=True)
        with Image.open(tmp_path / "g.png") as image:
            return np.asarray(image.convert("RGB")).astype(int)

    plain, masked, boxed = pixels(""), pixels("&mask=mask"), pixels("&objects=objects")
    assert np.ptp(plain[40:], axis=2).max() == 0 and plain.shape == masked.shape == boxed.shape
    changed = (masked != plain).any(axis=2)
    tile = slice(34, 146), slice(190, 302)  # the first one; the image is 4 times as large in it, 96x80
    assert changed[tile].sum() == 96 * 60 and (boxed[tile] != plain[tile]).any(axis=2).sum() == (4 * 6 - 2 * 4) * 16


def test_it_must_read_something():
    with pytest.raises(BadInput, match="sample is 0"):
        look("digits", sample=0)
