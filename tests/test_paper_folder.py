"""A paper is a folder and nothing else: the toys of tests/toy_papers are everywhere once their root is added, and
nowhere when it is taken away."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
import typer
from typer.testing import CliRunner

import leanvit
from contract.toys import TOYS, toys
from leanvit import cards
from leanvit.cli.main import app
from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError
from leanvit.kinds import KINDS
from leanvit.models.registry import require_model
from leanvit.recipe import (
    Root,
    check_order,
    compatibility,
    compress,
    create,
    load,
    make_method,
    methods,
    parse_with,
    save,
)
from leanvit.training import preset_names
from leanvit.verbs.explaining import explain
from pages import docs_pages, readme, runtimes, support

SLUGS = ("toy_first", "toy_smooth", "toy_vit")


@pytest.fixture
def _gone() -> Iterator[None]:
    yield
    for root in cards._roots[1:]:
        cards.remove_root(root.folder)


def tables() -> dict[str, str]:
    """Each table that lists papers, as text."""
    text = {
        "methods": CliRunner().invoke(app, ["methods"]).stdout,
        "json": CliRunner().invoke(app, ["methods", "--json"]).stdout,
        "README": readme.table(readme.rows()),
        "composition": str(compatibility()),
        "recipes": " ".join(preset_names()),
        "families": str(support.examples()),
        "public": " ".join(dir(leanvit)) + " ".join(leanvit.__all__),
    }
    pages = docs_pages.method_pages(Path("nowhere"))
    return {**text, "pages": " ".join(pages), "index": pages["methods/index.md"]}


def test_each_toy_is_in_every_table_of_its_kind_and_leaves_none_behind() -> None:
    own = tables()
    assert "toy" not in str(own).lower()
    with toys():
        found = tables()
        for table in ("methods", "json", "README", "pages", "index"):
            assert all(slug in found[table] for slug in SLUGS), table
        assert "toy_first" in found["composition"] and "toy_smooth" not in found["composition"]
        assert "toy_first_finetune" in found["recipes"] and "Toy ViT (traced)" in found["families"]
        assert all(name in found["public"] for name in ("ToyFirst", "ToySmooth", "ToyViT"))
        assert runtimes.rows() == ["dense", "evit", "tome", "int8", "evit + int8", "tome + int8"]  # what cards say
        cell, _ = support.cells([support.OF_TIMM[0]], ["toy_first"])
        assert cell.works
    assert tables() == own


def test_names_of_a_toy_resolve_while_it_is_there() -> None:
    with toys():
        assert parse_with("toy_first:dropped=2") == leanvit.ToyFirst(dropped=2)
        assert parse_with("toy_smooth").smoothing == 0.1
        assert {"toy_first", "toy_smooth"} <= {card.slug for card in methods()}
        require_model("toy_vit_tiny")
        with pytest.raises(
            BadInput, match=r"methods\[0\] is 'toy_smooth', a way to train; accepted: a method with shape"
        ):
            check_order((), [parse_with("toy_smooth")])
        with pytest.raises(BadInput, match="toy_vit is an architecture, not a method"):
            make_method("toy_vit", {})
    with pytest.raises(BadInput, match="unknown method 'toy_first'"):
        parse_with("toy_first")
    with pytest.raises(AttributeError, match="ToyFirst"):
        leanvit.ToyFirst  # noqa: B018


def test_a_run_names_the_package_that_it_needs(tmp_path: Path) -> None:
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    with toys():
        lean = compress(create(Root("vit_tiny_patch16_224", small)), [parse_with("toy_first")])
        save(lean, tmp_path, preprocess=Preprocess.of(lean))
        assert torch.equal(*(one(torch.ones(1, 3, 8, 8)) for one in (lean, load(tmp_path))))
    with pytest.raises(CheckpointError, match="registered by the module 'toy_papers': import that module"):
        load(tmp_path)


@pytest.mark.usefixtures("_gone")
def test_the_program_takes_a_package_of_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOYS.parent)
    payload = json.loads(CliRunner().invoke(app, ["--import", "toy_papers", "methods", "toy_first", "--json"]).stdout)
    assert payload["module"] == "toy_papers.tokens.toy_first" and payload["family"] == "tokens"
    small = ["img_size=8", "patch_size=4", "embed_dim=24", "depth=2", "num_heads=2"]
    args = [word for one in small for word in ("--model-arg", one)]
    command = ["compress", "vit_tiny_patch16_224", *args, "--data", "digits", "--limit", "20", "--adapt"]
    ended = CliRunner().invoke(
        app, ["--import", "toy_papers", *command, "--with", "toy_first:dropped=2", "--out", str(tmp_path / "run")]
    )
    assert ended.exit_code == 0, ended.output
    (plan,) = json.loads((tmp_path / "run" / "leanvit.json").read_text())["plans"]
    assert plan["structure"] == {"dropped": 2}


# --- cards that are wrong -------------------------------------------------------------------------------------------

GOOD = 'title = "T"\nsummary = "s"\nkinds = ["compress"]\n'


def written(tmp_path: Path, text: str, place: str = "tokens/mine") -> Path:
    folder = tmp_path / "papers_of_a_test" / place
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(text)
    return tmp_path / "papers_of_a_test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "card.toml: Invalid value"),
        ('summary = "s"\nkinds = ["compress"]', "card.toml: it lacks title"),
        (GOOD + 'titel = "T"', "it has no key 'titel': did you mean 'title'"),
        (GOOD + 'slug = "mine"', "unknown key 'slug': it follows from where the card is"),
        (GOOD + "venue = 3", "venue is 3; accepted: text"),
        (GOOD + "public = 3", "public is 3; accepted: a list, each text"),
        (GOOD.replace("compress", "comprez"), "kinds is \\['comprez'\\]; accepted: .*; did you mean 'compress'"),
        (GOOD.replace('"compress"', ""), "kinds is \\[\\]; accepted: a list, each .*compress.*, one or more"),
        (GOOD + 'models = ["m"]', "kinds has 'build' where models are named, and only there"),
        (GOOD + '[[example]]\nmodel = "m"\nargs = {}', "example.model is 'm'; accepted: no model"),
        (GOOD + '[input]\nlayout = "round"', "layout of input is 'round'; accepted: strided, patches or plain"),
        (GOOD + "[input]\nstride = 16\nleast = 20", "stride is 16, least 20"),
        (GOOD + '[measured]\ntemplate = "{speed}x"', "measured.template names other figures in braces"),
        (
            GOOD + "[knobs]\ncost = {rate = [0, true]}",
            r"cost of knobs.rate is \[0, True\]; accepted: a list, each a number",
        ),
        (GOOD + 'public = ["EViT"]', "public 'EViT' is that of"),
    ],
)
def test_a_wrong_card_is_refused_by_its_file(tmp_path: Path, text: str, message: str) -> None:
    before = cards.papers()
    with pytest.raises(BadInput, match=message) as caught:
        cards.add_root(written(tmp_path, text))
    assert "mine/card.toml" in str(caught.value).replace("\\", "/")
    assert cards.papers() == before


CLASS = """
from dataclasses import dataclass
from leanvit.recipe.registry import method

