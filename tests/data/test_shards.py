from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from leanvit.data import Preprocess, Stream, loader, open_dataset
from leanvit.errors import BadInput
from pictures import picture, png
from shards import numbered, write_shard, write_shards

pytest.importorskip("webdataset")
SMALL = Preprocess((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), "s", count=4, size=6)


def keys_of(batches):
    return [batch.keys for batch in batches]


def test_an_exact_pass_has_every_sample_once_in_order(pattern):
    stream = open_dataset(f"wds:{pattern}")
    assert isinstance(stream, Stream) and len(stream) == 24 and stream.classes == ["0", "1", "2"]
    assert (stream.channels, stream.image_size, stream.multi_label) == (3, (20, 24), False)
    samples = list(stream)
    assert [s.key for s in samples] == [f"{n:04d}" for n in range(24)]
    assert [s.target for s in samples] == [n % 3 for n in range(24)]
    assert np.array_equal(samples[7].image, picture(7))
    batches = list(loader(stream, SMALL, batch_size=7))
    assert [len(b) for b in batches] == [7, 7, 7, 3] and batches[0].targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(batches[1].images[0], SMALL.eval_transform()(picture(7)))


def test_training_order_follows_from_seed_and_epoch_not_from_workers(pattern):
    stream = open_dataset(f"wds:{pattern}?buffer=5")

    def run(**kw):
        return list(loader(stream, SMALL, batch_size=5, train=True, augment="light", **kw))

    first = run(seed=1, epoch=2)
    flat = [key for keys in keys_of(first) for key in keys]
    assert sorted(flat) == [f"{n:04d}" for n in range(24)] and flat != sorted(flat)
    for again in (run(seed=1, epoch=2), run(seed=1, epoch=2, workers=2)):
        assert keys_of(again) == keys_of(first)
        assert all(torch.equal(a.images, b.images) for a, b in zip(again, first, strict=True))
    assert keys_of(run(seed=1, epoch=3)) != keys_of(first) != keys_of(run(seed=2, epoch=2))


def test_skip_is_the_rest_of_the_epoch(pattern):
    stream = open_dataset(f"wds:{pattern}?resampled&epoch=50&buffer=9")

    def run(skip):
        return loader(stream, SMALL, batch_size=8, seed=3, train=True, augment="light", skip=skip, drop_last=True)

    whole, rest = list(run(0)), list(run(4))
    assert len(whole) == 6 and len(run(4)) == len(rest) == 2
    assert keys_of(rest) == keys_of(whole[4:]) and torch.equal(rest[0].images, whole[4].images)
    with pytest.raises(BadInput, match="skip is 7; accepted: 0 to 6"):
        run(7)


def test_resampled_epochs_have_a_fixed_length_and_fresh_augmentation(pattern):
    stream = open_dataset(f"wds:{pattern}?resampled&epoch=100&buffer=1", "train")
    batches = list(loader(stream, SMALL, batch_size=100, train=True, augment="light"))
    (batch,) = batches
    times = Counter(batch.keys)
    assert len(batch) == 100 and max(times.values()) > 1
    twice = next(key for key, count in times.items() if count > 1)
    one, other = (batch.images[i] for i, key in enumerate(batch.keys) if key == twice and batch.keys[:i].count(key) < 2)
    assert not torch.equal(one, other)
    with pytest.raises(BadInput, match="epoch=100, but a pass has 24 samples: give at most that, or resampled"):
        open_dataset(f"wds:{pattern}?epoch=100")
    assert len(open_dataset(f"wds:{pattern}?epoch=10")) == 10
    assert [sample.key for sample in stream] == [f"{n:04d}" for n in range(24)], "looked at in their order, each once"


def test_train_and_val_by_pattern(pattern, tmp_path):
    write_shards(tmp_path, "val", count=1, size=5)
    spec = f"wds:{pattern}?val={tmp_path}/val-*.tar&resampled&epoch=40"
    train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
    assert (len(train), len(val)) == (40, 5) and not val.resampled
    assert len(open_dataset(f"wds:{tmp_path}/val-0.tar", "val")) == 5, "the name says that it is val"
    with pytest.raises(BadInput, match=r"is a stream with one split.*accepted: wds:PATTERN\?val=PATTERN"):
        open_dataset(f"wds:{pattern}", "val")


def test_limit_is_the_first_samples(pattern):
    few = open_dataset(f"wds:{pattern}", limit=8)
    assert [s.key for s in few] == [f"{n:04d}" for n in range(8)]
    (batch,) = loader(few, SMALL, batch_size=8, train=True)
    assert sorted(batch.keys) == [f"{n:04d}" for n in range(8)]


def test_a_limit_of_drawn_shards_may_be_more_than_they_hold(pattern):
    drawn = open_dataset(f"wds:{pattern}?resampled&epoch=100&buffer=3", "train", limit=30)
    keys = [key for batch in loader(drawn, SMALL, batch_size=10, train=True) for key in batch.keys]
    assert len(keys) == 30 and set(keys) == {f"{n:04d}" for n in range(24)}


