"""Imports between the packages of leanvit: down the layers of `docs/architecture.md` only, and never in a circle.

Every import counts, also one inside a function or under `TYPE_CHECKING`; against the layers, a module that is named as
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

# (module, the module of a higher layer or of another package of layer 2 that it imports or names), sorted
UPWARD: list[tuple[str, str]] = []

# modules that import one another, directly or through others of the same row, sorted
CIRCLES: list[tuple[str, ...]] = []


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
    """The packages and modules of leanvit that a module names as text, the beginnings of names too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.rstrip(".")
            if name in modules() and name != ROOT:
                yield name


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def layers() -> dict[str, int]:
    """The layer of each package, read from the picture of the page."""
    text = (REPO / "docs/architecture.md").read_text(encoding="utf-8")
    picture = text.split("## Layers")[1].split("\n    data ")[0]
    found, layer = {ROOT: 0, "__main__": 5}, None
    for line in picture.splitlines():
        if begins := re.match(r" +layer (\d)", line):
            layer = int(begins[1])
        if layer is not None:
            for name in re.findall(r"\b(\w+)(?:/|\.py\b)", line):
                found.setdefault(name, layer)
    return found


def upward() -> set[tuple[str, str]]:
    """(module, what it imports or names) where that is not below it, nor of its own package or layer."""
    found = set()
    for module, tree in modules().items():
        if module == ROOT:
            continue
        for other in imports()[module] | set(named(tree)):
            here, there = layers()[package(module)], layers()[package(other)]
            if package(module) != package(other) and (here < there or here == there == 2):
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


def test_every_package_is_in_a_layer() -> None:
    missing = {package(module) for module in modules()} - layers().keys()
    assert not missing, f"docs/architecture.md, Layers, lacks {sorted(missing)}"


def test_imports_go_down_the_layers() -> None:
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