@method("{slug}")
@dataclass(frozen=True)
class Mine:
    def shape(self, model, structure): ...
"""


@pytest.mark.usefixtures("_gone")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, r"mine registers no class with @method\('mine'\)"),
        ("1 / 0", "tokens.mine cannot be imported: ZeroDivisionError: division by zero"),
        ("x = (", "tokens.mine cannot be imported: SyntaxError"),
        (CLASS.format(slug="mien"), r"@method\('mien'\) of .*mine: the slug is no paper's"),
        (CLASS.format(slug="evit"), r"@method\('evit'\) of .*mine: the slug is that of leanvit.tokens.evit"),
    ],
)
def test_a_folder_whose_code_does_not_register_its_method_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, message: str
) -> None:
    root = written(tmp_path, GOOD)
    if code is not None:
        (root / "tokens" / "mine" / "__init__.py").write_text(code)
    monkeypatch.setattr("sys.path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith(root.name)]:
        monkeypatch.delitem(sys.modules, name)
    cards.add_root(root)
    with pytest.raises(BadInput, match=message):
        make_method("mine", {})
    assert type(make_method("evit", {})) is leanvit.EViT


@pytest.mark.usefixtures("_gone")
def test_a_model_of_a_card_that_its_code_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path / "models", GOOD.replace('"compress"', '"build"') + 'models = ["mine_tiny"]')
    root = root.rename(root.with_name("models_of_a_test"))
    monkeypatch.setattr("sys.path", [*sys.path])
    cards.add_root(root)
    with pytest.raises(BadInput, match="has no mine_tiny, models that its card names"):
        explain("mine")
    with pytest.raises(BadInput, match="unknown timm model 'mine_tiny'"):
        require_model("mine_tiny")


def test_a_root_without_papers_or_with_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no folder"):
        cards.add_root(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="holds no papers"):
        cards.add_root(tmp_path)
    with pytest.raises(BadInput, match="slug 'evit' is that of"):
        cards.add_root(written(tmp_path, GOOD, "tokens/evit"))
    with pytest.raises(BadInput, match="cannot be imported as 'json'"):
        cards.add_root(written(tmp_path / "other", GOOD), "json")
    with pytest.raises(BadInput, match=r"cannot be imported as 'no_such\.name'"):
        cards.add_root(tmp_path / "other" / "papers_of_a_test", "no_such.name")
    with pytest.raises(BadInput, match="was not added"):
        cards.remove_root(tmp_path)


def test_every_card_of_the_package_names_what_there_is() -> None:
    for card in cards.papers().values():
        module = import_module(card.module)
        assert (module.__doc__ or "").strip(), card.slug
        assert all(hasattr(module, name) for name in card.public), card.slug
        assert all(timm.is_model(name) for name in card.models), card.slug


def test_every_kind_has_its_verb_its_protocol_and_its_contract() -> None:
    for kind in KINDS.values():
        assert kind.verb in typer.main.get_command(app).commands
        assert (TOYS.parent / "contract" / kind.contract).is_file()
        module, _, name = kind.protocol.partition(":")
        assert not module or hasattr(import_module(module), name)
        assert kind.is_method == bool(kind.steps)
    with toys():
        assert {kind for card in cards.papers().values() for kind in card.kinds} == set(KINDS)
