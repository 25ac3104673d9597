"""Columns that become fields: what a cell may hold, in tables, parquet, HF sets and members of shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.data import Boxes, Depths, Masks, Preprocess, Stream, Texts, UnreadableImage, loader, open_dataset
from leanvit.data.columns import Caption, Objects, fields_of_members
from leanvit.data.identity import changes, identity
from leanvit.data.specs import parse_spec, with_options
from leanvit.data.stream import Encoded
from leanvit.errors import BadInput
from pictures import picture, png
from shards import write_shard

COLOUR = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3)
SIZE = (10, 8)  # (w, h) of the images
COUNT = 12
SPLIT = ["train" if row % 3 else "val" for row in range(COUNT)]
NAMES = ["bee", "ant"]


def mask_of(row: int) -> np.ndarray:
    """(h, w): a class of each quarter that depends on the row, a line of 9 that counts for nothing."""
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[4:, :5], mask[4:, 5:], mask[0] = 1, row % 3, 9
    return mask


def depth_of(row: int) -> np.ndarray:
    """(h, w) uint16 millimetres, one pixel without a value."""
    depth = np.full(SIZE[::-1], 1000 + row, dtype=np.uint16)
    depth[0, 0] = 0
    return depth


def objects_of(row: int) -> dict[str, Any]:
    """`row % 3` boxes as COCO writes them."""
    boxes = [[float(n), 1.0, 4.0, 2.0 + row % 3] for n in range(row % 3)]
    return {"bbox": boxes, "category": [n % 2 for n in range(row % 3)]}


def caption_of(row: int) -> str:
    return f"picture number {row}, with a comma"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, masks and depth maps as files; a table `t.csv` that names them, with objects as JSON."""
    root = tmp_path_factory.mktemp("columns")
    rows = []
    for row in range(COUNT):
        picture(row, SIZE).save(root / f"{row}.png")
        Image.fromarray(mask_of(row)).save(root / f"mask{row}.png")
        Image.fromarray(depth_of(row)).save(root / f"depth{row}.png")
        files = {name: f"{name}{row}.png" for name in ("mask", "depth")}
        rows.append({"image": f"{row}.png", "label": "ab"[row % 2], "split": SPLIT[row], **files} | texts_of(row))
    write(root / "t.csv", rows)
    return root


def texts_of(row: int) -> dict[str, str]:
    named = [{"bbox": box, "category": NAMES[n % 2]} for n, box in enumerate(objects_of(row)["bbox"])]
    return {"text": caption_of(row), "objects": json.dumps(objects_of(row)), "named": json.dumps(named)}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


ALL = "?labels=none&mask=mask&ignore=9&depth=depth&caption=text&objects=objects"


def row_of(key: str) -> int:
    return int(Path(key).stem)


