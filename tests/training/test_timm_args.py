"""An args.yaml of any size is refused or read at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from leanvit.errors import BadInput
from leanvit.training.presets import LARGEST, load_train_recipe

TABLE = {
    "aliases": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: x\n", "by alias"),
    "nested lists": ("model: " + "[" * 50_000, "nested deeper"),
    "nested maps": ("model: " + "{a: " * 20_000, "nested deeper"),
    "nested by indentation": ("".join(" " * i + "a:\n" for i in range(600)), "nested deeper"),
    "long": ("model: [" + "1, " * 60_000 + "]", "larger"),
    "too many bytes": ("# " + "x" * LARGEST + "\nmodel: x\n", "bytes"),
    "one long word": ("model: " + "x" * (LARGEST - 100), ""),
    "many quotes": ("model: '" + "''" * 100_000, "not YAML"),
    "a number without end": ("model: " + "9" * 5000, "not YAML"),
    "code": ("model: !!python/object/apply:os.system [ls]\n", "not YAML"),
}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_within_a_second(name: str, tmp_path: Path) -> None:
    text, says = TABLE[name]
    (tmp_path / "args.yaml").write_text(text)
    begun = time.process_time()
    if not says:
        assert load_train_recipe(tmp_path / "args.yaml").model == "x" * (LARGEST - 100)
    else:
        with pytest.raises(BadInput, match=says):
            load_train_recipe(tmp_path / "args.yaml")
    assert time.process_time() - begun < 1


def test_a_file_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    for name in ("args.yaml", "recipe.toml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 2**20)
        with pytest.raises(BadInput, match=f"more than {LARGEST} bytes"):
            load_train_recipe(tmp_path / name)
