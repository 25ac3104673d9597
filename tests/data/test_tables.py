from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.data import open_dataset
from leanvit.data.labels import label_text
from leanvit.errors import BadInput
from pictures import picture, png

QUICK = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images 0.png to 11.png, `b.jpg` beside `b.png`."""
    root = tmp_path_factory.mktemp("tables")
    for name in (*range(12), "b"):
        (root / f"{name}.png").write_bytes(png(picture(1, (8, 8))))
    picture(1, (8, 8)).save(root / "b.jpg")
    return root


def opened(folder: Path, table: str | bytes, options: str = "", name: str = "t.csv"):
    (folder / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return open_dataset(f"{folder}/{name}{options}")


def test_a_stray_quote_swallows_no_rows(folder):
    rows = [f"{n}.png,{'ab'[n % 2]}" for n in range(12)]
    for column, line in ((0, 4), (1, 4)):
        broken = [*rows]
        cells = broken[2].split(",")
        cells[column] = '"' + cells[column]
        broken[2] = ",".join(cells)
        for close in ("", '"', 'x"'):  # never closed, closed by a later stray one
            again = [*broken[:-3], broken[-3] + close, *broken[-2:]]
            with pytest.raises(BadInput, match=rf"t\.csv lines? {line}\b.*quotation mark"):
                opened(folder, "\n".join(["image,label", *again]))


def test_a_stray_quote_in_another_column(folder):
    text = 'image,label,note\n0.png,a,"x\n1.png,b,y\n2.png,a,z"\n3.png,b,w\n'
    with pytest.raises(BadInput, match=r"line 2: the value of column 'note' holds 3 lines"):
        opened(folder, text)
    several = opened(folder, 'image,label,note\n0.png,a,"two\nlines, and more"\n1.png,b,"say ""x"""\n')
    assert len(several) == 2 and several.targets.tolist() == [0, 1]


UNCERTAIN = "image,haze,water,fold\n0.png,1.0,0.0,0\n1.png,,TRUE,1\n2.png,-1.0,false,1\n3.png,0,nan,0\n"


@pytest.mark.parametrize(
    ("policy", "targets"),
    [
        ("negative", [[1, 0], [0, 1], [0, 0], [0, 0]]),
        ("positive", [[1, 0], [1, 1], [1, 0], [0, 1]]),
        ("skip", [[1, 0]]),
    ],
)
def test_uncertain_cells_follow_the_policy(folder, policy, targets):
    dataset = opened(folder, UNCERTAIN, f"?uncertain={policy}")
    assert dataset.classes == ["haze", "water"] and dataset.targets.tolist() == targets
    assert dataset.left_out == ({"lines with an uncertain label": 3} if policy == "skip" else {})
    assert dataset.note.split("; ")[0] == "columns that are no label: fold"
    with pytest.raises(BadInput, match=r"t\.csv line 3: column 'haze' is blank; accepted: 0 and 1, or uncertain="):
        opened(folder, UNCERTAIN)


def test_lines_without_a_label_can_be_skipped(folder):
    text = "image,label\n0.png,a\n1.png,\n2.png,-1\n3.png,b\n"
    dataset = opened(folder, text, "?uncertain=skip")
    assert dataset.targets.tolist() == [0, 1] and dataset.left_out == {"lines without a label": 2}
    with pytest.raises(BadInput, match=r"line 3: label '' is empty"):
        opened(folder, text)
    with pytest.raises(BadInput, match="uncertain=positive is for several columns"):
        opened(folder, text, "?uncertain=positive")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("image;label\n0.png;a\n1.png;b\n", "columns are separated by ';'"),
        ("image|label\n0.png|a\n1.png|b\n", "columns are separated by '|'"),
        ("image\tlabel\n0.png\ta\n1.png\tb\n", "columns are separated by tabs"),
        ("sep=;\nimage;label\n0.png;a\n1.png;b\n", ""),
        ("\n\nimage,label\n0.png,a\n\n,\n1.png,b\n", ""),
        ("\ufeffimage,label\r\n0.png,a\r\n1.png,b\r\n", ""),
        ("image,label\r0.png,a\r1.png,b", ""),
        ('"image","label"\n"0.png","a"\n"1.png","b"\n', ""),
        ("Image Name,LABEL\n0.png,a\n1.png,b\n", ""),
        ("ID,Label\n0,a\n1,b\n", "images are those of column 'ID'; 2 paths have no ending: the image of that name"),
        ("picture,label\n0.png,a\n1.png,b\n", "images are those of column 'picture'"),
        (",image,label\n0,0.png,a\n1,1.png,b\n", ""),
        ("image,label,target\n0.png,a,x\n1.png,b,y\n", "labels are those of column 'label', not of target"),
        ("image,label,is_valid\n0.png,a,0\n1.png,b,1\n", "not used: is_valid (only a column named split decides"),
    ],
)
def test_tables_of_every_kind(folder, text, note):
    dataset = opened(folder, text)
    assert dataset.keys == ("0.png", "1.png") and dataset.classes == ["a", "b"] and dataset.targets.tolist() == [0, 1]
    assert dataset.note.startswith(note) and bool(note) == bool(dataset.note)


