"""Shards by index: order and bits of a walk through the tars, no byte too many, and every fault of an index."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leanvit.data import Preprocess, Values, loader, open_dataset, shard_index, stored, tars
from leanvit.data.loading import _Fetch
from leanvit.data.progress import Progress, shown_by
from leanvit.data.shard_index import Indexes
from leanvit.data.stored import index_path
from leanvit.data.stream import Encoded, Stream
from leanvit.errors import BadInput
from pictures import picture, png
from shards import exchange, numbered, rewrite_index, write_shard, write_shards

pytest.importorskip("webdataset")
pa = pytest.importorskip("pyarrow")
SMALL = Preprocess((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), "s", count=3, size=20)


@pytest.fixture
def shard(tmp_path) -> Path:
    """One shard of twelve samples with its index, opened before."""
    write_shards(tmp_path, "s", count=1, size=12)
    opened(tmp_path / "s-0.tar")
    return tmp_path / "s-0.tar"


def opened(path: Path | str, **more) -> Stream:
    return open_dataset(f"wds:{path}", **more)


def keys(stream: Stream) -> list[str]:
    return [item.key for item in stream.pass_over()]


# --- order and bits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walked:
    """A shard that is read from front to back by tarfile: what a pass over it was before there were indexes."""

    path: Path
    name: str

    def __iter__(self) -> Iterator[Encoded]:
        with tarfile.open(self.path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (one for one in contents if one.endswith(".png")):
            key = name.removesuffix(".png")
            yield Encoded(contents[name], int(contents[f"{key}.cls"]), key)


def walked(stream: Stream) -> Stream:
    return replace(stream, parts=tuple(Walked(part.index.path, part.name) for part in stream.parts))


CASES = {  # options, arguments of the loader, and the digest of keys, targets and views as they were without an index
    "exact": ("?buffer=7", {"train": True, "seed": 1, "epoch": 2}, "801d10f8b311dfd6"),
    "resampled": ("?resampled&epoch=90&buffer=9", {"train": True, "seed": 3}, "bce0490a7255177b"),
    "views": ("?buffer=7", {"train": True, "seed": 1, "repeats": 3}, "9624a7fd68c43f4d"),
    "share": ("?buffer=7", {"train": True, "seed": 1, "share": (1, 2), "skip": 2}, "7c6074545d86399f"),
    "stored": ("", {"skip": 1}, "7f61ac132b8c900e"),
}


@pytest.mark.parametrize("name", CASES)
def test_order_and_bits_are_those_of_a_walk_through_the_shards(pattern, name):
    options, more, digest = CASES[name]
    stream = opened(pattern + options)
    augment = "light" if "train" in more else None
    batches = list(loader(stream, SMALL, batch_size=8, augment=augment, **more))
    others = loader(walked(stream), SMALL, batch_size=8, augment=augment, workers=1, **more)
    for batch, other in zip(batches, others, strict=True):
        assert (batch.keys, batch.views) == (other.keys, other.views)
        assert torch.equal(batch.images, other.images) and torch.equal(batch.targets, other.targets)
    said = (zip(b.keys, b.targets.tolist(), b.views or [0] * len(b), strict=True) for b in batches)
    text = ";".join(",".join(f"{key}:{target}:{view}" for key, target, view in batch) for batch in said)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_compressed_and_plain_shards_together(tmp_path):
    write_shards(tmp_path, "s", count=3, size=7)
    (tmp_path / "s-1.tar.gz").write_bytes(gzip.compress((tmp_path / "s-1.tar").read_bytes()))
    stream = opened(f"{tmp_path}/s-{{0.tar,1.tar.gz,2.tar}}?buffer=4")
    for one, other in ((stream, walked(stream)), (stream.limited(10), walked(stream).limited(10))):
        assert [item.key for item in one.epoch(seed=1, epoch=0)] == [item.key for item in other.epoch(seed=1, epoch=0)]
    assert [sample.target for sample in stream] == [number % 3 for number in range(21)]


def test_limited_streams_and_fields_by_key(pattern):
    few = opened(pattern, limit=25)
    assert keys(few) == [f"{number:04d}" for number in range(25)]
    values = Values([float(number) for number in range(60)], keys=[f"{number:04d}" for number in range(60)])
    with_values = few.with_field("value", values)
    (batch,) = loader(with_values, SMALL, batch_size=25, train=True, workers=1)
    assert batch["value"].tolist() == [float(key) for key in batch.keys]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_odd_names(tmp_path, kind):
    names = ["a" * 150, "ä/ß", "b\udcff", "x/../y"]
    with tarfile.open(tmp_path / "t.tar", "w", format=kind) as tar:
        for number, name in enumerate(names):
            for ending, content in (("PNG", png(picture(number))), ("cls", str(number).encode())):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size, info.mtime = len(content), 1.5  # a fraction needs an extended header
                tar.addfile(info, io.BytesIO(content))
    samples = list(opened(tmp_path / "t.tar"))
    assert [sample.key for sample in samples] == [*names[:3], "y"] and [s.target for s in samples] == [0, 1, 2, 3]
    assert all(np.array_equal(sample.image, picture(number)) for number, sample in enumerate(samples))


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
def test_sparse_members_are_read_from_front_to_back(tmp_path):
    (tmp_path / "0.cls").write_bytes(b"a" + bytes(2**18) + b"\n")
    for name, content in numbered(range(1, 3)).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "9.mp4").touch()
    os.truncate(tmp_path / "9.mp4", 2**20)
    files = ["0001.png", "0001.cls", "9.mp4", "0002.png", "0002.cls"]
    subprocess.run(["tar", "-S", "-cf", "t.tar", *files], cwd=tmp_path, check=True)
    stream = opened(tmp_path / "t.tar")
    assert stream.note == "shards with sparse members are read from front to back"
    assert [(sample.key, sample.target) for sample in stream] == [("0001", 0), ("0002", 1)]
    assert keys(opened(tmp_path / "t.tar")) == ["0001", "0002"]


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, int, int]]:
    """(shard, offset, bytes) of all that is read of shards by an index; a walk through one fails."""
    found = []

    def counted(self, offset, count):
        found.append((self.path.name, offset, count))
        return read(self, offset, count)

    def walk(*args, **more):
        raise AssertionError("a shard is walked through")

    read = stored.ShardFile.read
    monkeypatch.setattr(stored.ShardFile, "read", counted)
    monkeypatch.setattr(tars, "members", walk)
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """Eight shards of 250 samples, with their indexes."""
    pattern = write_shards(tmp_path_factory.mktemp("large"), "s", count=8, size=250)
    opened(pattern)
    return pattern


def test_processes_read_their_own_samples_and_a_resume_what_is_left(large, reads):
    stream = opened(large)
    assert len(stream) == 2000 and len(reads) <= 16, "some pictures are looked at, which gives channels and sizes"
    sizes = [path.stat().st_size for path in Path(large).parent.glob("*.tar")]
    of_process = []
    for number in (0, 1):
        reads.clear()
        batches = list(loader(stream, SMALL, batch_size=64, train=True, share=(number, 2)))
        assert sum(map(len, batches)) == len(reads) == 1000
        of_process.append(set(reads))
    assert not of_process[0] & of_process[1], "no sample is read by both"
    assert sum(count for one in of_process for _, _, count in one) < sum(sizes)
    reads.clear()
    first = [batch.keys for batch, _ in zip(loader(stream, SMALL, batch_size=64, train=True), range(16), strict=False)]
    before = set(reads[: 16 * 64])
    reads.clear()
    rest = [batch.keys for batch in loader(stream, SMALL, batch_size=64, train=True, skip=16)]
    assert len(reads) == 2000 - 16 * 64 and not before & set(reads), "what was consumed is not read again"
    assert len({key for batch in (*first, *rest) for key in batch}) == 2000


def test_what_a_worker_is_sent_holds_no_shard(large):
    stream = opened(large)
    assert len(pickle.dumps(_Fetch.of(loader(stream, SMALL, batch_size=4)))) < 10_000
    item = next(stream.pass_over())
    again = pickle.loads(pickle.dumps(item))
    assert np.array_equal(stream.read(again).image, picture(0)), "it is read where it arrives"


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_opened", functools.lru_cache(maxsize=2)(stored._opened.__wrapped__))
    stream = opened(write_shards(tmp_path, "s", count=8, size=2))
    before = len(os.listdir("/proc/self/fd"))
    assert len(list(stream)) == 16 and len(os.listdir("/proc/self/fd")) <= before + 2


def test_long_labels_are_read_from_the_shard(tmp_path):
    labels = [{"text": "x" * shard_index.TEXT_BYTES, "label": name} for name in ("dog", "cat")]
    members = {
        f"{n}.{end}": c
        for n in (0, 1)
        for end, c in (("png", png(picture(n))), ("json", json.dumps(labels[n]).encode()))
    }
    path = write_shard(tmp_path / "t.tar", members)
    for _ in range(2):
        stream = opened(path)
        assert [sample.target for sample in stream] == [1, 0]
    assert index_path(path).stat().st_size < shard_index.TEXT_BYTES


def test_the_index_has_every_member_of_a_sample(tmp_path):
    members = {"0.mask.png": b"m", "0.png": png(picture(0)), "0.cls": b"1", "1.npy": b"alone", "2.png": png(picture(2))}
    path = write_shard(tmp_path / "t.tar", {**members, "2.cls": b"0", "0.mp4": b"apart", "2.mask.PNG": b"n"})
    for _ in range(2):  # made, and read again
        index = Indexes().of(path)
        assert sorted(index.endings) == ["cls", "mask.png", "mp4", "png"] and index.keys.to_pylist() == [b"0", b"2"]
        assert [one.read_bytes() for one in index.stored(index.members("mask.png"))] == [b"m", b"n"]
        mp4 = index.members("mp4")
        assert mp4[1] == -1 and index.stored(mp4[:1])[0].read_bytes() == b"apart"
        assert index.left_out == {"samples without an image": 1}
    with tarfile.open(path, "a") as tar:
        tar.add(__file__, arcname="0.mp4")
    with pytest.raises(BadInput, match=r"shard t\.tar: sample '0' has two mp4 members"):
        Indexes().of(path).members("mp4")


# --- faults -----------------------------------------------------------------------------------------------------------


def column(name, edit):
    def change(columns, about):
        values = columns[name].to_numpy().copy()
        edit(values)
        columns[name] = pa.array(values)

    return change


def set_at(place, value):
    def edit(values):
        values[place] = value

    return edit


def sample_numbers(numbers):
    def change(columns, about):
        keys = columns["key"].dictionary
        columns["key"] = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), keys, safe=False)

    return change


def as_text(columns, about):
    columns["size"] = columns["size"].cast(pa.string())


def pickled(columns, about):
    columns["ending"] = pa.DictionaryArray.from_arrays(
        columns["ending"].indices, pa.array([b"png", b"pkl"], pa.large_binary())
    )


def missing(columns, about):
    columns["header"] = pa.array([None, *columns["header"].to_pylist()[1:]], pa.int64())


UNFIT = {
    "beyond the end": (column("data", set_at(3, 2**40)), "does not fit its shard"),
    "before the start": (column("header", set_at(0, -512)), "does not fit its shard"),
    "overflowing": (column("data", set_at(0, -(2**63))), "does not fit its shard"),
    "between blocks": (column("header", set_at(2, 100)), "does not fit its shard"),
    "too large": (column("size", set_at(0, 2**62)), "does not fit its shard"),
    "negative size": (column("size", set_at(0, -1)), "does not fit its shard"),
    "samples apart": (sample_numbers([*range(12), *range(12)]), "does not fit its shard"),
    "a sample too many": (sample_numbers([99] * 24), "is damaged"),
    "negative sample": (sample_numbers([-1, *[0] * 23]), "is damaged"),
    "sample without members": (sample_numbers([0] * 24), "does not fit its shard"),
    "numbers as text": (as_text, "is damaged"),
    "a pickle": (pickled, "does not fit its shard"),
    "a number missing": (missing, "does not fit its shard"),
    "another size of the shard": (lambda columns, about: about.update(size=1), "was made before its shard was changed"),
    "another time of the shard": (
        lambda columns, about: about.update(mtime_ns=1),
        "was made before its shard was changed",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_index_that_does_not_fit_is_made_anew(shard, name):
    change, reason = UNFIT[name]
    rewrite_index(shard, change)
    stream = opened(shard)
    assert stream.note == f"indexes were made anew: s-0.tar.index {reason}"
    assert keys(stream) == [f"{number:04d}" for number in range(12)]
    assert opened(shard).note == "", "the new one fits"


def test_an_index_that_is_changed_lawfully_is_used(shard):
    rewrite_index(shard, lambda columns, about: None)
    assert opened(shard).note == ""


def test_a_damaged_index_is_made_anew(shard):
    whole = index_path(shard).read_bytes()
    for place in [*range(0, 300, 7), *range(300, len(whole), 97)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        index_path(shard).write_bytes(damaged)
        if bytes(damaged[:256]).split() == whole[:256].split():
            continue  # a blank
        assert keys(opened(shard)) == [f"{number:04d}" for number in range(12)]
    for length in (0, 10, 255, 256, 300, len(whole) - 1):
        index_path(shard).write_bytes(whole[:length])
        assert opened(shard).note == "indexes were made anew: s-0.tar.index is damaged"


def test_an_index_of_a_later_format_is_made_anew(shard):
    head = json.dumps({"kind": shard_index.KIND, "format": 2, "sha256": "0" * 64}).ljust(255).encode() + b"\n"
    index_path(shard).write_bytes(head + b"of another kind")
    assert opened(shard).note == "indexes were made anew: s-0.tar.index has format 2, and this leanvit reads up to 1"


def test_an_index_that_is_older_than_its_shard_is_made_anew(shard):
    time = shard.stat().st_mtime_ns
    os.utime(index_path(shard), ns=(time, time))
    assert opened(shard).note == "indexes were made anew: s-0.tar.index was made before its shard was changed"


def test_an_index_that_points_at_another_member(shard):
    rewrite_index(shard, exchange(20, 22))
    stream = opened(shard, on_bad="skip")
    says = (
        r"shard .*s-0\.tar: at byte \d+ there is no member 0010\.png of \d+ bytes, which its index places there; "
        r"delete .*s-0\.tar\.index"
    )
    with pytest.raises(BadInput, match=says):
        list(loader(stream, SMALL, batch_size=4, workers=1))
    index_path(shard).unlink()
    assert len(list(opened(shard))) == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_replaced_during_an_epoch(shard, workers):
    stream = opened(shard, on_bad="skip")
    batches = iter(loader(stream, SMALL, batch_size=4))
    next(batches)
    write_shard(shard, numbered(range(12, 30)))
    with pytest.raises(BadInput, match=r"shard .*s-0\.tar was changed while it was in use"):
        list(batches)
    with pytest.raises(BadInput, match=r"shard .*s-0\.tar was changed while it was in use"):
        list(loader(stream, SMALL, batch_size=4, workers=workers))
    shard.unlink()
    with pytest.raises(BadInput, match=r"shard .*s-0\.tar (cannot be read|was changed)"):
        list(loader(stream, SMALL, batch_size=4, workers=workers))


def test_a_compressed_shard_that_is_replaced(tmp_path):

    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(write_shard(tmp_path / "t.tar", numbered(range(12))).read_bytes()))
    stream = opened(path)
    assert keys(stream) == keys(opened(path)) and stream.note == "compressed shards are unpacked in every pass"
    path.write_bytes(gzip.compress(write_shard(tmp_path / "t.tar", numbered(range(12, 24))).read_bytes()))
    with pytest.raises(BadInput, match=r"shard t\.tar\.gz was changed while it was in use"):
        keys(stream)


def test_a_folder_that_cannot_be_written(tmp_path):
    path = write_shard(tmp_path / "t.tar", numbered(range(3)))
    index_path(path).mkdir()  # nothing can take its place
    for _ in range(2):
        stream = opened(path)
        assert stream.note.startswith("no index can be kept beside the shards (Is a directory): each opening reads")
        assert len(list(stream)) == 3
    assert {one.name for one in tmp_path.iterdir()} == {"t.tar", "t.tar.index"}


def test_files_that_may_not_be_read(shard, monkeypatch):
    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_index, "_content", denied)
    assert opened(shard).note.endswith("s-0.tar.index cannot be read (Permission denied)")
    monkeypatch.setattr(tarfile, "open", denied)
    with pytest.raises(BadInput, match=r"shard s-0\.tar cannot be read: Permission denied"):
        opened(shard)


def test_a_shard_from_the_future(shard):
    later = shard.stat().st_mtime_ns + 3600 * 10**9
    os.utime(shard, ns=(later, later))
    for _ in range(2):
        assert opened(shard).note.endswith("is no newer than its shard, whose time of change lies in the future")


def test_a_shard_whose_name_is_no_utf_8(tmp_path):
    path = write_shard(tmp_path / "s-\udcff.tar", numbered(range(3)))
    for _ in range(2):  # made, then read
        stream = opened(tmp_path / "s-*.tar")
        assert len(list(stream)) == 3 and not stream.note
    os.utime(path)
    assert "s-\udcff.tar.index was made before its shard was changed" in opened(tmp_path / "s-*.tar").note


def test_several_at_once(tmp_path):
    pattern = write_shards(tmp_path, "s", count=4, size=5)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: keys(opened(pattern)), range(3)))
    for index in tmp_path.glob("*.index"):
        index.unlink()
    with multiprocessing.get_context("fork").Pool(2) as processes:
        found += processes.map(_keys_of, [pattern] * 2)
    assert all(one == [f"{number:04d}" for number in range(20)] for one in found)
    assert opened(pattern).note == "" and not list(tmp_path.glob(".*")), "nothing half written is left"


def _keys_of(pattern: str) -> list[str]:
    return keys(opened(pattern))


def test_an_interrupt_keeps_the_indexes_that_are_done(tmp_path, monkeypatch):
    pattern = write_shards(tmp_path, "s", count=4, size=5)
    walked = []

    def interrupted(path, *args, **more):
        walked.append(path.name)
        if len(walked) == 3:
            raise KeyboardInterrupt
        return members(path, *args, **more)

    members = tars.members
    monkeypatch.setattr(tars, "members", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(pattern)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == ["s-0.tar.index", "s-1.tar.index"]
    assert len(opened(pattern)) == 20 and walked[3:] == ["s-2.tar", "s-3.tar"]
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_changes_while_it_is_indexed(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "t.tar", numbered(range(3)))

    def growing(*args, **more):
        yield from members(*args, **more)
        os.utime(path, ns=(1, 1))

    members = tars.members
    monkeypatch.setattr(tars, "members", growing)
    with pytest.raises(BadInput, match=r"shard t\.tar was changed while it was indexed"):
        opened(path)
    assert not index_path(path).exists()


def test_progress_goes_to_whoever_shows_it(tmp_path, monkeypatch):
    from contextlib import contextmanager

    monkeypatch.setattr(shard_index, "_SAID", 4)
    said, counts = [], []

    @contextmanager
    def meter(what, total):
        counts.append((what, total))
        yield counts.append

    path = write_shard(tmp_path / "t.tar", {**numbered(range(3)), "9.bin": bytes(3 * 2**20), "10.bin": bytes(2**20)})
    with shown_by(Progress(said.append, meter)):
        opened(path)
        opened(path)
    assert said == [f"data: indexing shards; each index is kept beside its shard, the first is {path}.index"]
    assert counts == [("indexing, MiB", 4), 1, 3, 4]
    assert opened(f"{tmp_path}/t*").parts[0].name == "t.tar", "a pattern does not take an index for a shard"