def check_sample(sample: Any) -> None:
    """The fields are those of the sample's own row."""
    row = row_of(sample.key)
    assert np.array_equal(sample.fields["mask"], mask_of(row)) and sample.fields["caption"] == [caption_of(row)]
    assert np.array_equal(sample.fields["depth"], depth_of(row).astype(np.float32))
    wanted = np.array(objects_of(row)["bbox"], dtype=np.float32).reshape(-1, 4)
    wanted[:, 2:] += wanted[:, :2]
    assert np.array_equal(sample.fields["objects"]["boxes"], wanted)
    assert sample.fields["objects"]["labels"].tolist() == objects_of(row)["category"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_columns_of_a_table_are_fields(folder):
    train, val = (open_dataset(f"{folder}/t.csv{ALL}", split) for split in ("train", "val"))
    assert len(train) == 8 and len(val) == 4 and train.field_names == ("caption", "mask", "objects", "depth")
    kinds = [type(kind) for kind in train.fields.values()]
    assert kinds == [Texts, Masks, Boxes, Depths] and train.fields["mask"].ignore == 9
    for sample in (*train, *val):
        check_sample(sample)
    notes = train.note.split("; ")
    assert "boxes of objects are taken as left, top, width, height in pixels (boxes=xyxy where they are not)" in notes
    assert "depth is in the unit that is stored (depth_scale=N multiplies it)" in notes
    assert changes(identity(train), identity(open_dataset(train.spec, "train"))) == []  # the spec alone opens it again


def test_batches_hold_the_fields_also_from_workers(folder):
    dataset = open_dataset(f"{folder}/t.csv{ALL}&depth_scale=0.001", "train")
    dataset = pickle.loads(pickle.dumps(dataset))
    for workers in (0, 1):
        seen = 0
        for batch in loader(dataset, COLOUR, batch_size=4, train=True, augment="light", workers=workers):
            assert batch["mask"].shape == batch["depth"].shape == (4, 16, 16) and batch["mask"].dtype == torch.int64
            rows = [row_of(key) for key in batch.keys]
            assert batch["caption"] == [[caption_of(row)] for row in rows]
            largest = batch["depth"].flatten(1).max(dim=1).values
            assert torch.allclose(largest, torch.tensor([1 + row / 1000 for row in rows]))  # metres
            seen += len(rows)
        assert seen == 8
    assert "depth is in the unit" not in dataset.note


def verbs():
    return {
        "classes": lambda spec: open_dataset(f"{spec}&classes=b", "train"),
        "shots": lambda spec: open_dataset(f"{spec}&shots=2", "train"),
        "limit": lambda spec: open_dataset(spec, "train", limit=3),
        "cached": lambda spec: open_dataset(spec, "train").cached(),
        "all": lambda spec: open_dataset(f"{spec}&classes=b,a&shots=3", "train", limit=5).cached().take([3, 0]),
        "without_labels": lambda spec: open_dataset(spec, "train").without_labels().readable(),
    }


@pytest.mark.parametrize("verb", verbs())
def test_fields_stay_with_their_images(folder, verb):
    made = verbs()[verb](f"{folder}/t.csv{ALL.replace('labels=none', 'label=label')}")
    assert len(made) > 1 and set(made.fields) == {"caption", "mask", "objects", "depth"}
    for sample in made:
        check_sample(sample)


def test_a_table_of_one_split_is_divided_with_its_fields(folder):
    rows = [
        {"image": f"{row}.png", "mask": f"mask{row}.png", "depth": f"depth{row}.png", **texts_of(row)}
        for row in range(COUNT)
    ]
    write(folder / "whole.csv", rows)
    parts = [open_dataset(f"{folder}/whole.csv{ALL}", split) for split in ("train", "val")]
    assert sum(map(len, parts)) == COUNT and all(map(len, parts))
    for part in parts:
        for sample in part:
            check_sample(sample)


def test_fields_of_a_second_table(folder):
    """`val=FILE` has the columns, too; paths start from root=."""
    (folder / "lists").mkdir(exist_ok=True)
    for name, rows in (("train", range(6)), ("val", range(6, 9))):
        write(folder / f"lists/{name}.csv", [{"image": f"{n}.png", "mask": f"mask{n}.png"} for n in rows])
    spec = f"{folder}/lists/train.csv?labels=none&mask=mask&val=val.csv&root={folder}"
    train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
    assert len(train) == 6 and [row_of(sample.key) for sample in val] == [6, 7, 8]
    for sample in (*train, *val):
        assert np.array_equal(sample.fields["mask"], mask_of(row_of(sample.key)))
    write(folder / "lists/val.csv", [{"image": "7.png", "maske": "mask7.png"}])
    with pytest.raises(BadInput, match=r"val\.csv: mask='mask' is no column: did you mean 'maske'"):
        open_dataset(spec, "train")


def test_names_of_categories(folder):
    found = open_dataset(f"{folder}/t.csv?labels=none&objects=named&boxes=xywh", "train")
    assert found.fields["objects"].classes == ("ant", "bee")  # over all splits, in the order of texts
    note = "classes of objects are the names in the data, sorted: ant, bee (object_classes=NAME,NAME sets the order)"
    assert note in found.note and "taken as left" not in found.note
    given = open_dataset(f"{folder}/t.csv?labels=none&objects=named&object_classes=bee,ant,wasp", "train")
    assert given.fields["objects"].classes == ("bee", "ant", "wasp") and "sorted" not in given.note
    for sample, other in zip(found, given, strict=True):
        row = row_of(sample.key)
        assert other.fields["objects"]["labels"].tolist() == objects_of(row)["category"]
        assert sample.fields["objects"]["labels"].tolist() == [1 - n for n in objects_of(row)["category"]]


def test_captions_of_several_lines_belong_to_one_image(folder):
    rows = [("1.png", "one"), ("2.png", "two"), ("1.png", "uno"), ("1.png", "one"), ("2.png", '["dos", "deux"]')]
    write(folder / "lines.csv", [{"image": image, "caption": text} for image, text in rows])
    dataset = open_dataset(f"{folder}/lines.csv?labels=none&caption=caption")
    assert [sample.fields["caption"] for sample in dataset] == [["one", "uno"], ["two", "dos", "deux"]]
    assert dataset.left_out == {"repeated lines": 1} and "2 lines are further captions of an image" in dataset.note


def test_a_field_may_be_what_would_be_taken_as_label_or_image(folder):
    write(folder / "odd.csv", [{"image": f"{n}.png", "class": f"mask{n}.png", "label": "ab"[n % 2]} for n in range(4)])
    dataset = open_dataset(f"{folder}/odd.csv?mask=class")
    assert dataset.classes == ["a", "b"] and np.array_equal(dataset[2].fields["mask"], mask_of(2))
    with pytest.raises(BadInput, match=r"no label column; columns: image; .*\?labels=none opens the images"):
        open_dataset(f"{folder}/odd.csv?caption=label&mask=class")


# --- what is refused --------------------------------------------------------------------------------------------------


def said(folder: Path, options: str, **cells: Any) -> str:
    """What a table of four images with these cells raises when it is opened."""
    rows = [{"image": f"{n}.png", **cells} for n in range(4)]
    write(folder / "wrong.csv", rows)
    with pytest.raises(BadInput) as caught:
        open_dataset(f"{folder}/wrong.csv?labels=none&{options}")
    return str(caught.value)


def test_cells_that_cannot_be_the_field_name_file_and_line(folder):
    (folder / "colour.png").write_bytes(png(picture(0, SIZE)))
    (folder / "small.png").write_bytes(png(picture(0, (4, 4), "L")))
    picture(0, SIZE, "L").save(folder / "lossy.jpg")
    where = r"(column 'x', wrong.csv line 2): "
    for options, cell, text in (
        ("mask=x", "", "is missing"),
        ("mask=x", "nothing.png", f"there is no file {folder}/nothing.png"),
        ("mask=x", "colour.png", "a mask of 3 channels (mode RGB); accepted: one channel"),
        ("mask=x", "small.png", "a mask of 4x4 pixels; accepted: those of the image, 10x8"),
        ("mask=x", "lossy.jpg", "a mask that is no picture of a lossless format; accepted: PNG, TIFF, BMP, PPM, or a"),
        ("mask=x&mask_classes=a,b", "mask2.png", "a mask with the value 9, which is no class; accepted: 0 to 1 (a, b)"),
        ("depth=x", "lossy.jpg", "a depth map that is no picture of a lossless format"),
        ("caption=x", "", "is missing; accepted: a text, or a list of texts, none of them empty"),
        ("objects=x", "", "is missing; accepted: an empty list where there is no object"),
        ("objects=x", "[1, 2", "'[1, 2' is no JSON: "),
        ("objects=x", "3", "objects are 3; accepted: "),
        ("objects=x", '{"box": []}', "objects with box; accepted: "),
        ("objects=x", '{"bbox": 3}', "objects are {'bbox': 3}; accepted: "),
        (
            "objects=x",
            '{"bbox": [[1, 1, 2, 2]], "category": 3}',
            "objects are {'bbox': [[1, 1, 2, 2]], 'category': 3}; ac",
        ),
        ("objects=x", '{"bbox": null}', "is missing; accepted: an empty list where there is no object"),
        (
            "objects=x",
            '[{"bbox": [1, 1, 2, 2], "category": {}}]',
            "the category of box 0 is {}; accepted: a name",
        ),
        ("objects=x", "[[1, 2, 3]]", "box 0 is [1, 2, 3]; accepted: 4 numbers"),
        ("objects=x", '[[1, 2, 3, "4"]]', "box 0 is [1, 2, 3, '4']; accepted: 4 numbers"),
        (
            "objects=x&boxes=xyxy",
            "[[5, 2, 5, 4]]",
            "box 0, [5.0, 2.0, 5.0, 4.0], is inverted or empty, 10x8; acc",
        ),
        (
            "objects=x",
            "[[5, 2, 6, 4]]",
            "box 0, [5.0, 2.0, 6.0, 4.0], is outside the image, 10x8; acc",
        ),
        ("objects=x", '{"bbox": [[1, 1, 2, 2]], "category": []}', "1 boxes with labels of shape (0,)"),
        (
            "objects=x",
            '{"bbox": [[1, 1, 2, 2]], "category": [-1]}',
            "the category of box 0 is -1; accepted: a n",
        ),
        (
            "objects=x",
            '{"bbox": [[1, 1, 2, 2]], "category": [null]}',
            "the category of box 0 is None; accepted",
        ),
        (
            "objects=x&object_classes=ant,bee",
            '{"bbox": [[1, 1, 2, 2]], "category": ["be"]}',
            "the category 'be' of box 0 is no class: did you mean 'bee'? Known: ant, bee",
        ),
        (
            "objects=x&object_classes=ant",
            '{"bbox": [[1, 1, 2, 2]], "category": [3]}',
            "a box of class 3; accepted: 0",
        ),
    ):
        assert f"{where}{text}" in said(folder, options, x=cell), (options, cell)
    assert "boxes of column 'x' reach to 0.75 at most, as fractions of an image do; accepted: pixels" in said(
        folder, "objects=x", x="[[0.25, 0.25, 0.5, 0.5]]"
    )
    assert "(boxes=xyxy: left, top, right, bottom)" in said(folder, "objects=x", x="[[5, 2, 6, 4]]")
    numbers = '{"bbox": [[1, 1, 2, 2], [1, 1, 2, 2]], "category": ["1", "01"]}'
    assert "column 'x': classes '01' and '1' are one number in two spellings" in said(folder, "objects=x", x=numbers)
    mixed = '{"bbox": [[1, 1, 2, 2], [1, 1, 2, 2]], "category": [1, "ant"]}'
    assert "some categories of column 'x' are names (ant), others numbers" in said(folder, "objects=x", x=mixed)


def test_two_lines_of_an_image_that_differ_in_a_mask(folder):
    rows = [{"image": "1.png", "mask": f"mask{n}.png"} for n in (1, 1, 2)]
    write(folder / "twice.csv", rows)
    text = r"twice\.csv line 4: image '1\.png' comes twice, with different mask: it is in line 2, too; accepted"
    with pytest.raises(BadInput, match=text):
        open_dataset(f"{folder}/twice.csv?labels=none&mask=mask")


def test_samples_with_a_bad_cell_can_be_left_out(folder):
    rows = [{"image": f"{n}.png", "caption": "" if n in (1, 4) else f"no {n}"} for n in range(6)]
    write(folder / "gaps.csv", rows)
    dataset = open_dataset(f"{folder}/gaps.csv?labels=none&caption=caption")  # some can be read
    with pytest.raises(UnreadableImage, match=r"image '1\.png' has a field 'caption' .*gaps\.csv line 3\): is missing"):
        list(loader(dataset, COLOUR, batch_size=2))
    skipping = open_dataset(f"{folder}/gaps.csv?labels=none&caption=caption&on_bad=skip")
    kept = [key for batch in loader(skipping, COLOUR, batch_size=2) for key in batch.keys]
    assert kept == ["0.png", "2.png", "3.png", "5.png"] and len(skipping.readable()) == 4


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "digits?mask=mask",
            r"mask= is for data with columns; accepted: \.csv and \.tsv tables, parquet, hf:",
        ),
        ("list:x.txt?caption=text", "caption= is for data with columns"),
        ("x.csv?mask=a,b", r"mask=a,b names several columns; accepted: one \(%2C stands for a comma"),
        ("x.csv?mask=a&label=b,a", "column 'a' is used twice, for mask= and label="),
        ("x.csv?mask=a&image=a", "column 'a' is used twice, for mask= and image="),
        ("x.csv?mask=a&depth=a", "column 'a' is used twice, for mask= and depth="),
        ("wds:x.tar?caption=txt&caption=json.a", "caption= is given twice, as txt and as json.a; leave one out"),
        ("x.csv?ignore=3", "ignore= is about a field that is not there; add mask=COLUMN"),
        ("x.parquet?boxes=xyxy&mask=m", "boxes= is about a field that is not there; add objects=COLUMN"),
        ("x.csv?mask=", "option mask needs a value"),
        ("x.csv?masks=a", r"unknown option of data .* 'masks': did you mean 'mask'"),
    ],
)
def test_options_that_are_refused_before_anything_is_opened(spec, text):
    with pytest.raises(BadInput, match=text):
        open_dataset(spec)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("mask=masc", r"t\.csv: mask='masc' is no column: did you mean 'mask'"),
        ("mask=mask&ignore=-1", r"ignore='-1'; accepted: a whole number >= 0"),
        (f"mask=mask&ignore={2**63}", "ignore=9223372036854775808; accepted: up to 9223372036854775807"),
        ("mask=mask&depth=Mask", "column 'mask' is used twice, for mask= and depth="),
        ("mask=mask&mask_classes=a,b,a", "mask_classes=a,b,a names 'a' twice; accepted: each once"),
        ("objects=objects&boxes=cxcywh", "unknown boxes of data .* 'cxcywh': .*Known: xywh, xyxy"),
        ("objects=objects&object_classes=a,a", "object_classes=a,a names 'a' twice"),
        ("depth=depth&depth_scale=mm", "depth_scale='mm'; accepted: a number above 0"),
        ("depth=depth&depth_scale=0", "depth_scale='0'; accepted: a number above 0"),
        ("depth=depth&depth_scale=nan", "depth_scale='nan'; accepted: a number above 0"),
    ],
)
def test_options_that_are_refused(folder, options, text):
    with pytest.raises(BadInput, match=text):
        open_dataset(f"{folder}/t.csv?labels=none&{options}")


