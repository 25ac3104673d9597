"""One table of odd labels: every source gives the same classes and targets, or refuses them at the place they stand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.data import Stream, open_dataset
from leanvit.data import labels as labelling
from leanvit.errors import BadInput
from pictures import picture, png
from shards import write_shard

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")

PNG = png(picture(1, (8, 8)))


class Inexpressible(Exception):
    """A source has no way to write such a label."""


def images(root: Path, count: int) -> list[str]:
    for row in range(count):
        (root / f"{row}.png").write_bytes(PNG)
    return [f"{row}.png" for row in range(count)]


def as_folder(root: Path, labels: list[Any]) -> str:
    for row, label in enumerate(labels):
        text = str(label)
        if not isinstance(label, str | int) or labelling.label_text(label) != text:
            raise Inexpressible("a folder's name is a name as it is written")
        (root / text).mkdir(parents=True, exist_ok=True)
        (root / text / f"{row}.png").write_bytes(PNG)
    return str(root)


def as_text(label: Any) -> str:
    return "" if label is None else str(label)


def as_csv(root: Path, labels: list[Any]) -> str:
    with (root / "t.csv").open("w", newline="") as stream:
        rows = zip(images(root, len(labels)), map(as_text, labels), strict=True)
        csv.writer(stream).writerows([("image", "label"), *rows])
    return f"{root}/t.csv?separator=none"


def as_list(root: Path, labels: list[Any]) -> str:
    texts = list(map(as_text, labels))
    if any("\n" in text for text in texts):
        raise Inexpressible("a label of a list ends with its line")
    rows = zip(images(root, len(labels)), texts, strict=True)
    (root / "l.txt").write_text("".join(f"{path}\t{text}\n" for path, text in rows))
    return f"list:{root}/l.txt?separator=none"


def as_table(labels: list[Any]) -> Any:
    rows = [{"bytes": PNG, "path": f"{row}.png"} for row in range(len(labels))]
    return pa.table({"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": labels})


def as_parquet(root: Path, labels: list[Any]) -> str:
    pq.write_table(as_table(labels), root / "photos.parquet", row_group_size=2)
    return f"{root}/photos.parquet"


def as_shard(root: Path, labels: list[Any]) -> str:
    members = {}
    for row, label in enumerate(labels):
        if all(isinstance(one, str) for one in labels):
            members |= {f"{row}.png": PNG, f"{row}.cls": label.encode()}
        else:
            members |= {f"{row}.png": PNG, f"{row}.json": json.dumps({"label": label}).encode()}
    return f"wds:{write_shard(root / 's.tar', members)}"


def as_hub(root: Path, labels: list[Any]) -> str:
    datasets.Dataset(as_table(labels)).save_to_disk(root / "hub")
    return f"hf:{root}/hub"


def as_hub_stream(root: Path, labels: list[Any]) -> str:
    return f"{as_hub(root, labels)}?streaming"


SOURCES = {  # how to write labels, and where the second of them stands
    "folder": (as_folder, ""),
    "csv": (as_csv, r"t\.csv line 3"),
    "list": (as_list, r"l\.txt line 2"),
    "parquet": (as_parquet, r"photos\.parquet row 1, image '1\.png'"),
    "shards": (as_shard, r"shard s\.tar, sample '1'"),
    "hf": (as_hub, "all row 1"),
    "hf streaming": (as_hub_stream, "all row 1"),
}
REFUSED = [  # labels, of which the second is odd, and what is said of it
    (["a", "", "b"], r"label '' is empty|is no `path label`"),
    (["a", "  ", "b"], r"is (empty|blank)|is no `path label`"),
    (["a", None, "b"], r"label (None is missing|'' is empty)|is no `path label`"),
    ([0, None, 1], r"label (None|nan) is missing|'' is empty|is no `path label`"),
    (["0", "-1", "1"], "label '-1' is a negative number"),
    ([0, -1, 1], "label '-1' is a negative number"),
    ([0.0, 1.5, 1.0], r"label ('1\.5'|1\.5) is a number with a fraction"),
    (["0", "1.5", "1"], r"label '1\.5' is a number with a fraction"),
    ([0.0, math.nan, 1.0], "label ('nan'|nan) is (missing|no number)"),
    (["a", "nan", "b"], "label 'nan' is no number and no name"),
    (["1", "9" * 5000, "2"], "label '9+'… has 5000 characters"),
    (["a", "x" * 256, "b"], "has 256 characters"),
    (["a", "b\nc", "d"], r"control character U\+000A|is a quotation mark left open"),
    (["a", "b\x07c", "d"], r"control character U\+0007"),
    (["a", "b\u2028c", "d"], r"control character U\+2028"),
    (["1", "01", "2"], "'0?1' and '0?1' are one number in two spellings"),
]
READ = [  # labels, classes, targets
    (["2", "10", "1"], ["1", "2", "10"], [1, 2, 0]),
    ([2, 10, 1], ["1", "2", "10"], [1, 2, 0]),
    ([7, 0, 3, 7], ["0", "3", "7"], [2, 0, 1, 2]),
    ([5, 10**9, 0], ["0", "5", "1000000000"], [1, 2, 0]),
    (["2", "ten", "10"], ["10", "2", "ten"], [1, 2, 0]),
    (["00", "10", "02"], ["00", "02", "10"], [0, 2, 1]),
    (["١", "2", "10"], ["10", "2", "١"], [2, 1, 0]),
    ([1.0, 0.0, 10.0], ["0", "1", "10"], [1, 0, 2]),
    (["1.0", "0", "2."], ["0", "1", "2"], [1, 0, 2]),
    ([True, False, True], ["False", "True"], [1, 0, 1]),
    ([" cat", "dog ", "cat"], ["cat", "dog"], [0, 1, 0]),
    (["tabby cat", 'say "cheese"', "b, c; d|e"], ["b, c; d|e", 'say "cheese"', "tabby cat"], [2, 1, 0]),
    (["Zebra", "ant", "Ähre", "none"], ["Zebra", "ant", "none", "Ähre"], [0, 1, 3, 2]),
    (["1e3", "+-", "1-2", "2020-01-02"], ["+-", "1-2", "1e3", "2020-01-02"], [2, 0, 1, 3]),
]


def written(source: str, root: Path, labels: list[Any]) -> str:
    try:
        return SOURCES[source][0](root, labels)
    except (Inexpressible, BadInput) as reason:  # a folder's name that is no label
        pytest.skip(f"{source}: {reason}")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("labels", "classes", "targets"), READ, ids=range(len(READ)))
def test_labels_that_are_read(tmp_path, source, labels, classes, targets):
    dataset = open_dataset(written(source, tmp_path, labels))
    assert dataset.classes == classes
    held = sorted((Path(sample.key).stem, sample.target) for sample in dataset)
    assert held == [(str(row), target) for row, target in enumerate(targets)]
    assert (
        not dataset.multi_label
        and not dataset.left_out
        and isinstance(dataset, Stream) == (source in ("shards", "hf streaming"))
    )


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("labels", "text"), REFUSED, ids=range(len(REFUSED)))
def test_labels_that_are_refused(tmp_path, source, labels, text):
    with pytest.raises(BadInput, match=rf"{SOURCES[source][1]}.*({text})"):
        open_dataset(written(source, tmp_path, labels))


@pytest.mark.parametrize("source", SOURCES)
def test_more_classes_than_are_accepted(tmp_path, source, monkeypatch):
    monkeypatch.setattr(labelling, "MOST_CLASSES", 2)
    with pytest.raises(BadInput, match="more than 2 different labels"):
        open_dataset(written(source, tmp_path, ["a", "b", "c"]))


@pytest.mark.parametrize(
    "kind",
    ["uint8", "uint64", "int8", "float32", "string", "large_string", "dictionary", "int dictionary", "decimal"],
)
def test_types_of_label_columns(tmp_path, kind):
    values = [2, 10, 1]
    if kind in ("string", "large_string"):
        column = pa.array(map(str, values), getattr(pa, kind)())
    elif kind.endswith("dictionary"):
        column = pa.array(values if kind.startswith("int") else [str(v) for v in values]).dictionary_encode()
    else:
        column = pa.array(values, pa.int64()).cast(pa.decimal128(22, 2) if kind == "decimal" else getattr(pa, kind)())
    pq.write_table(as_table(column), tmp_path / "photos.parquet")
    dataset = open_dataset(tmp_path / "photos.parquet")
    assert dataset.classes == ["1", "2", "10"] and dataset.targets.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ([b"a", b"b"], "label column 'label' is of type binary; accepted: one text or whole number"),
        ([[1], [2]], "label column 'label' is of type list"),
        ([{"a": 1}, {"a": 2}], "label column 'label' is of type struct"),
        ([None, None], "row 0, image '0.png': label None is missing"),
    ],
)
def test_types_that_hold_no_label(tmp_path, column, text):
    with pytest.raises(BadInput, match=text):
        open_dataset(as_parquet(tmp_path, column))
    (tmp_path / "h").mkdir()
    with pytest.raises(BadInput, match=text.replace("photos.parquet ", "").partition(", image")[0]):
        open_dataset(as_hub(tmp_path / "h", column))


def test_a_folder_and_its_table_number_the_classes_alike(tmp_path):
    folder = open_dataset(as_folder(tmp_path / "digits12", list(range(12))))
    (tmp_path / "t.csv").write_text(
        "image,label\n" + "".join(f"digits12/{n}/{n}.png,{n}\n" for n in reversed(range(12)))
    )
    table = open_dataset(tmp_path / "t.csv")
    assert table.classes == folder.classes == [str(n) for n in range(12)]
    assert {s.key.removeprefix("digits12/"): s.target for s in table} == {s.key: s.target for s in folder}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(st.sampled_from("ab0019.- é\x07"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_random_labels_are_the_same_to_every_source(tmp_path_factory, labels):
    answers = set()
    for name in ("csv", "list", "parquet", "shards"):
        try:
            dataset = open_dataset(SOURCES[name][0](tmp_path_factory.mktemp(name), labels))
        except BadInput:
            answers.add("refused")
        else:
            answers.add(tuple(dataset.classes[sample.target] for sample in dataset))
    assert len(answers) == 1
