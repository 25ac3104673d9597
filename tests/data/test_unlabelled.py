"""Sets without labels: how they are opened, and what needs classes refuses them by name."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch

import leanvit as lv
from leanvit.data import Dataset, Preprocess, Stream, loader, open_dataset, require_labels
from leanvit.data.identity import changes, identity
from leanvit.data.unlabelled import find_images
from leanvit.errors import BadInput
from leanvit.verbs.looking import look
from pictures import picture, png
from shards import write_shard, write_shards

COLOUR = Preprocess((3, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(20):
        picture(number).save(folder / f"{number:02d}.png")
    (folder / "notes.txt").write_text("hello")
    return folder


def write_parquet(file, count=6, **columns):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": png(picture(i)), "path": f"p/{i}.png"} for i in range(count)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    parquet.write_table(pa.table({"image": pa.array(images, kind), **columns}), file, row_group_size=4)
    return file


def require_without(dataset):
    assert not dataset.labelled and dataset.classes == [] and not dataset.multi_label and dataset.field_names == ()
    batch = next(iter(loader(dataset, COLOUR, batch_size=3, train=True, augment="light")))
    assert batch.targets is None and batch.to("meta").targets is None and batch.take([1]).targets is None
    assert len(batch) == 3 and batch.images.shape == (3, 3, 16, 16)
    image, target, key = next(iter(dataset))
    assert target is None and image.mode == "RGB" and key
    with pytest.raises(BadInput, match="unknown field of a batch 'label'"):
        batch["label"]
    return dataset


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_flat_folder_opens_when_it_is_asked_for(flat):
    with pytest.raises(BadInput, match=r"holds no class folders .*\?labels=none opens images without labels"):
        open_dataset(flat)
    dataset = require_without(open_dataset(flat, labels=False))
    assert dataset.spec == f"{flat}?labels=none" and dict(dataset.left_out) == {"with the ending .txt": 1}
    assert dataset.keys == tuple(f"{number:02d}.png" for number in range(20)) and "no labels" in repr(dataset)
    again = open_dataset(dataset.spec)
    assert identity(again) == identity(dataset) and "labels" not in identity(again)
    train, val = open_dataset(dataset.spec, "train"), open_dataset(dataset.spec, "val")
    assert sorted((*train.keys, *val.keys)) == list(dataset.keys) and not val.labelled
    assert len(open_dataset(dataset.spec, limit=5)) == 5 and len(dataset.cached()) == 20


def test_folders_of_any_depth_are_one_set_but_for_splits(flat, tmp_path):
    (tmp_path / "deep/a").mkdir(parents=True)
    shutil.copytree(flat, tmp_path / "deep/a/b")
    shutil.copytree(flat, tmp_path / "deep/c")
    deep = require_without(open_dataset(tmp_path / "deep", labels=False))
    assert len(deep) == 40 and deep.keys[0] == "a/b/00.png" and deep.split == "all"
    shutil.copytree(flat, tmp_path / "two/train")
    shutil.copytree(tmp_path / "deep/a", tmp_path / "two/val")
    with pytest.raises(BadInput, match=r"\?labels=none opens the images without labels"):
        open_dataset(tmp_path / "two")
    train, val = (require_without(open_dataset(f"{tmp_path}/two?labels=none", s)) for s in SPLITS)
    assert train.keys[0] == "00.png" and val.keys[0] == "b/00.png" and "train/ is taken as a split" in train.note
    whole = open_dataset(f"{tmp_path}/two?labels=none&layout=classes")
    assert len(whole) == 40 and whole.keys[0] == "train/00.png"
    (tmp_path / "two/extra.png").write_bytes((flat / "00.png").read_bytes())
    assert len(open_dataset(f"{tmp_path}/two?labels=none")) == 41, "an image beside the splits belongs to the set"


SPLITS = ("train", "val")


def test_class_folders_open_without_their_classes(folder):
    dataset = require_without(open_dataset(folder, labels=False))
    assert dataset.keys == open_dataset(folder).keys and open_dataset(folder).labelled
    digits = open_dataset("digits?labels=none", "train")
    assert not digits.labelled and digits.keys == open_dataset("digits", "train").keys


def test_links_and_hidden_folders_are_treated_as_in_class_folders(flat):
    (flat / ".cache").mkdir()
    shutil.copy(flat / "00.png", flat / ".cache/x.png")
    (flat / "loop").symlink_to(flat)
    found = open_dataset(flat, labels=False)
    assert len(found) == 20 and found.left_out["in .cache/"] == 1
    assert [key for part in find_images(flat, channels=3).parts for key in part.keys] == list(found.keys)
    assert not find_images(flat, channels=3).parts[0].labelled


def test_folders_without_images(tmp_path):
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/a.txt").write_text("x")
    with pytest.raises(BadInput, match=r"has no images below empty/ \(there are 1 with the ending \.txt"):
        open_dataset(tmp_path / "empty", labels=False)
    with pytest.raises(BadInput, match="layout=splits, but no folder named train has images"):
        open_dataset(f"{tmp_path}/empty?labels=none&layout=splits")


def test_parquet_with_and_without_a_label_column(tmp_path):
    bare = write_parquet(tmp_path / "bare.parquet")
    with pytest.raises(BadInput, match=r"no class label column.*\?labels=none opens the images without labels"):
        open_dataset(bare)
    for file in (bare, write_parquet(tmp_path / "labelled.parquet", label=[0, 1] * 3)):
        dataset = require_without(open_dataset(file, labels=False))
        assert dataset.keys == tuple(f"p/{i}.png" for i in range(6))
        assert dataset[5].image.tobytes() == picture(5).tobytes()


def test_shards_with_and_without_labels(tmp_path):
    write_shard(tmp_path / "bare.tar", {f"{i}.png": png(picture(i)) for i in range(6)})
    with pytest.raises(BadInput, match=r"has no label .*\?labels=none opens the images without labels"):
        open_dataset(f"wds:{tmp_path}/bare.tar")
    write_shard(tmp_path / "some.tar", {"0.png": png(picture(0)), "0.cls": b"1", "1.png": png(picture(1))})
    with pytest.raises(BadInput, match=r"1 of 2 images have no cls member.*\?labels=none opens all without labels"):
        open_dataset(f"wds:{tmp_path}/some.tar")
    for pattern, count in (("bare.tar", 6), (write_shards(tmp_path, "full", 2, 4).rpartition("/")[2], 8)):
        stream = require_without(open_dataset(f"wds:{tmp_path}/{pattern}", labels=False))
        assert isinstance(stream, Stream) and len(stream) == count and len(list(stream)) == count
        assert changes(identity(stream), identity(open_dataset(stream.spec))) == []
    assert "labels are those" not in stream.note


def test_streams_of_hf_and_their_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(i) for i in range(6)]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "hf")
    with pytest.raises(BadInput, match=r"\?labels=none opens the images without labels"):
        open_dataset(f"hf:{tmp_path}/hf")
    assert len(require_without(open_dataset(f"hf:{tmp_path}/hf", labels=False))) == 6
    assert len(require_without(open_dataset(f"hf:{tmp_path}/hf?streaming", labels=False))) == 6


def test_lists_and_tables_of_paths(flat, tmp_path):
    (tmp_path / "list.txt").write_text("flat/00.png\nflat/01.png\n\nflat/02.png\nflat/02.png\n")
    rows = ("image,size,split", "flat/00.png,3,train", "flat/01.png,4,train", "flat/02.png,5,val")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with pytest.raises(BadInput, match=r"\?labels=none takes a path a line"):
        open_dataset(f"list:{tmp_path}/list.txt")
    with pytest.raises(BadInput, match=r"no label column.*\?labels=none opens the images without labels"):
        open_dataset(tmp_path / "table.csv")
    listed = require_without(open_dataset(f"list:{tmp_path}/list.txt", labels=False))
    assert len(listed) == 3 and listed.left_out == {"repeated lines": 1}
    train, val = (open_dataset(tmp_path / "table.csv", split, labels=False) for split in SPLITS)
    assert (len(train), len(val)) == (2, 1) and not train.labelled and not val.labelled


# --- what needs labels ------------------------------------------------------------------------------------------------


def test_options_about_labels_are_refused_beside_none(flat):
    for option in ("classes=a,b", "shots=3"):
        with pytest.raises(BadInput, match=f"{option.partition('=')[0]}= is about labels, and labels=none"):
            open_dataset(f"{flat}?labels=none&{option}")
    with pytest.raises(BadInput, match="classes= is about labels"):
        open_dataset(flat, labels=False, classes=["a"])
    with pytest.raises(BadInput, match="labels='all'; accepted: labels=none"):
        open_dataset(f"{flat}?labels=all")


def test_what_needs_classes_names_itself(flat):
    dataset = open_dataset(flat, labels=False)
    for what, call in {
        "shots=": lambda: dataset.few_shot(2),
        "classes=": lambda: dataset.only_classes(["a"]),
        "the test": lambda: require_labels(dataset, "the test"),
        "accuracy": lambda: lv.compare({"a": _model()}, dataset),
    }.items():
        with pytest.raises(BadInput, match=rf"^{what} needs labels, but data '.*labels=none' has none; accepted: "):
            call()
    assert isinstance(require_labels(open_dataset("digits"), "x"), Dataset)


def _model():
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=12, num_heads=1, num_classes=2
    ).eval()


def test_a_look_at_it(flat, tmp_path):
    found = look(f"{flat}?labels=none", grid=tmp_path / "grid.png", every=True)
    assert found.classes == () and not found.labelled and found.form == "images without labels"
    assert Counter(split.split for split in found.splits) == {"all": 1} and found.splits[0].per_class == {}
    title, *tables = map(str, found.shown())
    assert title.endswith("none: images, colour, without labels") and len(tables) == 3  # no table of classes
    assert found.to_json()["splits"][0]["imbalance"] is None and (tmp_path / "grid.png").stat().st_size > 1000


def test_predicting_and_calibrating_need_none(flat):
    answers = lv.predict(_model(), open_dataset(flat, labels=False), preprocess=COLOUR)
    assert len(answers) == 20 and torch.tensor([answer.probabilities[0] for answer in answers]).isfinite().all()


def test_images_to_predict_are_found_without_their_fields(flat):
    """A caption that is missing does not keep an image from being predicted."""
    (flat / "t.csv").write_text("image,text\n00.png,a\n01.png,\n")
    found = find_images(f"{flat}/t.csv?labels=none&caption=text", channels=3)
    assert [sample.key for part in found.parts for sample in part] == ["00.png", "01.png"]