def test_options_round_trip():
    spec = with_options("t.csv", {"mask": "a%2Cb", "mask_classes": ("x,y", "z"), "ignore": 9})
    assert spec == "t.csv?mask=a%2Cb&mask_classes=x%2Cy,z&ignore=9"
    parsed = parse_spec(spec)
    assert parsed.columns == {"mask": "a,b"} and parsed.names("mask_classes") == ("x,y", "z")
    assert with_options(spec, {"mask_classes": ("x,y", "z")}) == spec


# --- parquet ----------------------------------------------------------------------------------------------------------


def parquet(file: Path, rows: range = range(COUNT), *, features: dict[str, Any] | None = None, **columns: Any) -> Path:
    """Images and columns, in row groups of four; `features` as HF `datasets` states them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = [{"bytes": png(picture(n, SIZE)), "path": f"{n}.png"} for n in rows]
    table = pa.table({"image": image, **columns})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=4)
    return file


def encoded(array: np.ndarray) -> bytes:
    return png(Image.fromarray(array))


def test_columns_of_parquet_are_fields(tmp_path):
    for name, rows in (
        ("train-00000-of-00002", range(5)),
        ("train-00001-of-00002", range(5, 9)),
        ("val", range(9, 12)),
    ):
        masks = [{"bytes": encoded(mask_of(n)), "path": f"mask{n}.png"} for n in rows]
        columns = {"mask": masks, "depth": [encoded(depth_of(n)) for n in rows], "text": [caption_of(n) for n in rows]}
        features = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}}
        parquet(tmp_path / f"{name}.parquet", rows, objects=list(map(objects_of, rows)), features=features, **columns)
    train, val = (open_dataset(f"{tmp_path}{ALL}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3) and "not of mask" not in train.note
    for sample in (*train, *val, train[7], train[1]):
        check_sample(sample)
    for batch in loader(train, COLOUR, batch_size=3, train=True, augment="light", workers=1):
        assert batch["mask"].shape == (3, 16, 16) and len(batch["objects"]) == 3


def test_only_the_row_groups_that_are_touched_are_read(tmp_path):
    file = parquet(tmp_path / "train.parquet", mask=[encoded(mask_of(n)) for n in range(COUNT)])
    cells = open_dataset(f"{file}?labels=none&mask=mask").fields["mask"].source
    cells.loaded.clear()
    cells[9]
    assert list(cells.loaded) == [2] and cells.located(9) == "column 'mask', train.parquet row 9"


def test_pixels_in_other_forms(tmp_path):
    """Paths of files, rows of numbers, NumPy arrays, TIFF with fractions."""
    masks, depths = [], []
    for row in range(COUNT):
        np.save(tmp_path / f"mask{row}.npy", mask_of(row))
        masks.append(f"mask{row}.npy")
        depth = depth_of(row).astype(np.float32)
        depth[0, 0] = np.nan
        depths.append(depth.tolist())
        Image.fromarray(depth / 1000).save(tmp_path / f"depth{row}.tif")
    tiff = [f"depth{n}.tif" for n in range(COUNT)]
    file = parquet(
        tmp_path / "x.parquet", mask=masks, depth=depths, numbers=[mask_of(n).tolist() for n in range(12)], t=tiff
    )
    for mask, depth in (("mask", "depth"), ("numbers", "t&depth_scale=1000")):
        dataset = open_dataset(f"{file}?labels=none&mask={mask}&depth={depth}")
        for row in (0, 11):
            fields = dataset[row].fields
            assert np.array_equal(fields["mask"], mask_of(row)) and np.allclose(fields["depth"], depth_of(row))
    (tmp_path / "data").mkdir()
    moved = file.rename(tmp_path / "data/x.parquet")
    assert np.array_equal(open_dataset(f"{moved}?labels=none&mask=mask&root={tmp_path}")[3].fields["mask"], mask_of(3))


@pytest.mark.parametrize("path", ["../secret.png", "/secret.png", "a/../../secret.png"])
def test_a_path_in_parquet_does_not_lead_out_of_its_folder(tmp_path, path):
    Image.fromarray(mask_of(0)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    given = str(tmp_path) + path if path.startswith("/") else path
    parquet(tmp_path / "data/x.parquet", mask=[given] * COUNT)
    with pytest.raises(BadInput, match=r"column 'mask', x\.parquet row 0\): the path '.*secret.png'; accepted: a path"):
        open_dataset(f"{tmp_path}/data/x.parquet?labels=none&mask=mask")


def test_cells_of_parquet_that_are_missing_name_file_and_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    objects = pa.struct({"bbox": pa.list_(pa.list_(pa.float64())), "category": pa.list_(pa.int64())})
    outside = {"bytes": None, "path": "mask0.png"}  # a path alone is not followed, as that of an image
    for option, column in {
        "mask": pa.array([None] * COUNT, pa.binary()),
        "depth": pa.array([outside] * COUNT, struct),
        "caption": pa.array([[]] * COUNT, pa.list_(pa.string())),
        "objects": pa.array([None] * COUNT, objects),
    }.items():
        parquet(tmp_path / "x.parquet", x=column)
        with pytest.raises(BadInput, match=rf"image '0\.png' has a field '{option}' .* row 0\): is missing"):
            open_dataset(f"{tmp_path}/x.parquet?labels=none&{option}=x")


CLASS = {"names": ["ant", "bee"], "_type": "ClassLabel"}
BOX = {"feature": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"}, "_type": "List"}


@pytest.mark.parametrize(
    "feature",
    [
        {"bbox": BOX, "category": {"feature": CLASS, "_type": "List"}},
        {"feature": {"bbox": {"_type": "Sequence"}, "category": CLASS}, "_type": "Sequence"},
        [{"bbox": BOX, "category": CLASS}],
    ],
)
def test_names_of_categories_in_the_record_of_the_data(tmp_path, feature):
    objects = [objects_of(n) for n in range(COUNT)]
    file = parquet(tmp_path / "x.parquet", objects=objects, features={"objects": feature, "image": {"_type": "Image"}})
    dataset = open_dataset(f"{file}?labels=none&objects=objects")
    assert dataset.fields["objects"].classes == ("ant", "bee")
    assert dataset[5].fields["objects"]["labels"].tolist() == [0, 1]
    with pytest.raises(BadInput, match=r"object_classes=bee,ant, but its record names them ant, bee; leave"):
        open_dataset(f"{file}?labels=none&objects=objects&object_classes=bee,ant")


def test_objects_in_other_forms(tmp_path):
    rows = [objects_of(n) for n in range(COUNT)]
    named = [
        [{"bbox": box, "category": NAMES[n]} for box, n in zip(one["bbox"], one["category"], strict=True)]
        for one in rows
    ]
    texts = [json.dumps(one) for one in rows]
    pa = pytest.importorskip("pyarrow")
    plain = pa.array([one["bbox"] for one in rows], pa.list_(pa.list_(pa.float32(), 4)))
    file = parquet(tmp_path / "x.parquet", named=named, texts=texts, plain=plain)
    for column, labels, classes in (("named", [1, 0], ("ant", "bee")), ("texts", [0, 1], ()), ("plain", [0, 0], ())):
        dataset = open_dataset(f"{file}?labels=none&objects={column}")
        assert dataset.fields["objects"].classes == classes
        found = dataset[5].fields["objects"]
        assert found["labels"].tolist() == labels and found["boxes"].tolist() == [[0, 1, 4, 5], [1, 1, 5, 5]]


@pytest.mark.parametrize(
    ("option", "column", "text"),
    [
        ("caption", [1] * COUNT, "caption column 'x' is of type int64; accepted: a text, or a list of texts"),
        ("mask", [1.5] * COUNT, "mask column 'x' is of type double; accepted: encoded pictures .*whole numbers"),
        ("mask", [[[1.5]]] * COUNT, "mask column 'x' is of type list<.*double.*; accepted: .*whole numbers"),
        ("depth", [[1.5]] * COUNT, "depth column 'x' is of type list<.*; accepted: encoded pictures"),
        ("objects", [3] * COUNT, "objects column 'x' is of type int64; accepted: a struct of bbox"),
        (
            "objects",
            [{"box": [[1]]}] * COUNT,
            "objects column 'x' is of type struct<box: .*; accepted: a struct",
        ),
        ("objects", [{"bbox": [[1]], "category": [0.5]}] * COUNT, "objects column 'x' is of type struct<"),
    ],
)
def test_columns_of_a_type_that_the_field_cannot_be(tmp_path, option, column, text):
    parquet(tmp_path / "x.parquet", x=column)
    with pytest.raises(BadInput, match=rf"x\.parquet: {text}"):
        open_dataset(f"{tmp_path}/x.parquet?labels=none&{option}=x")


def test_columns_of_parquet_that_are_refused(tmp_path):
    masks = [encoded(mask_of(n)) for n in range(COUNT)]
    file = parquet(tmp_path / "train.parquet", mask=masks, label=[0, 1] * 6)
    for options, text in {
        "mask=maks": r"train\.parquet: mask='maks' is no column: did you mean 'mask'\? Known: image, label, mask",
        "mask=image&labels=none": r"no image column; columns beside those of fields \(image\): mask, label",
        "caption=label": r"no class label column; columns beside .*; \?labels=none opens the images without labels",
        f"mask=mask&root={tmp_path}": "root= is where paths start from, but no mask or depth column holds paths",
    }.items():
        with pytest.raises(BadInput, match=text):
            open_dataset(f"{file}?{options}")
    parquet(tmp_path / "val.parquet", range(3), mask=["a.png"] * 3, label=[0, 1, 0])
    with pytest.raises(BadInput, match=r"hold column 'mask' in different types \(encoded, paths\)"):
        open_dataset(f"{tmp_path}?mask=mask")
    with pytest.raises(BadInput, match=r"root='nothing' is no folder"):
        open_dataset(f"{tmp_path}/val.parquet?mask=mask&root=nothing")


# --- members of shards ------------------------------------------------------------------------------------------------

MEMBERS = "wds:x.tar?mask=mask.png&ignore=9&caption=json.text&objects=json.objects&depth=depth.npy"


class Part:
    name = "x"

    def __init__(self, **members: bytes) -> None:
        self.members = members

    def __iter__(self):
        for row in range(COUNT):
            stored = json.dumps({"text": caption_of(row), "objects": objects_of(row)}).encode()
            values = {"mask": encoded(mask_of(row)), "depth": npy(depth_of(row)), "caption": stored, "objects": stored}
            yield Encoded(png(picture(row, SIZE)), None, f"{row}.png", fields={**values, **self.members})


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def of_members(spec: str, **members: bytes) -> Stream:
    stream = Stream("x", "x", "train", [], (Part(**members),), COUNT, 3, SIZE[::-1], labelled=False)
    for name, (_, kind) in fields_of_members(parse_spec(spec)).items():
        stream = stream.with_field(name, kind)
    return stream


@dataclass(frozen=True)
class Later:
    content: bytes

    def read_bytes(self):
        return self.content


def test_members_of_a_shard_are_fields():
    found = fields_of_members(parse_spec(MEMBERS))
    endings = {name: ending for name, (ending, _) in found.items()}
    assert endings == {"mask": "mask.png", "caption": "json", "objects": "json", "depth": "depth.npy"}
    stream = of_members(MEMBERS)
    assert [check_sample(sample) for sample in stream] == [None] * COUNT
    batch = next(iter(loader(stream, COLOUR, batch_size=4, train=True, augment="light", workers=1)))
    assert batch["mask"].shape == (4, 16, 16)
    others = fields_of_members(parse_spec("wds:x.tar?caption=txt&objects=Boxes.JSON&mask=TIF"))
    assert {name: ending for name, (ending, _) in others.items()} == {
        "caption": "txt", "mask": "tif", "objects": "boxes.json",
    }  # fmt: skip
    assert others["caption"][1].parse(b" two words\n") == ["two words"]
    assert others["caption"][1].parse(Later(b"read later")) == ["read later"]
    whole = others["objects"][1].parse(json.dumps(objects_of(2)).encode())
    assert whole["boxes"].shape == (2, 4) and whole["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"caption": b"\xff"}, "its member is no UTF-8 text"),
        ({"caption": b"{"}, "'{' is no JSON"),
        ({"objects": b'{"text": 1, "x": 2}'}, "its JSON has no 'objects' \\(it has text, x\\)"),
        ({"objects": b"[3]"}, "its JSON has no 'objects' \\(it has a list\\)"),
        ({"mask": b""}, "is missing"),
        ({"mask": b"no picture"}, "a mask that is no picture of a lossless format"),
        ({"depth": npy(np.array([object()]))}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_members_that_cannot_be_the_field(members, text):
    with pytest.raises(UnreadableImage, match=rf"image '0\.png' has a field .*{text}"):
        next(iter(of_members(MEMBERS, **members)))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("mask=mask.jpg", "mask=mask.jpg; accepted: the ending of a member without loss, as in NAME.png: png, tif"),
        ("depth=depth.exr", "depth=depth.exr; accepted: the ending of a member without loss"),
        ("caption=jpg", "caption=jpg; accepted: txt, NAME.txt, json.FIELD or NAME.json"),
        ("objects=txt", "objects=txt; accepted: json.FIELD or NAME.json"),
        ("objects=json.a&label=json.a", "column 'json.a' is used twice, for objects= and label="),
        ("caption=JSON.a&label=json.a", "member 'JSON.a' is used twice, for label= and caption="),
        ("mask=M.PNG&depth=m.png", "member 'm.png' is used twice, for mask= and depth="),
    ],
)
def test_members_that_are_refused(option, text):
    with pytest.raises(BadInput, match=text):
        fields_of_members(parse_spec(f"wds:x.tar?{option}"))


def members_of(row: int, *, image: str = "png") -> dict[str, bytes]:
    """The members of a sample: an image, labels, and what may be a field."""
    stored = json.dumps({"text": caption_of(row), "objects": objects_of(row), "label": "ab"[row % 2]}).encode()
    stream = io.BytesIO()
    picture(row, SIZE).save(stream, {"jpg": "JPEG"}.get(image, image))
    members = {"mask.png": encoded(mask_of(row)), "depth.npy": npy(depth_of(row)), "json": stored}
    members = {**members, image: stream.getvalue(), "txt": caption_of(row).encode(), "cls": b"ab"[row % 2 :][:1]}
    return {f"{row}.{ending}": content for ending, content in members.items()}


def shards_of(folder: Path, *, compressed: bool = False, **options: Any) -> str:
    """Two shards of six samples; their spec without options."""
    pytest.importorskip("webdataset")
    for shard in range(2):
        members = [members_of(row, **options) for row in range(6 * shard, 6 * shard + 6)]
        path = write_shard(folder / f"s-{shard}.tar", {name: one for row in members for name, one in row.items()})
        if compressed:
            path.write_bytes(gzip.compress(path.read_bytes()))
    return f"wds:{folder}/s-{{0..1}}.tar"


@pytest.mark.parametrize("compressed", [False, True])
def test_shards_have_fields(tmp_path, compressed):
    options = MEMBERS.partition("?")[2]
    spec = f"{shards_of(tmp_path, compressed=compressed)}?labels=none&{options}"
    stream = open_dataset(spec, "train")
    assert len(stream) == COUNT and "boxes of objects are taken as" in stream.note
    assert [row_of(sample.key) for sample in stream if check_sample(sample) is None] == [*range(COUNT)]
    for workers in (0, 1):
        for batch in loader(stream, COLOUR, batch_size=4, train=True, augment="light", workers=workers):
            rows = [row_of(key) for key in batch.keys]
            assert batch["caption"] == [[caption_of(row)] for row in rows] and batch["mask"].shape == (4, 16, 16)
    part = stream.limited(5)
    assert len(part) == 5 and [check_sample(sample) for sample in part] == [None] * 5
    assert changes(identity(stream), identity(open_dataset(spec, "train"))) == []


def test_members_are_a_field_or_a_label_or_the_image(tmp_path):
    spec = shards_of(tmp_path, image="jpg")
    stream = open_dataset(f"{spec}?caption=txt&mask=mask.png", "train")
    assert stream.classes == ["a", "b"] and "not of json" in stream.note and "txt" not in stream.note
    assert [(one.target, one.fields["caption"]) for one in stream][:2] == [(0, [caption_of(0)]), (1, [caption_of(1)])]
    by_json = open_dataset(f"{spec}?caption=json.text&label=json.label", "train")
    assert by_json.classes == ["a", "b"] and next(iter(by_json)).fields["caption"] == [caption_of(0)]
    plain = {name.replace("mask.png", "png"): one for name, one in members_of(3, image="jpg").items()}
    del plain["3.cls"], plain["3.json"]
    write_shard(tmp_path / "plain.tar", plain)  # the mask comes before the image
    (sample,) = open_dataset(f"wds:{tmp_path}/plain.tar?labels=none&mask=png&ignore=9&caption=txt", "train")
    assert np.array_equal(sample.fields["mask"], mask_of(3)) and sample.image.mode == "RGB"
    with pytest.raises(BadInput, match="sample '3' has no label"):
        open_dataset(f"wds:{tmp_path}/plain.tar?caption=txt")
    with pytest.raises(BadInput, match=r"sample '0' has no image beside png"):
        open_dataset(f"{shards_of(tmp_path)}?labels=none&mask=png")


def test_members_that_are_missing(tmp_path):
    spec = shards_of(tmp_path)
    with pytest.raises(BadInput, match=r"mask=masc\.png: no member ends in \.masc\.png: did you mean 'mask\.png'"):
        open_dataset(f"{spec}?mask=masc.png")
    two = {name: one for row in (1, 2) for name, one in members_of(row).items() if name != "2.mask.png"}
    write_shard(tmp_path / "gap.tar", two)
    stream = open_dataset(f"wds:{tmp_path}/gap.tar?labels=none&mask=mask.png")
    with pytest.raises(UnreadableImage, match="image '2' has a field 'mask' that is not accepted: is missing"):
        list(stream)
    skipping = open_dataset(f"{stream.spec}&on_bad=skip")
    assert [sample.key for sample in skipping] == ["1"] and [bad.key for bad in skipping.bad] == ["2"]


@pytest.mark.parametrize("compressed", [False, True])
def test_members_that_come_twice_or_apart_are_seen_when_the_shard_is_opened(tmp_path, compressed):
    def said(members: dict[str, bytes], options: str) -> str:
        path = write_shard(tmp_path / "t.tar", members)
        if compressed:
            path.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(BadInput) as caught:
            open_dataset(f"wds:{path}?labels=none&{options}", "train")
        return str(caught.value)

    mask, first, second = encoded(mask_of(1)), members_of(0, image="jpg"), members_of(1, image="jpg")
    assert "sample '0' has two mask.png members" in said({**first, **second, "0.Mask.PNG": mask}, "mask=mask.png")
    assert "sample '1' has no image beside png" in said({**first, "0.png": mask, "1.png": mask}, "mask=png")
    apart = {"1.mask.png": mask, **first, **{name: one for name, one in second.items() if name != "1.mask.png"}}
    if compressed:
        assert "the members of sample '1' are not side by side, and it is read from" in said(apart, "mask=mask.png")
    else:
        stream = open_dataset(f"wds:{write_shard(tmp_path / 't.tar', apart)}?labels=none&mask=mask.png&ignore=9")
        assert [np.array_equal(one.fields["mask"], mask_of(row)) for row, one in enumerate(stream)] == [True, True]


def test_cells_in_python():
    assert Caption()('["a", "b"]') == ["a", "b"] and Caption()("[a, b]") == ["[a, b]"] and Caption()("[1]") == ["[1]"]
    with pytest.raises(BadInput, match="3; accepted: a text"):
        Caption()(3)
    with pytest.raises(BadInput, match=r"the category 'ant' of box 0 is a name; add object_classes=NAME,NAME"):
        Objects()({"bbox": [[1, 1, 2, 2]], "category": ["ant"]})


# --- real data --------------------------------------------------------------------------------------------------------


def test_camvid_and_bccd(real):
    pytest.importorskip("pyarrow")
    camvid, bccd = real("camvid"), real("bccd")
    classes = ",".join(json.loads((camvid / "classes.json").read_text())["classes"][:11])
    train = open_dataset(f"{camvid}?labels=none&mask=mask&ignore=11&mask_classes={classes}", "train", limit=40)
    batch = next(iter(loader(train, COLOUR, batch_size=8, train=True, augment="light")))
    assert batch["mask"].shape == (8, 16, 16) and set(batch["mask"].unique().tolist()) <= {*range(12)}
    cells = open_dataset(f"{bccd}?labels=none&objects=objects&object_classes=RBC,WBC,Platelets", "train")
    with pytest.raises(UnreadableImage, match=r"box 3, \[181.0, 329.0, 0.0, 0.0\], is inverted or empty, 640x480"):
        cells.readable()  # a box without width: the data has one
    left = open_dataset(f"{cells.spec}&on_bad=skip", "train").readable()
    assert len(left) == 204 and all(len(sample.fields["objects"]["labels"]) for sample in left.take(range(5)))
