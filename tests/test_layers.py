"""Imports between the packages of leanvit: down the floors of `docs/architecture.md` only, and never in a circle.

Every import counts, also one inside a function or under `TYPE_CHECKING`; against the floors, a module that is named as
text (`"leanvit.backbones.t2t_vit"`) counts, too. Names that a package loads on first use (its table `_HOME`) are those
of the module that has them. What breaks the rules today is listed here. Both lists only shrink: a new break fails, and
so does an entry that is no longer needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SRC = REPO / "src"
ROOT = "leanvit"  # its `__init__` is a table of public names, which anyone may import

# (module, the module of a higher floor or of another room of floor 2 that it imports or names), sorted
UPWARD: list[tuple[str, str]] = [
    ("leanvit.anatomy.surgery.widths", "leanvit.backbones.t2t_vit.opened"),
    ("leanvit.deploy.block_graphs", "leanvit.backbones.t2t_vit.opened"),
    ("leanvit.prune.nvit.units", "leanvit.backbones.lv_vit.opened"),
    ("leanvit.prune.nvit.units", "leanvit.backbones.t2t_vit.opened"),
    ("leanvit.tokens.stvit.method", "leanvit.backbones.t2t_vit.opened"),
]

# modules that import one another, directly or through others of the same row, sorted
CIRCLES: list[tuple[str, ...]] = [
    (
        "leanvit.anatomy.arithmetic.score",
        "leanvit.anatomy.parts.blocks",
        "leanvit.anatomy.parts.positions",
        "leanvit.anatomy.parts.windows",
        "leanvit.anatomy.state",
    ),
    ("leanvit.data.classes", "leanvit.data.dataset", "leanvit.data.stream"),
    (
        "leanvit.data.declared",
        "leanvit.data.digits",
        "leanvit.data.folderlayout",
        "leanvit.data.hub",
        "leanvit.data.hubstream",
        "leanvit.data.imagefolder",
        "leanvit.data.listing",
        "leanvit.data.parquet",
        "leanvit.data.shards",
        "leanvit.data.sources",
        "leanvit.data.tables",
    ),
    ("leanvit.deploy.exporting", "leanvit.deploy.running", "leanvit.deploy.segments"),
    ("leanvit.exits.lgvit.method", "leanvit.exits.lgvit.training"),
    ("leanvit.measure.comparison", "leanvit.measure.table"),
    ("leanvit.measure.energy", "leanvit.measure.nvml", "leanvit.measure.rapl"),
    ("leanvit.tokens.diffrate", "leanvit.tokens.diffrate.method", "leanvit.tokens.diffrate.search"),
    ("leanvit.tokens.tome.method", "leanvit.tokens.tome.windows"),
    ("leanvit.training.presets", "leanvit.training.timm_args"),
]


@cache
def modules() -> dict[str, ast.Module]:
    """Each module of the package, by its dotted name, parsed."""
    found = {}
    for path in sorted(SRC.rglob(f"{ROOT}/**/*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_bytes())
    return found


@cache
def homes(package: str) -> Mapping[str, str]:
    """The table `_HOME` of a package: public name -> module that has it."""
    for node in modules()[package].body:
        named_so = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME"
        if named_so and isinstance(node.value, ast.Dict):
            table: dict[str, str] = ast.literal_eval(node.value)
            return {k: v if v.startswith(f"{ROOT}.") else f"{package}.{v}" for k, v in table.items()}
    return {}


def resolved(module: str, name: str) -> str:
    """The module that `from module import name` reads."""
    if f"{module}.{name}" in modules():
        return f"{module}.{name}"
    home = homes(module).get(name)
    return module if home is None else resolved(home, name)


@cache
def imports() -> dict[str, set[str]]:
    """Each module -> the modules of leanvit that it imports, anywhere in its text."""
    return {module: set(imported(tree)) - {module} for module, tree in modules().items()}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not read here"
            if node.module in modules():
                yield from (resolved(node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())


def named(tree: ast.Module) -> Iterator[str]:
    """The rooms and modules of leanvit that a module names as text, the beginnings of names too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.rstrip(".")
            if name in modules() and name != ROOT:
                yield name


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def floors() -> dict[str, int]:
    """The floor of each room, read from the picture of the page."""
    text = (REPO / "docs/architecture.md").read_text(encoding="utf-8")
    picture = text.split("## Floors")[1].split("\n    data ")[0]
    found, floor = {ROOT: 0, "__main__": 3}, None
    for line in picture.splitlines():
        if begins := re.match(r" +floor (\d)", line):
            floor = int(begins[1])
        if floor is not None:
            for name in re.findall(r"\b(\w+)(?:/|\.py\b)", line):
                found.setdefault(name, floor)
    return found


def upward() -> set[tuple[str, str]]:
    """(module, what it imports or names) where that is not below it, nor of its own room or floor."""
    found = set()
    for module, tree in modules().items():
        if module == ROOT:
            continue
        for other in imports()[module] | set(named(tree)):
            here, there = floors()[room(module)], floors()[room(other)]
            if room(module) != room(other) and (here < there or here == there == 2):
                found.add((module, other))
    return found


def circles() -> set[tuple[str, ...]]:
    """The modules that reach themselves, with those that they reach and that reach them."""
    reach = {module: reached(module) for module in modules()}
    return {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in modules()
        if module in reach[module]
    }


def reached(start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = imports()[left.pop()] - seen
        seen |= new
        left += new
    return seen


def test_every_room_stands_on_a_floor() -> None:
    missing = {room(module) for module in modules()} - floors().keys()
    assert not missing, f"docs/architecture.md, Floors, lacks {sorted(missing)}"


def test_imports_go_down_the_floors() -> None:
    assert sorted(set(UPWARD)) == UPWARD
    found = upward()
    assert not (new := sorted(found - set(UPWARD))), f"imports that do not go down: {new}"
    assert not (gone := sorted(set(UPWARD) - found)), f"no longer there, take them out of UPWARD: {gone}"


def test_no_modules_import_one_another() -> None:
    assert [tuple(sorted(set(row))) for row in sorted(CIRCLES)] == CIRCLES
    found = circles()
    new = sorted(row for row in found if not any(set(row) <= set(known) for known in CIRCLES))
    assert not new, f"modules that import one another: {new}"
    gone = sorted(set(CIRCLES) - found)
    assert not gone, f"no longer there, or smaller, renew CIRCLES: {gone}; there is {sorted(found)}"
