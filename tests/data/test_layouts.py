"""Which folders are classes, which are splits, and what is left out: a table of layouts, links, and random trees."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanvit.data import open_dataset
from leanvit.data.sources import source_of
from leanvit.data.specs import parse_spec
from leanvit.errors import BadInput
from leanvit.verbs.models import open_split
from pictures import picture, png

PIXELS = png(picture(1))
TWO = {"a": 2, "b": 2}


def plant(root: Path, files: dict[str, int | None]) -> Path:
    """`{"cat": 2, "notes.txt": None, "empty/": None}`: so many images in a folder, a file, a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, count in files.items():
        path = root / name
        (path if count is not None or name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if count is None and not name.endswith("/"):
            path.write_bytes(PIXELS)
        for number in range(count or 0):
            (path / f"{number}.png").write_bytes(PIXELS)
    return root


def split(name: str, inner: dict[str, int | None]) -> dict[str, int | None]:
    return {f"{name}/{folder}": count for folder, count in inner.items()}


# files -> classes, images of each split that the source holds, what is left out of the first, parts of the note
LAYOUTS = {
    "classes": (TWO, "a b", {"all": 4}, {}, ""),
    "a class is called train": (
        {f"{kind}/{age}": 2 for kind in ("bus", "car", "train") for age in ("old", "new")},
        "bus car train",
        {"all": 12},
        {},
        "train/ is taken as a class like bus/ and car/ (?layout=splits takes it as a split); "
        "folders inside class folders belong to the class, like bus/new/",
    ),
    "a flat class is called train": (
        {"bus": 2, "car": 2, "train": 2},
        "bus car train",
        {"all": 6},
        {},
        "train/ is taken as a class like bus/ and car/ (without it: ?classes=bus,car)",
    ),
    "a class is called test": (
        {"cat": 1, "dog": 1, "test": 1},
        "cat dog test",
        {"all": 3},
        {},
        "test/ is taken as a class like cat/ and dog/ (without it: ?classes=cat,dog)",
    ),
    "train and one more": (
        {"train/old": 1, "bus": 2},
        "bus train",
        {"all": 3},
        {},
        "train/ is taken as a class like bus/ (?layout=splits takes it as a split)",
    ),
    "train with class folders": (
        split("train", TWO),
        "a b",
        {"train": 4},
        {},
        "train/ is taken as a split (?layout=classes takes every folder as a class)",
    ),
    "train and an unlabelled test": (
        {**split("train", TWO), "test": 5},
        "a b",
        {"train": 4},
        {"in test/, which has no class folders": 5},
        "train/ is taken as a split, test/ has no class folders and is left out (?layout=classes takes every",
    ),
    "train and an empty val": (
        {**split("train", TWO), "val/": None},
        "a b",
        {"train": 4},
        {"empty folder (val)": 1},
        "train/ is taken as a split",
    ),
    "splits": ({**split("train", TWO), **split("val", {"a": 1})}, "a b", {"train": 4, "val": 1}, {}, ""),
    "valid and test": ({"valid/a": 1, "valid/b": 1, "test/b": 2, "test/c": 1}, "a b c", {"val": 2, "test": 3}, {}, ""),
    "splits and a folder beside": (
        {**split("train", TWO), **split("val", TWO), "images": 3, "boxes/1.xml": None},
        "a b",
        {"train": 4, "val": 4},
        {"in images/, beside the splits": 3, "with the ending .xml": 1},
        "train/ and val/ are taken as splits, images/ beside is left out (?layout=classes",
    ),
    "a split with loose images": (
        {**split("train", TWO), "train/x.png": None, **split("val", TWO)},
        "a b",
        {"train": 4, "val": 4},
        {"in no class folder": 1},
        "",
    ),
    "a class without a training image": (
        {"train/a": 2, "train/b/": None, "val/a": 1, "val/b": 2},
        "a b",
        {"train": 2, "val": 3},
        {"empty folder (train/b)": 1},
        "no training image of class 'b'",
    ),
    "numbered classes": ({str(number): 1 for number in range(12)}, "0 1 2 3 4 5 6 7 8 9 10 11", {"all": 12}, {}, ""),
    "numbers and a name": ({"2": 1, "10": 1, "x": 1}, "10 2 x", {"all": 3}, {}, ""),
    "other files": (
        {**TWO, "a/1.txt": None, "a/2.TXT": None, "a/LICENSE": None, "b/.x.png": None, "c.png": None, "a/u.a b": None,
         "__MACOSX/a/._1.png": None, ".git/a/b": None, "b/@eaDir/1.png": None},
        "a b",
        {"all": 4},
        {"with the ending .txt": 2, "in no class folder": 1, "without an ending": 1, "with other endings": 1,
         "hidden": 1, "in .git/": 1, "in __MACOSX/": 1, "in @eaDir/": 1},
        "",
    ),
    "folders without an image": (
        {**TWO, "__MACOSX/": None, "c/": None, "d/e/f/": None, "a/g/h/": None, "boxes/1.xml": None},
        "a b",
        {"all": 4},
        {"empty folders (__MACOSX, a/g, c, …)": 4, "folder without an image (boxes)": 1, "with the ending .xml": 1},
        "",
    ),
    "many endings": (
        {**TWO, **{f"a/{n}.e{n}": None for n in range(10)}},
        "a b",
        {"all": 4},
        {**{f"with the ending .e{n}": 1 for n in range(8)}, "with other endings": 2},
        "",
    ),
    "a folder named like an image": ({**TWO, "a/x.png/": None}, "a b", {"all": 4}, {"empty folder (a/x.png)": 1}, ""),
    "one class that holds the classes": (
        {"pets/a": 2, "pets/b": 2},
        "pets",
        {"all": 4},
        {},
        "like pets/a/ (where a/, b/ are the classes or splits, open pets/ itself); one class only, 'pets'",
    ),
    "splits of other names": (
        {"test_set/a": 1, "test_set/b": 1, "training_set/a": 1, "training_set/b": 1},
        "test_set training_set",
        {"all": 4},
        {},
        "(where a/, b/ are the classes, name the outer folders train/ and val/)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout(tmp_path, case):
    files, classes, counts, left_out, note = LAYOUTS[case]
    plant(tmp_path, files)
    held = source_of(parse_spec(str(tmp_path))).splits
    opened = {name: held[name]() for name in held}
    assert {name: len(one) for name, one in opened.items()} == counts
    assert all(one.classes == classes.split() for one in opened.values())
    first, *rest = opened.values()
    assert first.left_out == left_out and not any(one.left_out for one in rest)
    payload = open_dataset(tmp_path, "train" if "train" in held else None if "all" in held else "val").note
    assert note in payload if note else "taken" not in payload and "belong" not in payload


@pytest.mark.parametrize(
    ("files", "option", "classes", "counts"),
    [
        ({"bus/old": 2, "train/old": 1, "train/new": 1}, "splits", "new old", {"train": 2}),
        ({"bus/old": 2, "train/old": 1, "train/new": 1}, "classes", "bus train", {"all": 4}),
        (split("train", TWO), "classes", "train", {"all": 4}),
        ({**split("train", TWO), "test": 5}, "classes", "test train", {"all": 9}),
        ({**split("train", TWO), **split("test", TWO)}, "classes", "test train", {"all": 8}),
        ({"train": 1, "test": 1}, "classes", "test train", {"all": 2}),
    ],
)
def test_the_other_reading(tmp_path, files, option, classes, counts):
    plant(tmp_path, files)
    source = source_of(parse_spec(f"{tmp_path}?layout={option}"))
    opened = {name: one() for name, one in source.splits.items()}
    assert {name: len(one) for name, one in opened.items()} == counts
    assert all(one.classes == classes.split() and "taken" not in one.note for one in opened.values())
    again = open_dataset(f"{tmp_path}?layout={option}", "train")
    assert open_dataset(again.spec, "train").keys == again.keys


REFUSED = {
    "nothing": ({}, "", "holds no class folders; expected <class>/<image>"),
    "loose images": ({"a.png": None, "b.png": None}, "", r"holds no class folders \(there are 2 in no class folder\)"),
    "no image": (
        {"a/1.foo": None, "dog/": None},
        "",
        r"no images below .* 1 with the ending \.foo, 1 empty .*\.png",
    ),
    "unlabelled splits": (
        {"train": 1, "test": 1},
        "",
        "test/ and train/ hold images, but no class folders; .*layout=",
    ),
    "unlabelled train": ({"train": 1, "val/a": 1}, "", "train/ holds images, but no class folders as val/; expected"),
    "two val splits": ({"val/a": 1, "validation/a": 1}, "", "two val splits: val/ and validation/"),
    "no splits": ({**TWO, "test": 1}, "splits", "layout=splits, but no folder named train, val or test has class"),
    "an unknown layout": (TWO, "class", "unknown layout .* 'class': did you mean 'classes'"),
    "a class that train has not": (
        {"train/a": 1, "val/a": 1, "val/b": 1},
        "",
        "val/ has classes that train/ has not",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_is_refused(tmp_path, case):
    files, option, text = REFUSED[case]
    plant(tmp_path, files)
    with pytest.raises(BadInput, match=text):
        open_dataset(f"{tmp_path}?layout={option}" if option else tmp_path, "val")


def test_links_pipes_and_loops(tmp_path):
    outside = plant(tmp_path / "outside", {"dogs": 3, "dogs/more": 1, "x.png": None})
    root = plant(tmp_path / "pets", {"cat": 2, "cat/old": 1})
    for link, target in {
        "dog": outside / "dogs",  # a class folder elsewhere
        "hound": outside / "dogs",  # the same again
        "kitten": "cat",
        "up": tmp_path,  # around the data set
        "cat/self": root,
        "cat/loop": "loop",
        "cat/young": "old",  # read already
        "cat/x.png": outside / "x.png",
        "cat/gone.png": "nothing.png",
        "cat/.hidden.png": outside / "x.png",
    }.items():
        (root / link).symlink_to(target)
    os.mkfifo(root / "cat" / "pipe.png")
    dataset = open_dataset(root)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.keys == (
        "cat/0.png", "cat/1.png", "cat/old/0.png", "cat/x.png",
        "dog/0.png", "dog/1.png", "dog/2.png", "dog/more/0.png",
    )  # fmt: skip
    assert "5 images are reached through links" in dataset.note
    assert dataset.left_out == {
        "links to folders that are read already (cat/young, hound, kitten)": 3,
        "links that lead nowhere (cat/gone.png, cat/loop)": 2,
        "links to folders around them (cat/self, up)": 2,
        "that are no regular files (pipes, sockets, devices)": 1,
        "hidden": 1,
    }


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    root = plant(tmp_path / "pets", TWO)

    def scandir(path, real=os.scandir):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("leanvit.data.foldertree.os.scandir", scandir)
    with pytest.raises(BadInput, match=r"cannot be read: Permission denied: .*b'"):
        open_dataset(root)


def test_names_that_are_no_text(tmp_path):
    root = plant(tmp_path / "pets", {**TWO, "c d&%\n": 1})
    assert open_dataset(root).classes == ["a", "b", "c d&%\n"]
    (root / "a" / os.fsdecode(b"caf\xe9.txt")).write_text("")
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    assert open_dataset(root).left_out == {"with the ending .txt": 1, "empty folder (caf\\udce9)": 1}
    (root / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(PIXELS)
    with pytest.raises(BadInput, match=r"holds a name that is not UTF-8 text: 'a/caf\\udce9.png'"):
        open_dataset(root)


def test_it_is_said_before_a_training(tmp_path):
    plant(tmp_path, {**split("train", TWO), "train/a/1.txt": None, "test": 5})
    payload: list[str] = []
    open_split(str(tmp_path), "train", log=payload.append)
    assert payload[0] == f"data: {tmp_path}, train: 3 images, typically 24 wide and 20 high, colour, 2 classes"
    assert "test/ has no class folders and is left out" in payload[1]
    assert payload[2:] == ["data: left out of train: 5 in test/, which has no class folders, 1 with the ending .txt"]


def test_what_both_splits_have_to_say_is_said_once(tmp_path):
    plant(tmp_path, {"a": 12, "b": 12, "b/notes.txt": None})
    payload: list[str] = []
    train = open_split(str(tmp_path), "train", log=payload.append)
    open_split(str(tmp_path), "val", log=payload.append, beside=train)
    firsts = [line.split(" images")[0].removeprefix(f"data: {tmp_path}, ") for line in (payload[0], payload[-1])]
    assert firsts == [f"train: {len(train)}", f"val: {24 - len(train)}"]
    assert (
        "holds out 10% of the images" in payload[1] and payload[2] == "data: left out of train: 1 with the ending .txt"
    )
    assert len(payload) == 4


# --- random trees -----------------------------------------------------------------------------------------------------

FOLDERS = st.sampled_from(["train", "val", "valid", "test", "cat", "dog", "10", "2", ".git", "__MACOSX", "x.png"])
FILES = st.sampled_from(["0.png", "1.PNG", "2.png", ".h.png", "notes.txt", "LICENSE", "a.b c", "\n.png", "|0.png"])
TREES = st.lists(st.tuples(st.lists(FOLDERS, max_size=3), FILES | st.none()), max_size=14)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(TREES, st.sampled_from(["", "?layout=classes", "?layout=splits"]))
def test_every_file_is_used_or_left_out(tree, option):
    with TemporaryDirectory() as held:
        root = Path(held, "root")
        root.mkdir()
        for folders, name in tree:
            place = root.joinpath(*folders)
            if any(part.is_file() for part in (place, *place.parents)):
                continue
            place.mkdir(parents=True, exist_ok=True)
            if name is not None and not (place / name).exists():
                (place / name).write_bytes(PIXELS)
        there = sum(path.is_file() for path in root.rglob("*"))
        try:
            splits = [opened() for opened in source_of(parse_spec(f"{root}{option}")).splits.values()]
        except BadInput:
            return
        used = [root / one.images.folder / key for one in splits for key in one.keys]
        assert len(set(used)) == len(used) and all(path.is_file() for path in used)
        reasons = [item for one in splits for item in one.left_out.items()]
        files = sum(count for why, count in reasons if not why.startswith(("empty folder", "folder")))
        assert len(used) + files == there
        for one in splits:
            assert [one.classes[target] for target in one.targets] == [key.split("/")[0] for key in one.keys]
