from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.data import open_dataset, tars
from leanvit.errors import BadInput
from pictures import picture, png
from shards import write_shard

pytest.importorskip("webdataset")
PNG = png(picture(1, (4, 4)))
QUICK = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def pairs(count: int) -> dict[str, bytes]:
    return {f"{n}.{e}": c for n in range(count) for e, c in (("png", PNG), ("cls", str(n % 2).encode()))}


def opened(path: Path):
    return open_dataset(f"wds:{path}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A shard of four samples, two blocks a member: 16 blocks, the end mark, and padding."""
    return write_shard(tmp_path_factory.mktemp("t") / "whole.tar", pairs(4)).read_bytes()


@pytest.mark.parametrize("blocks", range(17))
def test_a_shard_that_is_cut_at_any_block_is_refused(tmp_path, whole, blocks):
    (tmp_path / "t.tar").write_bytes(whole[: blocks * 512])
    with pytest.raises(BadInput, match=r"shard t\.tar is damaged or no tar file"):
        opened(tmp_path / "t.tar")


def test_the_end_mark_alone_is_enough(tmp_path, whole):
    (tmp_path / "t.tar").write_bytes(whole[: 18 * 512])
    assert len(list(opened(tmp_path / "t.tar"))) == 4
    (tmp_path / "t.tar").write_bytes(whole + whole)
    with pytest.raises(BadInput, match="there is data behind its end mark, as in tars that were joined"):
        opened(tmp_path / "t.tar")


@QUICK
@given(st.data())
def test_a_damaged_shard_is_whole_or_refused(tmp_path_factory, whole, data):
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    zipped = data.draw(st.booleans())
    content = bytearray(gzip.compress(whole, 1, mtime=0) if zipped else whole[: 18 * 512])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=1)):  # two may keep a tar's checksum
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        samples = list(opened(path))
    except BadInput:
        return
    assert sorted(sample.key for sample in samples) == ["0", "1", "2", "3"]


def test_compressed_shards_are_read_and_said(tmp_path, whole):
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(whole))
    stream = opened(tmp_path / "t.tar.gz")
    assert len(list(stream)) == 4 and stream.note == "compressed shards are unpacked in every pass"


def test_files_without_a_name_are_no_sample_in_a_compressed_shard(tmp_path):
    write_shard(tmp_path / "t.tar", {"a/.png": PNG, **pairs(2)})
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress((tmp_path / "t.tar").read_bytes()))
    for name in ("t.tar", "t.tar.gz"):
        assert [sample.key for sample in opened(tmp_path / name)] == ["0", "1"]


def special(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_and_devices_are_counted_and_never_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(special(tarfile.SYMTYPE, "0.png", str(tmp_path / "secret.png")))
        tar.addfile(special(tarfile.LNKTYPE, "1.png", "2.png"))
        tar.addfile(special(tarfile.FIFOTYPE, "3.png"))
        tar.addfile(special(tarfile.CHRTYPE, "4.png"))
        tar.addfile(special(tarfile.DIRTYPE, "folder"))
        for name, content in (*pairs(1).items(), ("7.cls", b"1"), ("8.mp4", b"x"), (".png", PNG), ("__meta__/x", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream = opened(path)
    assert [sample.key for sample in stream] == ["0"]
    assert stream.left_out == {"links": 2, "devices and pipes": 2, "samples without an image": 2}
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(PNG)
        tar.addfile(info, io.BytesIO(PNG))
        tar.addfile(special(tarfile.SYMTYPE, "0.cls", "x.cls"))
    with pytest.raises(BadInput, match="has no label"):
        opened(path)
    with pytest.raises(BadInput, match=r"1 of 1 images have no cls member, .*1 members are links, which are not"):
        open_dataset(f"wds:{path}?label=cls")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["0.png", "0.cls", "0.png"], "member '0.png': comes twice"),
        (["0.png", "0.PNG", "0.cls"], "member '0.PNG': comes twice"),
        (["0.png", "0.cls", "1.png", "1.cls", "0.png", "0.cls"], "sample '0' comes twice, or its members are not side"),
        (["0.png", "1.png", "0.cls", "1.cls"], "sample '0' comes twice, or its members are not side by side"),
        (["/a/0.png", "/a/0.cls", "../a/0.png"], "member '../a/0.png': comes twice"),
    ],
)
def test_keys_that_come_twice(tmp_path, names, text):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in names:
            content = PNG if name.lower().endswith("png") else b"0"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BadInput, match=rf"shard t\.tar: .*{re.escape(text)}"):
        open_dataset(f"wds:{tmp_path}/t.tar?label=cls")


def test_members_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MEMBER_BYTES", 2000)
    monkeypatch.setattr(tars, "LABEL_BYTES", 100)
    write_shard(tmp_path / "t.tar", {**pairs(2), "2.png": bytes(2001), "2.cls": b"0", "2.bin": bytes(9999)})
    with pytest.raises(BadInput, match=r"shard t\.tar: member '2\.png': has 2001 bytes; accepted: up to 2000"):
        opened(tmp_path / "t.tar")
    write_shard(tmp_path / "t.tar", {**pairs(2), "2.png": PNG, "2.cls": b"0" * 101, "2.json": bytes(101)})
    with pytest.raises(BadInput, match=r"sample '2': its cls member has 101 bytes: too large for a label"):
        opened(tmp_path / "t.tar")
    write_shard(tmp_path / "t.tar", {**pairs(2), "2.png": PNG, "2.cls": b"0", "2.json": bytes(101)})
    assert len(opened(tmp_path / "t.tar")) == 3, "the json is no label here"


def test_odd_names_become_keys_below_the_shard(tmp_path):
    names = ("/etc/0", "../../1", "a/../2", "./3")
    write_shard(tmp_path / "t.tar", {f"{n}.{e}": c for n in names for e, c in (("png", PNG), ("cls", b"0"))})
    assert [sample.key for sample in opened(tmp_path / "t.tar")] == ["etc/0", "1", "2", "./3"]


def test_empty_shards_are_counted(tmp_path):
    write_shard(tmp_path / "a.tar", pairs(2))
    write_shard(tmp_path / "b.tar", {})
    assert opened(tmp_path / "{b,a}.tar").left_out == {"shards without a sample": 1}
    with pytest.raises(BadInput, match=r"shard b\.tar holds no image"):
        opened(tmp_path / "b.tar")


def test_shards_of_one_name_in_two_folders(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "t.tar", pairs(1))
    assert [sample.key for sample in opened(tmp_path / "{a,b}" / "t.tar")] == ["a/t/0", "b/t/0"]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("a.tar", 1),
        ("{000..009}.tar", 10),
        ("{9..0..3}-{a,b}.tar", 20),
        ("{a..e}{x,{1..3}y{p,q}}.tar", 35),
        ("{}.tar", 1),
        ("{000000000..999999999}.tar", 10**9),
        ("{0..999999}{0..999999}.tar", 10**12),
        ("{0..%s}.tar" % ("9" * 5000), 10**18),
    ],
)
def test_the_names_of_a_pattern_are_counted_before_they_are_made(pattern, count):
    assert tars.count_braces(pattern) == count
    with pytest.raises(BadInput, match=f"names {count} shards; accepted: up to" if count > 10**5 else "do not exist"):
        open_dataset(f"wds:nowhere/{pattern}")


def test_a_pattern_that_is_none():
    with pytest.raises(BadInput, match=r"is no pattern of shards|do not exist"):
        open_dataset("wds:nowhere/{0..3.tar")
