"""`open_dataset`: what a spec names, which splits it holds, and which of them is meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leanvit.data.columns import check_values
from leanvit.data.dataset import Dataset
from leanvit.data.declared import as_declared
from leanvit.data.label_kinds import KINDS, SEVERAL
from leanvit.data.labels import alike
from leanvit.data.specs import FORMS, Spec, check_on_bad, parse_spec, with_options
from leanvit.data.splits import SPLITS, Source, chosen_split
from leanvit.data.stream import AnyDataset, Stream
from leanvit.errors import BadInput, nearest, unknown
from leanvit.knobs import Count, check

_NAMED = 10  # classes without an image that are named


def open_dataset(
    spec: str | os.PathLike[str],
    split: str | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    classes: Sequence[str | int] | None = None,
    shots: int | None = None,
    on_bad: str | None = None,
    max_pixels: int | None = None,
    labels: bool = True,
) -> AnyDataset:
    """Open a data set of images with one class each, or several, or without labels.

    spec: "digits" (embedded); a folder in ImageFolder layout (`train/` and `val/` or `test/` with a folder a class, or
    just the class folders); a parquet file or a folder of `<split>.parquet` in the layout of HF `datasets`; a `.csv` or
    `.tsv` table; `list:FILE`; `wds:PATTERN` of webdataset shards (a `Stream`); `hf:NAME[:CONFIG]`, read by HF
    `datasets` (a `Stream` with `?streaming`). Options follow a `?`: `pets?classes=cat,dog&shots=5` (see `specs.FORMS`).

    split: "train" or "val". Where there is no val, test is used; where there is a single split called train or nothing,
    the keys whose hash falls in the lowest tenth are val and the others train; `note` then says so. None is the whole
    of a source with one split, and train of any other. The split depends on neither `seed` nor the other keys.

    limit: keep that many samples, even over the classes, chosen by (seed, key).

    classes: names or indices of the classes to keep, which become 0, 1, ... in this order. shots: images a class,
    chosen by (seed, key), of every split but val. on_bad: "error" (default) or "skip" images that cannot be read.
    max_pixels: images with more cannot be read. labels: False opens images without labels, or as if they had none
    (`labels=none` in a spec): a folder of images in any folders below it, parquet without a label column, shards
    without labels, lists of paths. These five may stand in the spec, too; the result's `spec` has them.
    Two more stand in the spec only: `channels=1|3|4`, and `range=LOW-HIGH`, the values of black and white of images
    with more than 8 bits (see `declared.as_declared` for what is taken where it is not given). So do the options that
    make columns the fields of samples: `caption=`, `mask=`, `objects=`, `depth=` (see `columns`).

    The result's `left_out` counts what of the source is no sample, by reason; its `note` says what was guessed, and of
    a training split which classes have no image, and where there is one class only, or one image of each.

    Raises BadInput for an unknown spec, path or split, MissingExtra where an optional package is needed.
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise BadInput(f"data is a {type(spec).__name__}; accepted: digits, a folder, a file, or hf:NAME")
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    check("limit", limit, Count | None)
    if on_bad is not None:
        check_on_bad(on_bad)
    given = {"classes": None if classes is None else tuple(classes), "shots": shots}
    text = with_options(os.fspath(spec), {**given, "on_bad": on_bad, "max_pixels": max_pixels})
    text = text if labels else with_options(text, {"labels": "none"})
    parsed = parse_spec(text)
    source = source_of(parsed)
    dataset = as_declared(_with_choices(chosen_split(source, split), parsed, seed), source, parsed)
    check_values(dataset, parsed)
    return _warned(dataset if limit is None else dataset.limited(limit, seed=seed))


