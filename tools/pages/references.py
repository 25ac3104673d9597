"""The page of the references, made from their records: `make pages` writes docs/references.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leanvit.recipe import Record, Reference, references

INTRO = """# References

Small trained models that come with the package, for a first look and for tests that need a model with some accuracy.
Made by `make pages` from the records in `src/leanvit/references/`; figures are those of
`leanvit publish`, measured when the model was published.

`leanvit/NAME` works offline wherever a model name or run folder does: `leanvit references` lists the names,
`leanvit references NAME` gives the whole record. The package itself is never written to: what a run folder would keep
goes to `--out`, or under `runs/`. A folder of the same path is not mistaken for a reference, nor the other way round:
the name is refused, and `./leanvit/NAME` means the folder.

Parameters are stored in half precision and are float32 after loading; the records state what the rounding changed.
A run of your own is published the same way: see [your own model](own-model.md#publish-a-run).
"""
NONE = "\nThis checkout holds none yet.\n"


def page(found: Sequence[Reference] | None = None) -> str:
    """The page as markdown. `found`: default, those of the package."""
    listed = references() if found is None else found
    parts = [INTRO, *_table(listed), *(part for one in listed for part in _section(one))] if listed else [INTRO, NONE]
    return "".join(parts)


def _table(listed: Sequence[Reference]) -> Iterator[str]:
    yield "\n| name | data | accuracy | parameters | MACs | size |\n|---|---|---|---|---|---|\n"
    for one in listed:
        record = one.record
        cells = (
            f"`{one.spec}`",
            record.data,
            record.figure(record.stored_score),
            f"{record.parameters / 1e6:.2f} M",
            f"{record.macs / 1e6:.0f} M",
            f"{one.size_bytes / 1e6:.1f} MB",
        )
        yield f"| {' | '.join(map(_cell, cells))} |\n"


def _section(one: Reference) -> Iterator[str]:
    record = one.record
    yield f"\n## {one.name}\n\n{record.title}.\n\n"
    yield f"```bash\nleanvit export {one.spec} --to openvino --batch 8 --out artefacts/{one.name}\n```\n\n"
    yield "| | |\n|---|---|\n"
    for heading, text in _facts(one):
        yield f"| {heading} | {_cell(text)} |\n"
    if record.commands:
        yield "\nMade by:\n\n" + "".join(f"    {line}\n" for line in record.commands)


def _facts(one: Reference) -> Iterator[tuple[str, str]]:
    record = one.record
    size = " x ".join(map(str, record.input_size))
    yield "model", f"`{record.model}`{''.join(f' + `{slug}`' for slug in record.methods)}, input {size}"
    yield "data", f"{record.data}, {record.images} images of {record.split}"
    yield "accuracy", _interval(record, record.stored_score)
    if record.stored_as:
        same = record.agreement_percent
        alike = "" if same is None else f"; {same:.2f} % of the answers are alike"
        yield f"before rounding to {record.stored_as}", f"{_interval(record, record.score)}{alike}"
    yield "trained", f"{record.epochs} epochs, {record.training_seconds / 3600:.1f} h on {record.trained_on}"
    yield "measured on", record.measured_on
    yield "recipes", ", ".join(f"`{name}`" for name in record.presets) or "none: the options below"
    yield "seed, date", f"{record.seed}, {record.date}"
    yield "made with", record.versions
    yield "licence", record.licence or "not stated"
    yield "data from", record.data_source or "not stated"


def _interval(record: Record, score: tuple[float, float, float]) -> str:
    return f"{record.figure(score)} (95 %: {record.number(score[1])} … {record.number(score[2])})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
