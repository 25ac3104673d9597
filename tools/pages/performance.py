"""The page of speed and accuracy, made from the benchmarks' results, whose files hold titles and columns.

`make pages` reads benchmarks/results; a test holds the page to it. A result has
`title`, `about`, `columns` (what the values of a key are) and `tables` (which are shown): see benchmarks/bench.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pages.docs_pages import markdown_table

Content = Mapping[str, Any]  # of a result file
INTRO = """# How fast, how accurate

Measured on a CPU: networks that leanvit made lean, its training, the architectures that it builds itself, single
layers. Made by `make pages` from `benchmarks/results/`; the machine stands beside each table, and the
command makes it anew on yours. Speeds are float32 in PyTorch unless stated otherwise; candidates are interleaved on the
same input, a time is the median of the rounds, and a ratio is taken inside each round before its median and quartiles.
Results that speak against a paper's claim stand here like the others.
"""
SECTIONS = {  # names of files in benchmarks/results
    "Compressed models": (
        "composed_deit_small",
        "reference_runs",
        "tokens_deit_small",
        "token_methods_speed",
        "token_methods",
        "token_methods_longer",
        "token_methods_search",
        "nvit_vs_torch_pruning",
        "lgvit_heads",
        "lgvit_stream",
        "lgvit_stream_deit_small",
    ),
    "Training": ("train_speed", "tar_shards"),
    "Architectures": ("backbone_throughput", "small_data", "gmm_mask_small_data"),
    "Layers, kernels, tables": ("attention_cost", "plain_speed", "latency_tables"),
}


def page(results: Path, sections: Mapping[str, Sequence[str]] = SECTIONS) -> str:
    """The page as markdown. `results`: folder of the benchmarks' JSON files."""
    lines = [INTRO]
    for title, names in sections.items():
        lines.append(f"\n## {title}\n")
        for name in names:
            lines += _result(json.loads((results / f"{name}.json").read_text(encoding="utf-8")), name)
    return "\n".join(lines)


def _result(content: Content, name: str) -> Iterator[str]:
    yield f"\n### {content['title']}\n"
    yield f"{content['about'].format(**content)}\n"
    for table in content["tables"]:
        yield from table_lines(content, table)
    machine, made = content["environment"], content.get("commands") or [content["command"]]
    timed = content.get("settings", {}).get("threads", machine["threads"])  # training may take more of them
    threads = "1 thread" if timed == 1 else f"{timed} threads"
    yield f"Measured on {machine['cpu']} with {threads} of torch, by"
    yield f"{', '.join(f'`{one}`' for one in made)}: `benchmarks/results/{name}.json`.\n"


def table_lines(content: Content, table: Mapping[str, Any]) -> Iterator[str]:
    """One table as markdown. Rows and columns that hold nothing are left out; a single row stands upright."""
    columns = content["columns"]
    wanted = table.get("where", {})
    rows = [row for row in rows_at(content, table["rows"]) if all(row.get(k) == v for k, v in wanted.items())]
    keys = [one for key in table["columns"] for one in _matching(key, rows)]
    cells = [[_cell(value_at(row, key), columns[pattern]) for key, pattern, _ in keys] for row in rows]
    summary = [row for row in cells if any(cell for cell, (key, *_) in zip(row, keys, strict=True) if key != "name")]
    filled = [i for i in range(len(keys)) if any(row[i] for row in summary)]
    headings = [_heading(columns[pattern], found) for _, pattern, found in keys]
    if not summary:
        return
    if caption := table.get("caption"):
        yield f"\n{caption.format(**content)}:\n"
    if len(summary) == 1:
        yield from markdown_table(("", ""), [(headings[i], summary[0][i]) for i in filled])
    else:
        yield from markdown_table([headings[i] for i in filled], [[row[i] for i in filled] for row in summary])


def rows_at(content: Content, path: str) -> list[Content]:
    """The rows of a path: of a list; of a mapping, whose keys are `name`; of "", the content itself."""
    found = value_at(content, path) if path else [content]
    return [{"name": name, **row} for name, row in found.items()] if isinstance(found, Mapping) else list(found or [])


def value_at(row: Any, path: str) -> Any:
    """The value of a path such as "speed/torch f32"; None where there is none."""
    for key in [path] if path in row else path.split("/"):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _matching(pattern: str, rows: Sequence[Content]) -> list[tuple[str, str, str]]:
    """(key, pattern, what the `*` of the pattern stands for) of each key of the rows that matches."""
    before, star, after = pattern.partition("*")
    if not star:
        return [(pattern, pattern, "")]
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(before) and key.endswith(after))
    return [(key, pattern, key[len(before) : len(key) - len(after)]) for key in keys]


def _heading(column: Content, found: str) -> str:
    heading = column["heading"].replace("*", found)
    return f"{heading}, {column['unit']}" if "unit" in column else heading


def _cell(value: Any, column: Content) -> str:
    """A value, formatted by its column. None and empty: nothing. Bools: yes or no. Several seeds: mean, least, most."""
    show = column.get("show")
    if show == "count":
        return str(len(value)) if value else ""
    if value is None or value == {} or value == []:
        return ""
    if show == "code":
        return f"`{value}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and show == "median":
        return _number(median(value), column)
    if isinstance(value, list) and "each" in column:
        value = dict(zip(column["each"], value, strict=True))
    if isinstance(value, list):
        return ", ".join(_number(one, column) for one in value)
    return _several(value, column) if isinstance(value, Mapping) else _number(value, column)


def _several(value: Content, column: Content) -> str:
    """A middle with its spread, or figures by name."""
    for middle, low, high in (("median", "q25", "q75"), ("mean", "min", "max")):
        if low in value:
            centre, ends = value.get(middle), f"{_number(value[low], column)} … {_number(value[high], column)}"
            if centre is None:
                return ends
            alike = middle == "mean" and value[low] == value[high]
            return _number(centre, column) if alike else f"{_number(centre, column)} ({ends})"
    return ", ".join(f"{name} {_number(one, column)}" for name, one in value.items())


def _number(value: Any, column: Content) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return format(value * column["scale"] if "scale" in column else value, column.get("form", ""))
