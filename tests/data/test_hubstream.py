from __future__ import annotations

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
