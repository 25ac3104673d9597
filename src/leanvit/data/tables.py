"""Text files that name images: their text, the rows and columns of a table, and the role of each column.

What is read is checked here: encoding, quotes, lines of the wrong length. What was guessed is in a table's notes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanvit.data.decode import EXTENSIONS
from leanvit.data.specs import Spec
from leanvit.data.splits import canonical_split
from leanvit.errors import BadInput, nearest

_IMAGES = (
    "image", "path", "file", "filename", "file_name", "filepath", "image_path", "img", "image_name", "image_file",
    "file_path", "img_path", "img_name", "image_filename",
)  # fmt: skip
_IMAGE_IDS = ("image_id", "imageid", "img_id", "image_index", "id")  # where there is no better column
_LABELS = (
    "label", "labels", "class", "classes", "target", "category", "tags", "class_name", "label_name", "category_name",
    "class_id", "label_id", "category_id", "finding_labels",
)  # fmt: skip
_HELD_OUT = (
    "is_valid", "is_val", "is_validation", "is_test", "is_train", "fold", "folds", "kfold", "set", "subset",
    "partition", "phase", "usage", "dataset_split",
)  # fmt: skip
_NO_LABELS = (
    *_IMAGE_IDS, *_HELD_OUT, "", "split", "index", "idx", "row", "unnamed", "width", "height", "w", "h", "bbox", "xmin",
    "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "area", "size", "channels", "uuid", "key", "group", "group_id",
    "patient", "patient_id",
)  # fmt: skip
TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")  # in any case
UNCERTAIN = ("", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "<na>")
_MARKS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}  # between the columns


@dataclass(frozen=True)
class Table:
    """A table's cells by column, without the blanks around them, and the line on which each row starts."""

    file: Path
    where: str  # "data 'a.csv', a.csv": how errors begin
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def column(self, option: str, given: str) -> str:
        """The column of that name, in any case. Raises BadInput."""
        found = [name for name in self.columns if name == given] or [
            name for name in self.columns if name.casefold() == given.casefold()
        ]
        if len(found) != 1:
            raise BadInput(f"{self.where}: {option}={given!r} is no column: {nearest(given, self.columns)}")
        return found[0]

    def noted(self, *notes: str) -> Table:
        """The same with more notes, empty ones left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))


def read_text(spec: Spec, file: Path) -> str:
    """The text of a UTF-8 file. Raises BadInput, with the line, for another encoding and for NUL bytes."""
    where = f"data {spec.text!r}"
    try:
        encoded = file.read_bytes()
    except FileNotFoundError:
        names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise BadInput(f"{where}: {file} does not exist; {nearest(file.name, names)}") from None
    except OSError as error:
        raise BadInput(f"{where}: {file.name} cannot be read: {error}") from None
    if encoded.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(f"{where}, {file.name} is UTF-16 text; accepted: UTF-8")
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{where}, {file.name} line {line}: byte {encoded[error.start]:#x} is no UTF-8 text; save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise BadInput(f"{where}, {file.name} line {text.count(chr(10), 0, text.index(chr(0))) + 1}: holds a NUL byte")
    return text


def read_table(spec: Spec, file: Path) -> Table:
    """A table with a header. Columns are separated by the mark that the header holds, by commas (tabs) if in doubt.

    Raises BadInput, naming file and line, for a header that does not name each column once, quotation marks out of
    place, lines of the wrong length, and a table without lines.
    """
    text, where = read_text(spec, file), f"data {spec.text!r}, {file.name}"
    first, mark, note = _separator(file, text)
    rows = list(_rows(text, mark, where, skip=first - 1))
    header = [name.strip() for name in rows[0][1]] if rows else []
    if len(set(header)) < len(header) or not header:
        raise BadInput(f"{where}: the first line must name each column once; it is {', '.join(header) or 'empty'}")
    image = next(filter(_is_image, header), None)
    if image is not None:
        raise BadInput(f"{where}: the first line must name the columns; it names an image, {image[:80]!r}")
    held = [(line, [cell.strip() for cell in cells]) for line, cells in rows[1:] if any(map(str.strip, cells))]
    for line, cells in held:
        if len(cells) != len(header):
            quote = ", one of them over several lines: is a quotation mark left open?" if "\n" in "".join(cells) else ""
            raise BadInput(f"{where} line {line}: {len(cells)} values for {len(header)} columns{quote}")
    if not held:
        raise BadInput(f"{where}: there is no line below the first, {mark.join(header)[:80]!r}")
    columns = {name: tuple(cells[place] for _, cells in held) for place, name in enumerate(header)}
    return Table(file, where, columns, tuple(line for line, _ in held), (note,) if note else ())


@dataclass(frozen=True)
class Chosen:
    """The role of each column of a table; those of no role are not read."""

    image: str
    split: str | None
    labels: tuple[str, ...]
    fields: dict[str, str]  # name of a field -> its column


def chosen_columns(spec: Spec, table: Table) -> tuple[Table, Chosen]:
    """(the table with notes, the role of its columns). Raises BadInput where one is not found, or has two roles.

    With `labels=none` there are no label columns.
    """
    fields = {name: table.column(name, given) for name, given in spec.columns.items()}
    taken: dict[str, str] = {}
    for name, column in fields.items():
        if (before := taken.setdefault(column, name)) != name:
            raise BadInput(f"{table.where}: column {column!r} is used twice, for {before}= and {name}=")
    free = replace(table, columns={name: cells for name, cells in table.columns.items() if name not in fields.values()})
    free, image = _image_column(spec, free)
    split = next((name for name in free.columns if _plain(name) == "split" and name != image), None)
    free, labels = _label_columns(spec, free, image, split) if spec.labelled else (free, ())
    table, roles = replace(free, columns=table.columns), (image, split, *labels)
    held_out = [name for name in free.columns if name not in roles and _is_split_column(table, name)]
    if held_out:
        table = table.noted(f"not used: {_listed(held_out)} (only a column named split decides what is held out)")
    _refuse_swallowed(table, image, labels)
    empty = next((line for line, path in zip(table.lines, table.columns[image], strict=True) if not path), None)
    if empty is not None:
        raise BadInput(f"{table.where} line {empty}: no path in column {image!r}")
    return table, Chosen(image, split, labels, fields)


def truth(cell: str) -> bool | None:
    """The value of a cell of a 0/1 column: True, False, or None where it is uncertain. Raises ValueError for others."""
    text = _value(cell)
    if text in TRUE or text in FALSE:
        return text in TRUE
    if text in UNCERTAIN:
        return None
    raise ValueError(cell)


def is_uncertain(cell: str) -> bool:
    """Whether a cell is blank, -1, nan, or another word for a value that is missing."""
    return _value(cell) in UNCERTAIN


# --- rows -------------------------------------------------------------------------------------------------------------


def _separator(file: Path, text: str) -> tuple[int, str, str]:
    """(the header's line, mark between columns, note): the one that cuts the header into most columns."""
    own = "\t" if file.suffix.lower() == ".tsv" else ","
    lines = (line for line in enumerate(io.StringIO(text, newline=None), 1) if line[1].strip())
    number, header = next(lines, (1, ""))
    stated = re.fullmatch(r"sep=(.)\s*", header, re.IGNORECASE)  # what Excel writes and reads
    if stated and stated[1] in _MARKS:
        return number + 1, stated[1], ""
    outside = re.sub(r'"[^"]*"', "", header)
    mark = max((own, *_MARKS), key=lambda one: (outside.count(one), one == own))
    return number, mark, "" if mark == own else f"columns are separated by {_MARKS[mark]}"


def _rows(text: str, mark: str, where: str, *, skip: int) -> Iterator[tuple[int, list[str]]]:
    """(line on which it starts, cells) of each row that is not empty. Raises BadInput with lines."""
    stream = io.StringIO(text, newline="")
    for _ in range(skip):
        stream.readline()
    reader, start = csv.reader(stream, delimiter=mark, strict=True), skip + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = skip + reader.line_num
            lines = f"line {start}" if end <= start else f"lines {start} to {end}"
            raise BadInput(
                f"{where} {lines}: a quotation mark is out of place, or a value too long ({error}); accepted: "
                'a value in quotation marks from its first to its last character, those inside it doubled ("")'
            ) from None
        if cells:
            yield start, cells
        start = skip + reader.line_num + 1


def _refuse_swallowed(table: Table, image: str, labels: Sequence[str]) -> None:
    """A quotation mark that was never closed takes the lines up to the next one into its value."""
    place = list(table.columns).index(image)
    for name, cells in table.columns.items():
        for row, cell in enumerate(cells):
            if "\n" not in cell and "\r" not in cell:
                continue
            ending = Path(table.columns[image][row]).suffix.lower()
            if name == image or name in labels or any(_is_row(line, table, place, ending) for line in _inner(cell)):
                raise BadInput(
                    f"{table.where} line {table.lines[row]}: the value of column {name!r} holds {len(_inner(cell))} "
                    f"lines, {_inner(cell)[0][:40]!r} the first: is a quotation mark left open?"
                )


def _inner(cell: str) -> list[str]:
    return re.split(r"[\r\n]+", cell)


def _is_row(line: str, table: Table, place: int, ending: str) -> bool:
    """Whether a line inside a value looks like a row of the table: as many values, an image where images stand."""
    for mark in _MARKS:
        values = line.split(mark)
        if len(values) == len(table.columns):
            path = values[place].strip().strip('"')
            if path and " " not in path and Path(path).suffix.lower() == ending:
                return True
    return False


# --- columns ----------------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A column's name for comparison: "Image Name" and "image-name" are "image_name", "Unnamed: 0" is "unnamed"."""
    text = re.sub(r"[\s\-.]+", "_", name.strip().casefold())
    return "unnamed" if text.startswith("unnamed:") else text


def _known(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of the columns that have a known name, in the order of the known names."""
    return [name for plain in known for name in names if _plain(name) == plain]


def _is_image(text: str) -> bool:
    return Path(text).suffix.lower() in EXTENSIONS


def _image_column(spec: Spec, table: Table) -> tuple[Table, str]:
    """The column of images: as given, by its name, or the only one whose values end like images."""
    if "image" in spec.options:
        return table, table.column("image", spec.options["image"])
    found = _known(table.columns, _IMAGES)
    if found:
        return table.noted(_taken("images", found, "image")), found[0]
    by_ending = [name for name, cells in table.columns.items() if all(map(_is_image, cells))]
    ids = _known(table.columns, _IMAGE_IDS)
    if len(by_ending) != 1 and not ids:
        raise BadInput(
            f"{table.where}: no image column; columns: {', '.join(table.columns)}; accepted: one of "
            f"{', '.join((*_IMAGES, *_IMAGE_IDS))}, or image=COLUMN"
        )
    image = by_ending[0] if len(by_ending) == 1 else ids[0]
    return table.noted(f"images are those of column {image!r}"), image


def _label_columns(spec: Spec, table: Table, image: str, split: str | None) -> tuple[Table, tuple[str, ...]]:
    """One column of labels, or several of 0 and 1; none that is plainly something else, unless it was asked for."""
    others = [name for name in table.columns if name not in (image, split)]
    given = spec.names("label")
    if given is not None:
        within = replace(table, columns={name: table.columns[name] for name in others})
        chosen = [within.column("label", name) for name in given]
        if len(set(chosen)) < len(chosen):
            raise BadInput(f"{table.where}: label={','.join(given)} names a column twice")
        if len(chosen) > 1:
            for name in chosen:
                _refuse_other_values(table, name)
        return table, tuple(chosen)
    named = _known(others, _LABELS)
    if named:
        return table.noted(_taken("labels", named, "label")), (named[0],)
    possible = [name for name in others if _plain(name) not in _NO_LABELS and not _is_split_column(table, name)]
    chosen = [name for name in possible if _is_truths(table.columns[name])]
    if len(chosen) < 2:
        raise BadInput(
            f"{table.where}: no label column; columns: {', '.join(table.columns)}; accepted: one of "
            f"{', '.join(_LABELS)}, several columns of 0 and 1, or label=COLUMN[,COLUMN...]; ?labels=none opens the "
            "images without labels"
        )
    unused = [name for name in others if name not in chosen]
    unused_note = f"columns that are no label: {_listed(unused)}" if unused else ""
    taken = f"labels are the columns of 0 and 1, {_listed(chosen)} (label=COLUMN,COLUMN takes others)"
    return table.noted(unused_note, taken), tuple(chosen)


def _is_split_column(table: Table, name: str) -> bool:
    """Whether a column says, by its name or its values, which images are held out."""
    if _plain(name) in _HELD_OUT or canonical_split(_plain(name)) is not None:
        return True
    distinct = {cell.casefold() for cell in table.columns[name]}
    return len(distinct) < 10 and all(canonical_split(cell) is not None for cell in distinct)


def _taken(what: str, found: Sequence[str], option: str) -> str:
    """The note on a column that was taken where others would do as well."""
    if len(found) < 2:
        return ""
    return f"{what} are those of column {found[0]!r}, not of {_listed(found[1:])} ({option}=COLUMN takes another)"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(without a name)" for name in names[:8]) + (", …" if len(names) > 8 else "")


def _is_truths(cells: Sequence[str]) -> bool:
    distinct = set(map(_value, cells))
    return distinct <= {*TRUE, *FALSE, *UNCERTAIN} and bool(distinct & {*TRUE, *FALSE})


def _value(cell: str) -> str:
    return cell.casefold().replace(",", ".")  # decimal commas, where semicolons separate


def _refuse_other_values(table: Table, name: str) -> None:
    for line, cell in zip(table.lines, table.columns[name], strict=True):
        try:
            truth(cell)
        except ValueError:
            raise BadInput(
                f"{table.where} line {line}: column {name!r} is one of several label columns; accepted: values 0 and "
                f"1, not {cell[:40]!r}"
            ) from None