def source_of(spec: Spec) -> Source:
    """The splits that a spec holds. Raises BadInput, MissingExtra."""
    # Each kind of source imports what only it needs (scikit-learn, pyarrow, datasets, webdataset).
    if spec.kind == "digits":
        from leanvit.data.digits import digits_source

        return digits_source()
    if spec.kind == "hf":
        from leanvit.data.hub import hub_source

        return hub_source(spec)
    if spec.kind == "wds":
        from leanvit.data.shards import shards_source

        return shards_source(spec)
    if spec.kind == "list" or (spec.kind == "csv" and os.path.isfile(spec.path)):
        from leanvit.data.listing import listing_source

        return listing_source(spec)
    path = spec.path
    if spec.kind == "folder":
        if not spec.labelled:
            from leanvit.data.imagefiles import unlabelled_folder_source

            return unlabelled_folder_source(spec.text, path, spec.options.get("layout"))
        from leanvit.data.imagefolder import imagefolder_source

        return imagefolder_source(spec.text, path, spec.options.get("layout"))
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix == ".parquet"):
        from leanvit.data.parquet import parquet_source

        return parquet_source(spec, path)
    if os.path.isfile(path):
        raise BadInput(f"data {spec.text!r} is a {path.suffix or 'plain'} file{_if_other(path)}; {FORMS}")
    raise BadInput(f"data {spec.text!r} {_lacking(path)}; {FORMS}")


def _with_choices(dataset: AnyDataset, spec: Spec, seed: int) -> AnyDataset:
    """What the options that every source takes leave of a split."""
    on_bad = check_on_bad(spec.options.get("on_bad", "error"))
    max_pixels = spec.whole("max_pixels") or dataset.max_pixels
    dataset = replace(dataset, spec=spec.text, on_bad=on_bad, max_pixels=max_pixels)
    if not spec.labelled:
        return dataset.without_labels()  # of digits; others have been opened without
    classes, shots = spec.names("classes"), spec.whole("shots")
    if isinstance(dataset, Stream):
        if classes or shots:
            raise BadInput(
                f"data {spec.text!r}: {'classes' if classes else 'shots'} needs images that can be reached by row, but "
                "this is a stream; accepted: folders, lists, tables, parquet, hf:NAME without streaming"
            )
        return dataset
    if classes:
        dataset = dataset.only_classes(classes)
    if shots and dataset.split != "val":
        dataset = dataset.few_shot(shots, seed=seed)
    return dataset


def _warned(dataset: AnyDataset) -> AnyDataset:
    """The data set, with what stands in the way of learning from it in its note; of val, as it is."""
    warnings = []
    if dataset.split != "val" and len(dataset.classes) == 1 and dataset.label_kind != SEVERAL:
        warnings.append(f"one class only, {dataset.classes[0]!r}: there is nothing to distinguish")
    if pairs := alike(dataset.classes):
        shown = ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:3]) + (", …" if len(pairs) > 3 else "")
        warnings.append(f"{shown} are two classes each, though they look like one")
    if dataset.split == "train" and isinstance(dataset, Dataset):  # what a stream holds is seen when it is read
        warnings += _sparse_classes(dataset)
    return replace(dataset, note="; ".join(filter(None, (dataset.note, *warnings)))) if warnings else dataset


def _sparse_classes(dataset: Dataset) -> list[str]:
    if dataset.targets is None:
        return []
    size = len(dataset.classes)
    counts = KINDS[dataset.label_kind].counted(dataset.targets, size)
    notes = []
    missing = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if missing:
        which = "class" if len(missing) == 1 else f"{len(missing)} of {size} classes:"
        names = ", ".join(map(repr, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        notes.append(f"no training image of {which} {names}")
    if counts.max(initial=0) == 1 and dataset.label_kind != SEVERAL:
        notes.append("at most one training image a class: too few to learn from")
    return notes


def _lacking(path: Path) -> str:
    """Why there is neither a file nor a folder at a path."""
    if os.path.islink(path) and not os.path.exists(path):
        return "does not exist: it is a link that leads nowhere"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return f"does not exist{_near(path)}"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    return "is no file or folder, but a pipe, socket or device"


def _if_other(path: Path) -> str:
    if path.suffix.lower() == ".txt":
        return f" (a list of images is opened as 'list:{path.name}')"
    return f" (shards are opened as 'wds:{path.name}')" if path.suffix.lower() == ".tar" else ""


def _near(path: Path) -> str:
    try:
        siblings = os.listdir(path.parent)
    except OSError:  # no folder, or none that can be listed
        siblings = []
    shown = [name for name in siblings if not name.startswith(".")]
    hint = nearest(path.name, ["digits", *shown]).split("Known:")[0].strip()
    return f" ({hint})" if hint else ""
