from __future__ import annotations

import sys

import numpy as np
import pytest

from leanvit.data import open_dataset
from leanvit.errors import BadInput, MissingExtra
from pictures import picture, png, write_folder

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def small(count: int, *, paths: bool = True):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    images = [{"bytes": png(picture(i)), "path": f"{i}.png" if paths else None} for i in range(count)]
    return datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in range(count)]}, features=features)


def test_splits_written_by_save_to_disk(tmp_path):
    datasets.DatasetDict({"train": small(6), "validation": small(4, paths=False)}).save_to_disk(tmp_path / "d")
    train, val = (open_dataset(f"hf:{tmp_path / 'd'}", split) for split in ("train", "val"))
    assert (train.classes, train.targets.tolist(), train.name) == (["ant", "bee"], [0, 1] * 3, "d")
    assert train.keys == tuple(f"{i}.png" for i in range(6)) and train.image_size == (20, 24)
    assert np.array_equal(train[3].image, picture(3))
    assert val.keys[1] == "val/00000001" and "keys are row numbers" in val.note


def test_a_set_without_splits_is_divided(tmp_path):
    small(30).save_to_disk(tmp_path / "d")
    train, val = (open_dataset(f"hf:{tmp_path / 'd'}", split) for split in ("train", "val"))
    assert len(train) + len(val) == 30 and "hash" in val.note


def test_folder_of_images_through_load_dataset_has_the_keys_of_imagefolder(tmp_path):
    write_folder(tmp_path / "pets" / "train", {"cat": 3, "dog": 2})
    ours, theirs = open_dataset(tmp_path / "pets"), open_dataset(f"hf:{tmp_path / 'pets'}")
    assert theirs.classes == ours.classes
    assert dict(zip(theirs.keys, theirs.targets, strict=True)) == dict(zip(ours.keys, ours.targets, strict=True))
    assert np.array_equal(theirs[theirs.keys.index("dog/001.png")].image, ours[ours.keys.index("dog/001.png")].image)


def test_a_name_that_cannot_be_had(tmp_path):
    with pytest.raises(BadInput, match="'hf:nobody/nothing' cannot be loaded by datasets: "):
        open_dataset("hf:nobody/nothing")
    with pytest.raises(BadInput, match="'hf:' names nothing; accepted forms:"):
        open_dataset("hf:")


def test_splits_must_be_known(tmp_path):
    datasets.DatasetDict({"a": small(2), "b": small(2)}).save_to_disk(tmp_path / "d")
    with pytest.raises(BadInput, match="none of its splits is train, val or test: a, b"):
        open_dataset(f"hf:{tmp_path / 'd'}")


def test_two_splits_of_one_name_are_refused(tmp_path):
    datasets.DatasetDict({"validation": small(2), "dev": small(2)}).save_to_disk(tmp_path / "d")
    with pytest.raises(BadInput, match="holds two val splits: validation and dev"):
        open_dataset(f"hf:{tmp_path / 'd'}")


def test_images_that_are_missing_are_named_with_their_row(tmp_path):
    table = small(3).to_dict()
    table["img"][1] = None
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("string")})
    table["label"] = ["a", "b", "a"]
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "d")
    dataset = open_dataset(f"hf:{tmp_path / 'd'}")
    with pytest.raises(BadInput, match=r"image 'all/00000001' has neither bytes nor a path \(row 1\)"):
        dataset.readable()


def test_missing_datasets_gives_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"needs 'datasets'.*pip install 'leanvit\[data\]'"):
        open_dataset("hf:cifar10")


def test_real_parquet_gives_the_same_samples_as_our_reader(real):
    ours = open_dataset(real("imagenet_sample"), "val", limit=5)
    theirs = open_dataset(f"hf:{real('imagenet_sample')}", "val", limit=5)
    assert theirs.keys == ours.keys and theirs.classes == ours.classes
    assert np.array_equal(theirs[2].image, ours[2].image)