def test_keys_that_come_in_several_shards_get_the_shards_name(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", numbered(range(2)))
    stream = open_dataset(f"wds:{tmp_path}/{{a,b}}.tar")
    assert [s.key for s in stream] == ["a/0000", "a/0001", "b/0000", "b/0001"] and "not unique" in stream.note


def test_names_json_and_several_labels(tmp_path):
    image = png(picture(1))
    write_shard(tmp_path / "n.tar", {"x/1.png": image, "x/1.cls": b"dog\n", "x/2.png": image, "x/2.cls": b"cat"})
    assert [s.target for s in open_dataset(f"wds:{tmp_path}/n.tar")] == [1, 0]
    payload = [json.dumps({"label": label, "id": 7}).encode() for label in (["b", "a"], ["a"], [])]
    members = {f"{n}.{end}": c for n, one in enumerate(payload) for end, c in (("png", image), ("json", one))}
    several = open_dataset(f"wds:{write_shard(tmp_path / 'j.tar', members)}")
    assert several.multi_label and several.classes == ["a", "b"]
    assert [s.target.tolist() for s in several] == [[1, 1], [1, 0], [0, 0]]
    (batch,) = loader(several, SMALL, batch_size=3)
    assert batch.targets.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert open_dataset(f"wds:{tmp_path}/j.tar?label=json.id").classes[-1] == "7"


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("ending", ["pyd", "pickle", "pth", "cls.pkl"])
def test_pickles_are_refused_unread(tmp_path, ending, capsys):
    members = {"0.png": png(picture(1)), "0.cls": b"0", f"0.{ending}": pickle.dumps(Evil())}
    write_shard(tmp_path / "p.tar", members)
    with pytest.raises(BadInput, match=rf"member '0\.{ending}' is a pickle, which can run code"):
        open_dataset(f"wds:{tmp_path}/p.tar")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"0.png": b"", "0.json": b"{}"}, "sample '0' has no label \\(it has png, json\\)"),
        ({"0.png": b"x", "0.cls": b"0", "1.png": b"x"}, "1 of 2 images have no cls member, '1'"),
        ({"0.cls": b"0"}, "holds no image"),
        ({"0.png": b"x", "0.cls": b"\xff"}, "sample '0': its cls member cannot be read"),
        ({"0.png": b"x", "0.json": b'{"label": {"a": 1}}'}, "sample '0': label {'a': 1}; accepted"),
        ({"0.png": b"x", "0.cls": b"0"}, "image '0' cannot be decoded"),
    ],
)
def test_shards_that_are_not_understood(tmp_path, members, text):
    write_shard(tmp_path / "s.tar", members)
    with pytest.raises(BadInput, match=text):
        open_dataset(f"wds:{tmp_path}/s.tar")


def test_captions_are_not_classes(tmp_path):
    image = png(picture(1))
    members = {f"{n}.{e}": c for n in range(60) for e, c in (("png", image), ("txt", f"a photo of {n}".encode()))}
    write_shard(tmp_path / "c.tar", members)
    with pytest.raises(BadInput, match="captions, not classes"):
        open_dataset(f"wds:{tmp_path}/c.tar")


def test_a_truncated_shard(pattern, tmp_path):
    whole = write_shard(tmp_path / "t.tar", numbered(range(3))).read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:1500])
    with pytest.raises(BadInput, match=r"shard t\.tar is damaged or no tar file"):
        open_dataset(f"wds:{tmp_path}/t.tar")
    (tmp_path / "u.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(BadInput, match=r"shard u\.tar is damaged or no tar file"):
        open_dataset(f"wds:{tmp_path}/u.tar")


def test_what_a_stream_cannot_do_is_said(pattern):
    for option in ("classes=1", "shots=2"):
        with pytest.raises(BadInput, match=f"{option.split('=')[0]} needs images that can be reached by row"):
            open_dataset(f"wds:{pattern}?{option}")


def test_bad_images_leave_their_batch_and_no_other(tmp_path):
    members = numbered(range(12))
    members["0004.png"] = members["0004.png"][:60]
    write_shard(tmp_path / "s.tar", members)
    stream = open_dataset(f"wds:{tmp_path}/s.tar?on_bad=skip")
    for workers in (0, 2):
        assert [len(b) for b in loader(stream, SMALL, batch_size=3, workers=workers)] == [3, 2, 3, 3]
    assert [bad.key for bad in stream.bad] == ["0004"], "named once, however often it was met"
    assert keys_of(loader(stream, SMALL, batch_size=3, skip=1))[0] == ["0003", "0005"]
    with pytest.raises(BadInput, match="image '0004' cannot be decoded"):
        list(loader(stream, SMALL, batch_size=3, on_bad="error"))


def test_what_else_a_sample_holds_is_said(tmp_path):
    members = {"0.png": png(picture(0)), "0.jpg": png(picture(1)), "0.cls": b"1", "0.json": b"{}"}
    stream = open_dataset(
        f"wds:{write_shard(tmp_path / 's.tar', {**members, '1.png': png(picture(2)), '1.cls': b'2'})}"
    )
    assert "labels are those of cls, not of json" in stream.note
    assert stream.left_out == {"further images of a sample, of which the first is taken": 1}


def test_vectors_of_0_and_1_are_no_lists_of_labels(tmp_path):
    def opened(*labels):
        held = {f"{i}.{end}": made for i, one in enumerate(labels) for end, made in
                (("png", png(picture(i))), ("json", json.dumps({"label": one}).encode()))}  # fmt: skip
        return open_dataset(f"wds:{write_shard(tmp_path / 's.tar', held)}")

    assert "every image has every label" in opened([0, 1], [1, 0]).note
    assert "every image" not in opened(["ab"], ["b", "ab"]).note
    with pytest.raises(BadInput, match=r"sample '1': its json member lists a label twice, \[0, 1, 0\]"):
        opened([1], [0, 1, 0])
