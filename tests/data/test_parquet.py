from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.data import open_dataset
from leanvit.errors import BadInput, MissingExtra
from pictures import picture, png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(
    file: Path,
    labels: list[Any],
    *,
    paths: list[str | None] | None = None,
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
    group: int = 4,
) -> Path:
    paths = [f"p/{i}.png" for i in range(len(labels))] if paths is None else paths
    images = [{"bytes": png(picture(i)), "path": path} for i, path in enumerate(paths)]
    table = pa.table({image: pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})), label: labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=group)
    return file


def test_reads_images_labels_names_and_keys(tmp_path):
    write(tmp_path / "d" / "train.parquet", [1, 0, 2, 1, 0, 1], names=["ant", "bee", "cat"])
    dataset = open_dataset(tmp_path / "d")
    assert dataset.classes == ["ant", "bee", "cat"] and dataset.targets.tolist() == [1, 0, 2, 1, 0, 1]
    assert dataset.keys == tuple(f"p/{i}.png" for i in range(6)) and (dataset.name, dataset.note) == ("d", "")
    for row in (5, 0, 4, 3):  # two row groups
        assert np.array_equal(dataset[row].image, picture(row))


def test_folder_of_splits_and_shards(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1], paths=["a", "b"])
    write(tmp_path / "train-00001-of-00002.parquet", [1, 0, 1], paths=["c", "d", "e"])
    write(tmp_path / "test.parquet", [1, 1])
    train = open_dataset(tmp_path, "train")
    assert train.keys == ("a", "b", "c", "d", "e") and train.targets.tolist() == [0, 1, 1, 0, 1]
    assert np.array_equal(train[3].image, picture(1))
    assert len(open_dataset(tmp_path, "val")) == 2


def test_classes_without_names_come_from_all_splits(tmp_path):
    write(tmp_path / "ints" / "train.parquet", [0, 1])
    write(tmp_path / "ints" / "val.parquet", [0, 3])
    assert open_dataset(tmp_path / "ints", "train").classes == ["0", "1", "3"]
    write(tmp_path / "texts" / "train.parquet", ["cat", "ant", "cat"])
    dataset = open_dataset(tmp_path / "texts")
    assert (dataset.classes, dataset.targets.tolist()) == (["ant", "cat"], [1, 0, 1])


def test_single_file_is_val_if_its_name_says_so(tmp_path):
    file = write(tmp_path / "val.parquet", [0, 1, 0])
    assert len(open_dataset(file, "val")) == 3
    other = write(tmp_path / "photos.parquet", [0, 1] * 20)
    train, val = open_dataset(other, "train"), open_dataset(other, "val")
    assert len(train) + len(val) == 40 and "hash" in val.note and val.name == "photos"


def test_other_column_names(tmp_path):
    write(tmp_path / "train.parquet", [0, 1], image="img", label="fine_label")
    assert len(open_dataset(tmp_path)) == 2


@pytest.mark.parametrize("paths", [["x.png", "x.png", "y.png"], [None, None, None], ["a.png", None, "b.png"]])
def test_keys_fall_back_on_rows_and_say_so(tmp_path, paths):
    write(tmp_path / "train.parquet", [0, 1, 0], paths=paths)
    dataset = open_dataset(tmp_path)
    assert dataset.keys == ("train/00000000", "train/00000001", "train/00000002")
    assert "keys are row numbers" in dataset.note


def test_absolute_paths_do_not_enter_the_keys(tmp_path):
    write(tmp_path / "train.parquet", [0, 1], paths=["/home/me/pets/cat/1.png", "/home/me/pets/dog/1.png"])
    assert open_dataset(tmp_path).keys == ("cat/1.png", "dog/1.png")


def test_a_path_without_bytes_is_not_followed(tmp_path):
    picture(1).save(tmp_path / "secret.png")
    images = [{"bytes": png(picture(1)), "path": "ok"}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"secret\.png' has no bytes in train\.parquet"):
        open_dataset(tmp_path)[1]


@pytest.mark.parametrize("value", [-1, 2, None])
def test_labels_outside_the_classes_name_the_key(tmp_path, value):
    write(tmp_path / "train.parquet", [0, value], names=["a", "b"])
    with pytest.raises(BadInput, match=rf"image 'p/1\.png' has label {value}; accepted: 0 to 1"):
        open_dataset(tmp_path)


def test_missing_columns_are_named(tmp_path):
    pq.write_table(pa.table({"x": [1], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="no image column; columns: x, label"):
        open_dataset(tmp_path)
    write(tmp_path / "a.parquet", [0], label="boxes")
    with pytest.raises(BadInput, match="no class label column; columns: image, boxes"):
        open_dataset(tmp_path)


def bare(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"label": [0, 1], **columns}), file)
    return file


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (["a.png", "b.png"], "image column 'image' is of type string; .*paths of files are read from a .csv table"),
        ([[1, 2], [3, 4]], "image column 'image' is of type list"),
        ([{"path": "a"}, {"path": "b"}], "image column 'image' is of type struct"),
        ([{"bytes": "a"}, {"bytes": "b"}], r"image column 'image' is of type struct<bytes: string>"),
        ([1, 2], "image column 'image' is of type int64"),
    ],
)
def test_columns_that_hold_no_images(tmp_path, column, text):
    with pytest.raises(BadInput, match=rf"train\.parquet: {text}"):
        open_dataset(bare(tmp_path / "train.parquet", image=column))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), STRUCT])
