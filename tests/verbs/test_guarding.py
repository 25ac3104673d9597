"""A method that does not fit, or fails, is left out of a comparison with its reason; the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanvit.cli.main import app
from leanvit.errors import BadInput, LeanvitError, Refused
from leanvit.recipe import at_macs
from leanvit.runs.compared import BASELINE, SideBySide
from leanvit.runs.token_maps import keep_tokens
from leanvit.tokens.tome import ToMe
from leanvit.verbs.candidates import choose
from leanvit.verbs.comparing import compare_methods
from leanvit.verbs.guarding import LeftOut
from leanvit.verbs.models import load_model, silent

ARGS = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10, "depth": 2, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"
GIVEN: dict[str, Any] = {"macs": 0.7, "model_args": ARGS, "limit": 20, "rounds": 3, "controls": False, "tolerance": 0.5}


def broken(*_: object) -> None:
    raise IndexError("list index\nout of range")


def test_a_method_that_breaks_is_left_out_with_a_traceback_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "here", []
    with monkeypatch.context() as patch:
        patch.setattr("leanvit.verbs.applying.keep_tokens", _breaks_at_tome)
        found = compare_methods(NAME, "digits", ["tome", "evit"], out=out, log=said.append, **GIVEN)
    assert [one.name for one in found.result.standings] == ["evit"]
    assert found.result.left_out == {"tome": "unexpected IndexError: list index out of range"}
    assert {row.name for row in found.comparison.rows} == {BASELINE, "evit"}
    assert "in broken" in (out / "tome-error.txt").read_text() and any("tome-error.txt" in line for line in said)
    again = compare_methods(NAME, "digits", ["tome", "evit"], out=out, resume=True, **GIVEN)
    assert [one.name for one in again.result.standings] == ["tome", "evit"] and not again.result.left_out
    assert SideBySide.read(out).left_out == {}


def _breaks_at_tome(*given: Any, name: str) -> Any:
    return broken() if name == "tome" else keep_tokens(*given, name=name)


def test_where_none_comes_through_the_reasons_are_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.verbs.applying.keep_tokens", lambda *_, **__: broken())
    with pytest.raises(LeanvitError, match=r"no method came through: unexpected IndexError"):
        compare_methods(NAME, "digits", ["tome"], out=tmp_path / "here", **GIVEN)


def test_named_methods_that_do_not_fit_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load_model(NAME, model_args={**ARGS, "class_token": False, "global_pool": "avg"})
    monkeypatch.setattr(ToMe, "at_macs", classmethod(lambda *_: broken()))
    chosen, left_out = choose(start, ["evit", "tome", "stvit"], 0.7, tolerance=0.9, controls=False, log=silent)
    assert [one.name for one in chosen] == ["stvit"] and "class token" in left_out["evit"]
    assert left_out["tome"].startswith("unexpected IndexError") and "in broken" in left_out.tracebacks["tome"]
    with pytest.raises(BadInput, match="no knob 'keep'"):
        choose(start, ["stvit", "evit:keep=1"], 0.7, tolerance=0.9, controls=False, log=silent)


def test_a_model_of_one_block_has_no_setting_of_stvit() -> None:
    start = load_model(NAME, model_args={**ARGS, "depth": 1})
    with pytest.raises(Refused, match=r"stvit generates in 2 blocks.*this model has 1 block and a grid of 8x8"):
        at_macs(start.model, "stvit", 0.8)


def test_an_interrupt_goes_through_even_behind_another_error() -> None:
    left_out = LeftOut()
    for raised in (KeyboardInterrupt(), ImportError("half an import")):
        raised.__cause__ = KeyboardInterrupt()
        with pytest.raises(type(raised)), left_out.guard("tome", silent):
            raise raised
    assert not left_out


def test_a_recovery_batch_has_an_option(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    words = ["compare-methods", NAME, "--data", "digits", "--limit", "20", "--macs", "0.7", "--recover", "1"]
    words += [word for key, value in ARGS.items() for word in ("--model-arg", f"{key}={value}")]
    done = CliRunner().invoke(app, [*words, "--recover-batch", "64", "--with", "tome", "--out", str(tmp_path / "new")])
    assert done.exit_code == 2 and "--recover-batch 20" in done.output and not (tmp_path / "new").exists()
