from __future__ import annotations

import numpy as np
import pytest
import torch

from leanvit.data import Preprocess, loader, open_dataset
from leanvit.errors import BadInput
from pictures import picture, write_folder

SMALL = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def pets(tmp_path):
    return write_folder(tmp_path / "pets", {"cat": 4, "dog": 3})


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def test_a_list_holds_what_the_folder_holds(pets):
    folder = open_dataset(pets)
    (pets / "all.txt").write_text(lines(*(f"{key}\t{key.split('/')[0]}" for key in folder.keys)))
    listed = open_dataset(f"list:{pets}/all.txt")
    assert listed.keys == folder.keys and listed.classes == ["cat", "dog"]
    assert listed.targets.tolist() == folder.targets.tolist()
    assert np.array_equal(listed[5].image, folder[5].image)
    assert set(open_dataset(f"list:{pets}/all.txt", "val").keys) == set(open_dataset(pets, "val").keys)


def test_spaces_root_and_val(pets):
    other = pets.parent / "lists"
    other.mkdir()
    (other / "train.txt").write_text(lines("cat/000.png 1", "", "dog/001.png 0"))
    (pets / "cat" / "my cat.png").write_bytes((pets / "cat" / "000.png").read_bytes())
    (other / "test.txt").write_text(lines("cat/my cat.png\t3"))
    spec = f"list:{other}/train.txt?root={pets}&val=test.txt"
    train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
    assert train.classes == val.classes == ["0", "1", "3"]
    assert train.targets.tolist() == [1, 0] and val.keys == ("cat/my cat.png",) and val[0].target == 2
    with pytest.raises(BadInput, match="root='nowhere' is no folder"):
        open_dataset(f"list:{other}/train.txt?root=nowhere")


def test_absolute_paths_give_keys_that_move(pets):
    (pets / "a.txt").write_text(lines(f"{pets}/cat/000.png\tcat", f"{pets}/dog/000.png\tdog"))
    assert open_dataset(f"list:{pets}/a.txt").keys == ("cat/000.png", "dog/000.png")


def test_repeated_lines(pets):
    (pets / "a.txt").write_text(lines("cat/000.png 0", "cat/./000.png 0", "dog/000.png 1"))
    dataset = open_dataset(f"list:{pets}/a.txt")
    assert len(dataset) == 2 and dataset.left_out == {"repeated lines": 1}
    (pets / "b.txt").write_text(lines("cat/000.png 0", "cat/000.png 1"))
    with pytest.raises(BadInput, match=r"b\.txt line 2: image 'cat/000.png' comes twice, with different labels: .* 1,"):
        open_dataset(f"list:{pets}/b.txt")


def test_a_line_that_is_not_understood(pets):
    (pets / "a.txt").write_text(lines("cat/000.png 0", "alone"))
    with pytest.raises(BadInput, match=r"a\.txt line 2: 'alone' is no `path label`"):
        open_dataset(f"list:{pets}/a.txt")
    with pytest.raises(BadInput, match=r"does not exist; did you mean 'a\.txt'"):
        open_dataset(f"list:{pets}/aa.txt")


def test_a_table_with_splits(pets):
    (pets / "t.csv").write_text(
        lines("id,path,split,label", "1,cat/000.png,train,tabby cat", "2,dog/000.png,validation,dog")
    )
    train, val = open_dataset(pets / "t.csv", "train"), open_dataset(pets / "t.csv", "val")
    assert (train.keys, val.keys) == (("cat/000.png",), ("dog/000.png",))
    assert train.classes == ["dog", "tabby cat"] and not train.multi_label


def test_several_columns_are_several_labels(pets):
    (pets / "t.tsv").write_text(
        lines("image\tfurry\tbarks", "cat/000.png\t1\t0", "dog/000.png\t1\t1", "dog/001.png\t0\t0")
    )
    dataset = open_dataset(pets / "t.tsv")
    assert dataset.multi_label and dataset.classes == ["furry", "barks"]
    assert dataset.targets.dtype == np.float32 and dataset.targets.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert dataset[1].target.tolist() == [1, 1]
    batch = next(iter(loader(dataset, SMALL, batch_size=3)))
    assert batch.targets.dtype == torch.float32 and batch.targets.tolist() == dataset.targets.tolist()


def test_one_column_with_separators(pets):
    (pets / "t.csv").write_text(lines("file,tags", "cat/000.png,soft|small", "dog/000.png,loud", "dog/001.png,"))
    dataset = open_dataset(pets / "t.csv")
    assert dataset.classes == ["loud", "small", "soft"]
    assert dataset.targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert dataset.note == "labels are split at '|'"
    (pets / "u.csv").write_text(lines("file,tags", "cat/000.png,a+b", "dog/000.png,a"))
    assert open_dataset(f"{pets}/u.csv").classes == ["a", "a+b"]
    assert open_dataset(f"{pets}/u.csv?separator=%2B").classes == ["a", "b"]
    with pytest.raises(BadInput, match=r"t\.csv line 4: label '' is empty; accepted"):
        open_dataset(f"{pets}/t.csv?separator=none")


def test_subsets_of_several_labels(pets):
    rows = [f"{kind}/{n:03d}.png,{int(n % 2 == 0)},{int(kind == 'dog')},0" for kind in ("cat", "dog") for n in range(3)]
    (pets / "t.csv").write_text(lines("image,even,dog,none", *rows))
    dogs = open_dataset(f"{pets}/t.csv?classes=dog,even")
    assert dogs.classes == ["dog", "even"] and len(dogs) == 5 and dogs.targets[0].tolist() == [0, 1]
    few = open_dataset(f"{pets}/t.csv?shots=1")
    assert 1 <= len(few) <= 2 and few.targets.sum(axis=0)[:2].min() >= 1
    assert len(open_dataset(f"{pets}/t.csv", limit=3)) == 3


@pytest.mark.parametrize(
    ("table", "options", "text"),
    [
        (("what,label", "a,b"), "", "no image column; columns: what, label"),
        (("image,x", "a,b"), "", "no label column; columns: image, x"),
        (("image,x", "a,b"), "?label=y", "label='y' is no column: Known: x"),
        (("image,x,y", "a,0,3"), "?label=x,y", "column 'y' is one of several label columns; accepted: values 0 and 1"),
        (("image,label", "a"), "", "line 2: 1 values for 2 columns"),
        (("image,image", "a,b"), "", "must name each column once"),
        (("image,label,split", "a,b,other"), "", "column split holds 'other'"),
    ],
)
def test_a_table_that_is_not_understood(pets, table, options, text):
    (pets / "t.csv").write_text(lines(*table))
    with pytest.raises(BadInput, match=text):
        open_dataset(f"{pets}/t.csv{options}")


def test_missing_images_are_bad_images(pets):
    (pets / "a.txt").write_text(lines(*(f"cat/{n:03d}.png 0" for n in range(4)), "cat/gone.png 1"))
    dataset = open_dataset(f"list:{pets}/a.txt?on_bad=skip")
    left = dataset.readable()
    assert len(left) == 4 and [bad.key for bad in left.bad] == ["cat/gone.png"]
    with pytest.raises(BadInput, match=r"image 'cat/gone.png' cannot be decoded: there is no file"):
        open_dataset(f"list:{pets}/a.txt").readable()
    picture(1).save(pets / "cat" / "gone.png")
    assert len(open_dataset(f"list:{pets}/a.txt").readable()) == 5