def test_images_that_are_missing_are_named_with_their_row(tmp_path, kind):
    image = {"bytes": png(picture(1)), "path": None} if kind == STRUCT else png(picture(1))
    for name, rows in (("train-00000-of-00002", [image, image]), ("train-00001-of-00002", [image, None])):
        bare(tmp_path / f"{name}.parquet", image=pa.array(rows, kind))
    with pytest.raises(BadInput, match=r"image 'train/00000003' has no bytes in train-00001-of-00002\.parquet row 1"):
        open_dataset(tmp_path).readable()
    left = open_dataset(f"{tmp_path}?on_bad=skip").readable()
    assert len(left) == 3 and [bad.key for bad in left.bad] == ["train/00000003"]


def test_names_of_classes_must_agree_over_files(tmp_path):
    write(tmp_path / "train.parquet", [0, 1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [0, 1], names=["dog", "cat"])
    with pytest.raises(BadInput, match="state different names of classes"):
        open_dataset(tmp_path, "train")


def test_a_second_label_column_and_files_of_no_split_are_said(tmp_path):
    table = pq.read_table(write(tmp_path / "train.parquet", [0, 1], label="fine_label"))
    pq.write_table(table.append_column("cls", pa.array([1, 1])), tmp_path / "train.parquet")
    write(tmp_path / "more.parquet", [0, 1])
    dataset = open_dataset(tmp_path)
    assert "labels are those of column 'cls', not of fine_label" in dataset.note.split("; ")
    assert dataset.left_out == {"parquet files whose names hold no split": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("p") / "whole.parquet", ["ant", "bee", "ant"], group=2).read_bytes()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_file_is_whole_or_refused(tmp_path_factory, whole, data):
    file, content = tmp_path_factory.getbasetemp() / "damaged.parquet", bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=2)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        left = open_dataset(f"{file}?on_bad=skip").readable()
    except BadInput:
        return
    assert len(left) + len(left.bad) == 3


def test_a_label_that_is_no_text(tmp_path):
    file = write(tmp_path / "train.parquet", ["ant", "bee", "ant"])
    content = file.read_bytes()
    file.write_bytes(content.replace(b"bee", b"b\xffe"))
    with pytest.raises(BadInput, match=r"train\.parquet: not a readable parquet file: 'utf-8' codec"):
        open_dataset(tmp_path)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(BadInput, match=r"train\.parquet: not a readable parquet file"):
        open_dataset(tmp_path)


def test_foreign_metadata_does_not_matter(tmp_path):
    table = pq.read_table(write(tmp_path / "train.parquet", [0, 1]))
    for text in ("not json", '{"info": 3}', '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}'):
        pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "train.parquet")
        assert open_dataset(tmp_path).classes == ["0", "1"]


def test_files_must_name_a_split(tmp_path):
    write(tmp_path / "a.parquet", [0, 1])
    assert len(open_dataset(tmp_path)) == 2
    write(tmp_path / "b.parquet", [0, 1])
    with pytest.raises(BadInput, match=r"none of its files names a split .*a\.parquet, b\.parquet"):
        open_dataset(tmp_path)


def test_missing_pyarrow_gives_the_pip_command(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"needs 'pyarrow'.*pip install 'leanvit\[data\]'"):
        open_dataset(tmp_path)


def test_names_of_a_record_that_come_twice_or_are_blank_get_their_index(tmp_path):
    found = open_dataset(write(tmp_path / "train.parquet", [0, 1, 2, 0], names=["crane", "", "crane"]))
    assert found.classes == ["crane (0)", "class (1)", "crane (2)"] and found.targets.tolist() == [0, 1, 2, 0]
    assert "get their index: 'crane (0)', 'class (1)', 'crane (2)'" in found.note


def test_cifar10(real):
    train, val = open_dataset(real("cifar10"), "train"), open_dataset(real("cifar10"), "val")
    assert (len(train), len(val), train.image_size, train.channels) == (50_000, 10_000, (32, 32), 3)
    assert train.classes[0] == "airplane" and "test split" in val.note
    sample = val[0]
    assert sample.key.startswith(val.classes[sample.target] + "/") and sample.image.size == (32, 32)
    assert len(set(train.keys)) == 50_000


def test_imagenet_sample(real):
    dataset = open_dataset(real("imagenet_sample"), "val")
    assert (len(dataset), len(dataset.classes), dataset.channels) == (1000, 1000, 3)
    assert min(dataset[3].image.size) == 256 and dataset.keys[0].startswith(dataset.classes[0])
    with pytest.raises(BadInput, match="no training split"):
        open_dataset(real("imagenet_sample"), "train")