@pytest.mark.parametrize("column", ["split2", "fold", "is_valid", "Is Test", "Unnamed: 0", "index", "width", "id", ""])
def test_what_is_plainly_no_label_is_not_trained_as_one(folder, column):
    dataset = opened(folder, f"image,a,b,{column}\n0.png,1,0,0\n1.png,0,1,1\n")
    expected = ["a", "b", "split2"] if column == "split2" else ["a", "b"]
    assert dataset.classes == expected
    if column != "split2":
        assert f"columns that are no label: {column or '(without a name)'}" == dataset.note.split("; ")[0]
        assert dataset.note.endswith("every image has exactly one of the labels; they are trained as independent ones")
        with pytest.raises(BadInput, match="no label column"):
            opened(folder, f"image,{column}\n0.png,0\n1.png,1\n")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"t\.csv: the first line must name each column once; it is empty"),
        ("image,label\n", r"t\.csv: there is no line below the first"),
        ("0.png,a\n1.png,b\n", "the first line must name the columns; it names an image, '0.png'"),
        ("image,label\n0.png,a,c\n", "line 2: 3 values for 2 columns"),
        ("image,label\n0.png,a\n\n1.png\n", "line 4: 1 values for 2 columns"),
        ("image,label\n0.png,a\n,b\n", "line 3: no path in column 'image'"),
        ("image,label\n0.png,a\n1.png,b\0\n", r"t\.csv line 3: holds a NUL byte"),
        ("image,label\n0.png,a\n1.png,é\n".encode("latin-1"), r"t\.csv line 3: byte 0xe9 is no UTF-8 text"),
        ("image,label\n0.png,a\n".encode("utf-16"), r"t\.csv is UTF-16 text; accepted: UTF-8"),
        ("image,label\n0.png,a\n1.png," + "x" * 200_000 + "\n", "line 3: .*too long"),
        ("image,label,split\n0.png,a,train\n1.png,b,\n", "line 3: column split holds ''; accepted: train, val, test"),
        ("image,label\n0.png,a\n0.png,b\n", "line 3: image '0.png' comes twice, with different labels"),
        ("id,label\n0,a\n0.png,b\n", "line 3: image '0.png' comes twice, with different labels"),
        ("id,label\n0,a\nb,b\n", r"line 3: 'b' has no ending, and there are b\.jpg, b\.png"),
    ],
)
def test_tables_that_are_refused(folder, text, error):
    with pytest.raises(BadInput, match=error):
        opened(folder, text)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("0.png a", "a"),
        ('"0.png" a', "a"),
        ('0.png "tabby cat"', "tabby cat"),
        ('"0.png"\t"tabby cat"', "tabby cat"),
        ("0.png\ttabby cat", "tabby cat"),
        ("0.png   7", "7"),
        ("0 a", "a"),
        ("0.png tabby cat", None),
        ("0.png 1 0", None),
        ("0.png\ta\tb", None),
        ('0.png "a', None),
        ('"0.png a', None),
        ("0.png,a", None),
        ("\x0b", None),
    ],
)
def test_lines_of_a_list(folder, line, label):
    (folder / "l.txt").write_text(f"1.png z\n{line}\n")
    if label is not None:
        dataset = open_dataset(f"list:{folder}/l.txt")
        assert dataset.keys == ("1.png", "0.png") and dataset.classes[dataset.targets[1]] == label
    elif line.strip():
        with pytest.raises(BadInput, match=r"l\.txt line 2: .* is no `path label`"):
            open_dataset(f"list:{folder}/l.txt")


def test_val_has_the_same_label_columns(folder):
    (folder / "v.csv").write_text("image,b,a\n2.png,1,0\n")
    assert opened(folder, "image,a,b\n0.png,1,0\n", "?val=v.csv").classes == ["a", "b"]
    assert open_dataset(f"{folder}/t.csv?val=v.csv", "val").targets.tolist() == [[0, 1]]
    (folder / "v.csv").write_text("image,a,c\n2.png,1,0\n")
    with pytest.raises(BadInput, match=r"t\.csv has the label columns a, b, v\.csv has a, c"):
        open_dataset(f"{folder}/t.csv?val=v.csv")


# --- fuzz -------------------------------------------------------------------------------------------------------------

