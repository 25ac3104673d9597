from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from leanvit.data import open_dataset
from leanvit.errors import BadInput
from pictures import picture, write_folder


def test_classes_keys_and_size(folder):
    dataset = open_dataset(folder)
    assert dataset.classes == ["cat", "dog"] and dataset.name == "pets"
    assert dataset.keys[0] == "cat/000.png" and dataset.keys[12] == "dog/000.png"
    assert dataset.targets.tolist() == [0] * 12 + [1] * 8
    assert (dataset.channels, dataset.image_size) == (3, (20, 24))
    assert np.array_equal(dataset[12].image, Image.open(folder / "dog" / "000.png"))


def test_keys_do_not_depend_on_where_the_folder_lies_or_on_the_split(tmp_path):
    write_folder(tmp_path / "a" / "train", {"cat": 2})
    write_folder(tmp_path / "elsewhere", {"cat": 2})
    assert (
        open_dataset(tmp_path / "a").keys == open_dataset(tmp_path / "elsewhere").keys == ("cat/000.png", "cat/001.png")
    )


def test_nested_folders_and_other_files(folder):
    (folder / "cat" / "more").mkdir()
    picture(3).save(folder / "cat" / "more" / "x.JPG", "JPEG")
    (folder / "cat" / "notes.txt").write_text("no image")
    picture(3).save(folder / "cat" / ".hidden.png")
    (folder / ".git").mkdir()
    dataset = open_dataset(folder)
    assert len(dataset) == 21 and "cat/more/x.JPG" in dataset.keys and dataset.classes == ["cat", "dog"]


def test_val_takes_its_classes_from_train(tmp_path):
    write_folder(tmp_path / "train", {"ant": 1, "bee": 1, "cat": 1})
    write_folder(tmp_path / "val", {"cat": 2})
    assert open_dataset(tmp_path, "val").targets.tolist() == [2, 2]
    write_folder(tmp_path / "test", {"dog": 1})
    (tmp_path / "val").rename(tmp_path / "unused")
    with pytest.raises(BadInput, match="test/ has classes that train/ has not: dog"):
        open_dataset(tmp_path, "val")


def test_grey_folders_have_one_channel(tmp_path):
    root = write_folder(tmp_path / "grey", {"a": 3}, mode="L")
    assert open_dataset(root).channels == 1
    picture(5).save(root / "a" / "000.png")
    dataset = open_dataset(root)
    assert dataset.channels == 3 and {s.image.mode for s in dataset} == {"RGB"}


def test_no_images_and_no_classes(tmp_path):
    with pytest.raises(BadInput, match="holds no class folders; expected <class>/<image>"):
        open_dataset(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(BadInput, match=r"no images below .*\.png"):
        open_dataset(tmp_path)


def test_two_folders_for_one_split(tmp_path):
    for name in ("val", "validation"):
        write_folder(tmp_path / name, {"cat": 1})
    with pytest.raises(BadInput, match="two val splits: val/ and validation/"):
        open_dataset(tmp_path)


def test_corrupt_image_names_its_key(folder):
    (folder / "dog" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    dataset = open_dataset(folder)
    with pytest.raises(BadInput, match=r"image 'dog/003\.png' cannot be decoded"):
        dataset[15]
