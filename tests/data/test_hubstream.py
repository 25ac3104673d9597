from __future__ import annotations

import numpy as np
import pytest

from leanvit.data import Preprocess, Stream, loader, open_dataset
from leanvit.errors import BadInput
from pictures import picture, png

datasets = pytest.importorskip("datasets")
SMALL = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train in two parquet shards of 8, test of 5; images with paths, named classes."""
    root = tmp_path_factory.mktemp("hub")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for name, rows in (("train-00000-of-00002", range(8)), ("train-00001-of-00002", range(8, 16)), ("test", range(5))):
        images = [{"bytes": png(picture(n)), "path": f"{name[:5]}/{n:02d}.png"} for n in rows]
        table = datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in rows]}, features=features)
        table.to_parquet(str(root / f"{name}.parquet"))
    return root


def test_streams_what_the_map_style_set_holds(folder):
    whole = open_dataset(f"hf:{folder}", "train")
    stream = open_dataset(f"hf:{folder}?streaming", "train")
    assert isinstance(stream, Stream) and len(stream) == len(whole) == 16
    assert stream.classes == whole.classes == ["cat", "dog"]
    assert [(s.key, s.target) for s in stream] == [(s.key, s.target) for s in whole]
    assert len(open_dataset(f"hf:{folder}?streaming", "val")) == 5


def test_epochs_are_shuffled_resampled_and_resumed(folder):
    stream = open_dataset(f"hf:{folder}?streaming&resampled&epoch=24&buffer=6", "train")

    def run(**kw):
        return [b.keys for b in loader(stream, SMALL, batch_size=6, train=True, augment="light", **kw)]

    first = run(seed=1)
    assert [len(keys) for keys in first] == [6] * 4
    assert run(seed=1, skip=2) == first[2:] and run(seed=1, workers=1) == first != run(seed=1, epoch=1)


def test_streaming_options_need_streaming(folder):
    with pytest.raises(BadInput, match="resampled is for streaming: add it, or leave that out"):
        open_dataset(f"hf:{folder}?resampled")


def test_paths_that_come_twice_make_no_keys(tmp_path):
    images = [{"bytes": png(picture(n)), "path": "same.png"} for n in range(3)]
    datasets.Dataset.from_dict({"image": images, "label": ["b", "a", "b"]}).save_to_disk(tmp_path / "d")
    stream = open_dataset(f"hf:{tmp_path / 'd'}?streaming")
    assert [s.key for s in stream] == ["same.png", "all-00000-of-00001/00000001", "all-00000-of-00001/00000002"]
    assert [s.target for s in stream] == [1, 0, 1]


def with_columns(root):
    """Sets of `datasets` with a column of masks, captions and objects."""
    from PIL import Image

    def mask(n):
        return png(Image.fromarray(np.full((20, 24), n, dtype=np.uint8)))

    whole = datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "files": datasets.Value("string"),
            "text": datasets.List(datasets.Value("string")),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=["ant", "bee"])),
            },
            "named": datasets.List({"bbox": datasets.List(whole), "category": datasets.Value("string")}),
        }
    )
    rows = {
        "image": [{"bytes": png(picture(n)), "path": f"{n}.png"} for n in range(6)],
        "mask": [{"bytes": mask(n), "path": None} for n in range(6)],
        "files": [f"{n}.png" for n in range(6)],
        "text": [[f"no {n}", "again"] for n in range(6)],
        "objects": [{"bbox": [[n, 1, 2, 3]], "category": [n % 2]} for n in range(6)],
        "named": [[{"bbox": [n, 1, 2, 3], "category": "ba"[n % 2]}] for n in range(6)],
    }
    for n in range(6):
        Image.fromarray(np.full((20, 24), n, dtype=np.uint8)).save(root / f"{n}.png")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(root / "d")
    return f"hf:{root / 'd'}"


def test_columns_are_fields_whole_and_streamed(tmp_path):
    spec = f"{with_columns(tmp_path)}?labels=none&mask=mask&caption=text&objects=objects"
    for opened in (open_dataset(spec), open_dataset(f"{spec}&streaming")):
        assert opened.field_names == ("caption", "mask", "objects") and opened.fields["objects"].classes == (
            "ant",
            "bee",
        )
        assert "boxes of objects are taken as" in opened.note and "not of mask" not in opened.note
        seen = 0
        for number, sample in enumerate(opened):
            assert (sample.fields["mask"] == number).all() and sample.fields["caption"] == [f"no {number}", "again"]
            assert sample.fields["objects"]["boxes"].tolist() == [[number, 1, number + 2, 4]]
            assert sample.fields["objects"]["labels"].tolist() == [number % 2]
            seen += 1
        batch = next(iter(loader(opened, SMALL, batch_size=3, train=True, augment="light", workers=1)))
        assert seen == 6 and batch["mask"].shape == (3, 16, 16)


def test_columns_of_paths_and_of_names(tmp_path):
    spec = f"{with_columns(tmp_path)}?labels=none"
    for streaming in ("", "&streaming"):
        with pytest.raises(BadInput, match="mask column 'files' holds paths; accepted: encoded pictures, or root=DIR"):
            open_dataset(f"{spec}&mask=files{streaming}")
        found = open_dataset(f"{spec}&mask=files&root={tmp_path}{streaming}")
        assert [int(sample.fields["mask"].max()) for sample in found] == [*range(6)]
        named = open_dataset(f"{spec}&objects=named&object_classes=b,a{streaming}")
        assert [int(sample.fields["objects"]["labels"][0]) for sample in named] == [0, 1] * 3
        with pytest.raises(BadInput, match="depth='deep' is no column"):
            open_dataset(f"{spec}&depth=deep{streaming}")
    assert open_dataset(f"{spec}&objects=named").fields["objects"].classes == ("a", "b")
    with pytest.raises(BadInput, match="the categories of column 'named' are names, which a stream does not know"):
        open_dataset(f"{spec}&objects=named&streaming")
