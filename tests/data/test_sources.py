from __future__ import annotations

import os

import pytest

from leanvit.data import open_dataset
from leanvit.data.splits import canonical_split
from leanvit.errors import BadInput, nearest
from pictures import write_folder


def test_unknown_split_names_the_nearest():
    with pytest.raises(BadInput, match="unknown split 'vall': did you mean 'val'"):
        open_dataset("digits", "vall")


def test_missing_path_names_what_is_accepted_and_the_nearest(folder):
    with pytest.raises(BadInput, match=r"pet' does not exist \(did you mean 'pets'\?\); accepted forms:"):
        open_dataset(folder.parent / "pet")
    with pytest.raises(BadInput, match=r"'digit' does not exist .*'digits'"):
        open_dataset("digit")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("x")
    with pytest.raises(BadInput, match=r"is a \.json file; accepted forms:\n  digits"):
        open_dataset(tmp_path / "a.json")
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(BadInput, match=r"is a \.txt file \(a list of images is opened as 'list:train\.txt'\)"):
        open_dataset(tmp_path / "train.txt")


def test_a_single_split_is_divided_by_the_hash_of_the_key(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 150, "dog": 150})
    train, val, whole = (open_dataset(root, split) for split in ("train", "val", None))
    assert not set(train.keys) & set(val.keys)
    assert set(train.keys) | set(val.keys) == set(whole.keys) and len(whole) == 300
    assert 15 <= len(val) <= 50
    assert "a hash of their names holds out 10% of the images" in val.note and "hash" in train.note and not whole.note

    (root / "cat" / "150.png").write_bytes((root / "cat" / "000.png").read_bytes())
    assert set(open_dataset(root, "val").keys) - {"cat/150.png"} == set(val.keys)  # more images move none


def test_tiny_sets_still_have_both_splits(tmp_path):
    root = write_folder(tmp_path / "two", {"a": 1, "b": 1})
    assert len(open_dataset(root, "train")) == len(open_dataset(root, "val")) == 1
    with pytest.raises(BadInput, match="holds one image: too few to split"):
        open_dataset(write_folder(tmp_path / "one", {"a": 1}), "val")


def test_test_serves_as_val_and_says_so(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "pets" / split, {"cat": 2, "dog": 3})
    val = open_dataset(tmp_path / "pets", "val")
    assert (len(val), val.split, val.note) == (5, "val", "val is the test split: there is no val split")
    assert open_dataset(tmp_path / "pets").split == "train"


def test_val_is_preferred_to_test(tmp_path):
    for split, count in (("train", 2), ("validation", 3), ("test", 4)):
        write_folder(tmp_path / "pets" / split, {"cat": count})
    val = open_dataset(tmp_path / "pets", "val")
    assert (len(val), val.note) == (3, "")


def test_a_source_without_training_split_is_not_cut_up(tmp_path):
    write_folder(tmp_path / "pets" / "val", {"cat": 4})
    assert len(open_dataset(tmp_path / "pets", "val")) == len(open_dataset(tmp_path / "pets")) == 4
    with pytest.raises(BadInput, match=r"split='train': .* has no training split, only val"):
        open_dataset(tmp_path / "pets", "train")


def test_split_names():
    names = ["train", "Training", "valid", "dev", "test-00000-of-00003", "validation-1-of-2", "cat"]
    assert [canonical_split(n) for n in names] == ["train", "train", "val", "val", "test", "val", None]


@pytest.mark.parametrize(
    ("counts", "options", "note"),
    [
        ({"a": 3, "b": 3}, {}, ""),
        ({"a": 3}, {}, "one class only, 'a': there is nothing to distinguish"),
        ({"a": 3, "b": 3}, {"classes": ["b"]}, "one class only, 'b'"),
        ({"a": 1, "b": 1}, {}, "at most one training image a class: too few to learn from"),
        ({"a": 3, "b": 3}, {"shots": 1}, "at most one training image a class"),
        ({"a": 2, "b": 2}, {"limit": 1}, "no training image of class '"),
        (dict.fromkeys("abcdefghijklmn", 2), {"limit": 2}, "no training image of 12 of 14 classes: '"),
    ],
)
def test_what_stands_in_the_way_of_learning_is_in_the_note(tmp_path, counts, options, note):
    write_folder(tmp_path / "train", counts)
    write_folder(tmp_path / "val", dict.fromkeys(counts, 1))
    train, val = (open_dataset(tmp_path, split, **options) for split in ("train", "val"))
    assert train.note == note if not note else note in train.note
    assert not val.note


def test_what_is_left_out_is_counted_for_both_parts_of_one_split(folder):
    (folder / "notes.txt").write_text("")
    train, val = (open_dataset(folder, split) for split in ("train", "val"))
    assert train.left_out == val.left_out == {"with the ending .txt": 1}
    assert "(what is left out is counted for both together)" in val.note


def test_the_very_name_that_was_given_is_never_suggested(tmp_path):
    many = ["revit_tiny", "vit_tiny_patch16_384", "vit_tiny_r_s16_p8_224", *map(str, range(100))]
    assert nearest("vit_tiny", many) == "did you mean 'vit_tiny_patch16_384' or 'vit_tiny_r_s16_p8_224'? 103 are known"
    assert nearest("cat", ["cat", "cats"]) == "did you mean 'cats'? Known: cat, cats"
    (tmp_path / "broken").symlink_to("nothing")
    write_folder(tmp_path / "what", {"a": 1})
    with pytest.raises(BadInput) as caught:
        open_dataset(tmp_path / "broken")
    assert "did you mean" not in str(caught.value)


def test_other_things_at_the_path(tmp_path):
    (tmp_path / "broken").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for name, text in (
        ("broken", "does not exist: it is a link that leads nowhere; accepted"),
        ("pipe", "is no file or folder"),
    ):
        with pytest.raises(BadInput, match=text):
            open_dataset(tmp_path / name)
