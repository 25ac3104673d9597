from __future__ import annotations

from pathlib import Path

import pytest

from leanvit.errors import BadInput
from leanvit.recipe import load_recipe, parse_with

GOOD = """
model = "vit_tiny_patch16_224"
data = "digits"
model_args = {img_size = 32, patch_size = 4}
[[method]]
slug = "evit"
keep_rate = 0.6
blocks = [1, 2]
[[method]]
slug = "int8"
[recovery]
epochs = 2
"""


def test_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GOOD)
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.model == "vit_tiny_patch16_224" and recipe.model_args["patch_size"] == 4
    assert [m.slug for m in recipe.methods] == ["evit", "int8"]
    assert recipe.methods[0].keep_rate == 0.6 and recipe.methods[0].blocks == (1, 2)
    assert recipe.recovery is not None and recipe.recovery.epochs == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model =", "modle =", "did you mean 'model'"),
        ("epochs = 2", "epoch = 2", "did you mean 'epochs'"),
        ("keep_rate = 0.6", "keep_rat = 0.6", "did you mean 'keep_rate'"),
        ("keep_rate = 0.6", "keep_rate = 1.6", "keep_rate"),
        ('slug = "int8"', 'slug = "int4"', "did you mean 'int8'"),
        ('slug = "int8"', "bits = 8", "number 2 has no slug"),
        ('data = "digits"', "data = 3", "data"),
        ("[recovery]", "[recovery", "not TOML"),
        ("[recovery]", f"[recovery]\na = {'9' * 5000}", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    (tmp_path / "r.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(BadInput, match=message):
        load_recipe(tmp_path / "r.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml"):
        load_recipe(tmp_path / "none.toml")


def test_with_text() -> None:
    m = parse_with("evit:keep_rate=[1,1,0.7,1],fuse=false")
    assert m.keep_rate == (1, 1, 0.7, 1) and m.fuse is False
    assert parse_with("tome:r=8").r == 8
    with pytest.raises(BadInput, match="is not knob=value"):
        parse_with("evit:keep_rate")
    with pytest.raises(BadInput, match="did you mean 'evit'"):
        parse_with("evti")
    with pytest.raises(BadInput, match=r"no knob 'keeprate'.*keep_rate"):
        parse_with("evit:keeprate=1")