WORDS = ["image", "label", "split", "train", "fold", "id", "0.png", "1.png", "2.png", "a", "b", "é", "sep=;"]
NUMBERS = ["0", "1", "-1", "1.5", "01", "nan", "9" * 400]
MARKS = [*',,,,\n\n\n\n";\t| ', "\r\n", "\ufeff", "\0", "\x1c"]
PIECES = st.sampled_from([*WORDS, *NUMBERS, *MARKS])


@st.composite
def odd_texts(draw: st.DrawFn) -> str:
    """A header and lines of an image and a label, with a few pieces put in at random places."""
    mark = draw(st.sampled_from([",", ",", ";", "\t", " "]))
    header = draw(st.sampled_from(["image,label", "id,a,b", "path,x,y,fold", "label,image,split", "0.png,a", ""]))
    cells = st.sampled_from(["a", "b", "0", "1", "1.0", "10"])
    lines = [
        mark.join([f"{n}.png", *(draw(cells) for _ in range(max(1, header.count(","))))])
        for n in range(draw(st.integers(0, 6)))
    ]
    text = "\n".join([header.replace(",", mark), *lines])
    for piece in draw(st.lists(PIECES, max_size=2)):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + piece + text[place:]
    return text


@QUICK
@given(odd_texts())
def test_any_text_is_a_data_set_or_a_clear_error(folder, text):
    for name, spec in (("f.csv", f"{folder}/f.csv?on_bad=skip"), ("f.txt", f"list:{folder}/f.txt?on_bad=skip")):
        (folder / name).write_text(text, newline="")
        try:
            dataset = open_dataset(spec)
        except BadInput as error:
            assert len(str(error)) < 3000
        else:
            targets = dataset.targets if dataset.multi_label else np.eye(len(dataset.classes))[dataset.targets]
            assert targets.shape == (len(dataset), len(dataset.classes)) and all(dataset.classes)
            lines = [line for line in re.split(r"[\r\n]+", text) if line.strip(", ;\t|\ufeff")]
            lines = [line for line in lines if not re.fullmatch(r"\ufeff?sep=.\s*", line)]
            held = len(dataset) + sum(dataset.left_out.values())
            assert held == len(lines) - (name == "f.csv") or set(text) & {'"', "\x1c"}


LABELS = st.text(st.sampled_from('ab01.-," ;|\tné'), max_size=5)


@QUICK
@given(st.lists(LABELS, min_size=1, max_size=12))
def test_what_csv_writes_is_read_as_it_was(folder, labels):
    stream = io.StringIO()
    csv.writer(stream).writerows([("image", "label"), *((f"{n}.png", label) for n, label in enumerate(labels))])
    try:
        texts = [label_text(label) for label in labels]
    except BadInput:
        texts = []
    try:
        dataset = opened(folder, stream.getvalue(), "?separator=none")
    except BadInput as error:
        assert not texts or "two spellings" in str(error)
    else:
        assert texts and [dataset.classes[target] for target in dataset.targets] == texts
        assert dataset.keys == tuple(f"{n}.png" for n in range(len(labels)))


@pytest.mark.parametrize(
    ("column", "values"),
    [("data set", "train test"), ("purpose", "TRAIN Valid"), ("is_train", "1 0"), ("validation", "0 1")],
)
@pytest.mark.parametrize("options", ["", "?label=label"])
def test_a_column_that_says_what_is_held_out_is_named(folder, column, values, options):
    one, other = values.split()
    found = opened(folder, f"image,label,{column}\n0.png,a,{one}\n1.png,b,{other}\n", options)
    assert f"not used: {column} (only a column named split decides what is held out)" in found.note


@pytest.mark.parametrize("column", ["train", "valid", "test"])
def test_a_split_in_0_and_1_is_no_label(folder, column):
    found = opened(folder, f"image,a,b,{column}\n0.png,1,0,0\n1.png,1,1,1\n")
    assert found.classes == ["a", "b"] and f"not used: {column}" in found.note
    assert "labels are the columns of 0 and 1, a, b (label=COLUMN,COLUMN takes others)" in found.note


def test_classes_that_look_like_one_are_named(folder):
    found = opened(folder, "image,label\n0.png,Cat\n1.png,cat\n2.png,dog\n")
    assert found.note == "'Cat' and 'cat' are two classes each, though they look like one"


def test_images_of_train_in_val_are_counted(folder):
    text = "image,label,split\n0.png,a,train\n./1.png,b,train\n1.png,b,val\n2.png,a,val\n"
    path = folder / "shared.csv"
    path.write_text(text)
    assert open_dataset(path, "val").note == "1 of its images are in train, too"
    assert open_dataset(path, "train").note == "at most one training image a class: too few to learn from"
