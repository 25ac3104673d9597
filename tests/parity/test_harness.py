"""The harness on cases made here (other sizes, depths, ratios, batches) and on cases that must fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from parity import transcription as t
from parity.cases import Case, check, folder, found
from parity.parity_lgvit import _rule as lgvit_rule

SMALL = {
    "img_size": 24,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
    "mlp_ratio": 2.0,
}
NO_CALL = {"keep_rate": None, "tokens": None}

EVIT = {
    "one_rate": ({**SMALL, "keep_rate": 0.5, "fuse_token": True}, NO_CALL, 1),
    "drop": ({**SMALL, "keep_rate": [0.3, 1, 0.9], "fuse_token": False, "num_heads": 3, "embed_dim": 30}, NO_CALL, 3),
    "deep": ({**SMALL, "depth": 7, "keep_rate": [1, 0.8, 1, 0.8, 1, 0.8, 1], "fuse_token": True}, NO_CALL, 2),
    "run_rate": ({**SMALL, "keep_rate": [1, 0.5, 1], "fuse_token": True}, {"keep_rate": 0.9, "tokens": None}, 2),
    "run_rate_1": ({**SMALL, "keep_rate": [1, 0.5, 1], "fuse_token": True}, {"keep_rate": 1.0, "tokens": None}, 2),
    "run_rates": (
        {**SMALL, "keep_rate": [1, 0.5, 0.5], "fuse_token": False},
        {"keep_rate": [0.2, 0.6, 1], "tokens": None},
        2,
    ),
    "tokens": ({**SMALL, "keep_rate": [1, 0.5, 1], "fuse_token": False}, {"keep_rate": None, "tokens": 9}, 2),
    "tokens_fused": ({**SMALL, "keep_rate": [1, 0.5, 1], "fuse_token": True}, {"keep_rate": 0.9, "tokens": 9}, 2),
    "tokens_list": ({**SMALL, "keep_rate": 1, "fuse_token": True}, {"keep_rate": None, "tokens": [20, None, 7]}, 2),
    "nothing": ({**SMALL, "keep_rate": [1, 0.999, 1], "fuse_token": True}, NO_CALL, 2),
}
TOME = {
    "int": (SMALL, 4, [4, 4, 4], True, 2),
    "many": ({**SMALL, "depth": 6, "num_classes": 3}, 12, [12] * 6, True, 1),
    "no_prop": (SMALL, 4, [4, 4, 4], False, 3),
    "list": ({**SMALL, "img_size": 20}, [0, 5], [0, 5, 0], True, 2),
    "falling": (SMALL, [4, -1.0], [8, 4, 0], True, 2),
    "off": (SMALL, 0, [0, 0, 0], True, 2),
}
FLAGS = [
    {"class_token": c, "distill_token": d, "r": r} for c in (True, False) for d in (True, False) for r in (1, 4, 30)
]


@pytest.mark.parametrize("name", EVIT)
def test_evit_at_other_sizes(tmp_path: Path, name: str) -> None:
    constructor, call, batch = EVIT[name]
    check(Case(t.evit_case(tmp_path, name, constructor=constructor, call=call, batch=batch, seed=len(name))))


@pytest.mark.parametrize("name", TOME)
def test_tome_at_other_sizes(tmp_path: Path, name: str) -> None:
    constructor, r, per_block, prop, batch = TOME[name]
    path = t.tome_case(
        tmp_path, name, constructor=constructor, r=r, per_block=per_block, prop=prop, batch=batch, seed=len(name)
    )
    check(Case(path))


@pytest.mark.parametrize("tokens", [12, 15])
def test_merges_with_every_protection(tmp_path: Path, tokens: int) -> None:
    check(Case(t.tome_core_case(tmp_path, "any", flags=FLAGS, tokens=tokens, seed=tokens)))


def _case(tmp_path: Path) -> Case:
    constructor, call, batch = EVIT["one_rate"]
    return Case(t.evit_case(tmp_path, "x", constructor=constructor, call=call, batch=batch, seed=3))


@pytest.mark.parametrize("key", ["output/logits", "output/grad_x", "mid/topk_idx_0", "mid/block1_out"])
def test_a_wrong_value_fails(tmp_path: Path, key: str) -> None:
    case = _case(tmp_path)
    tensors = load_file(case.path.with_suffix(".safetensors"))
    tensors[key] = tensors[key].flip(-1)
    save_file(tensors, case.path.with_suffix(".safetensors"))
    with pytest.raises(AssertionError, match="evit/x"):
        check(Case(case.path))


def _rewritten(case: Case, **changes: Any) -> Case:
    case.path.write_text(json.dumps({**case.spec, **changes}))
    return Case(case.path)


def test_an_unknown_kind_of_a_present_method_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"no handler for \['backward'\]"):
        check(_rewritten(_case(tmp_path), kind="backward"))


def test_a_method_without_its_module_fails(tmp_path: Path) -> None:
    case = _case(tmp_path)
    moved = tmp_path / "int8"
    case.path.parent.rename(moved)
    with pytest.raises(AssertionError, match=r"parity_int8\.py is missing"):
        check(Case(moved / "x.json"))


def test_cases_are_found_by_option_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(tmp_path)
    assert [c.id for c in found(tmp_path)] == [c.id for c in found(case.path.parent)] == ["evit/x"]
    monkeypatch.setenv("LEANVIT_PARITY", str(case.path.parent))
    assert folder(str(tmp_path)) == tmp_path and folder(None) == case.path.parent
    with pytest.raises(FileNotFoundError, match="--cases"):
        folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "threshold", "kind", "value", "patience"),
    [
        ("confidence", 0.9, "confidence", 0.9, 2),
        ("entropy", [0.6], "entropy", 0.6, 2),
        ("patience", 4, "patience", 4, 2),
        ("patience", [4], "patience", 4, 2),
        ("patient-confident", [0.5, 3], "patient_confident", 0.5, 3),
        ("patient_and_confident", [0.5], "patient_confident", 0.5, 2),
        ("patient_and_confident", 0.5, "patient_confident", 0.5, 2),
    ],
)
def test_thresholds_of_every_rule_are_read(
    tmp_path: Path, name: str, threshold: Any, kind: str, value: float, patience: int
) -> None:
    case = Case(tmp_path / "rule.json")
    case.path.write_text(json.dumps({"exit_rule": name, "constructor": {}}))
    rule = lgvit_rule(case, threshold, 3)
    assert (rule.kind, rule.thresholds, rule.patience) == (kind, (value,) * 3, patience)


def test_a_threshold_of_another_form_fails(tmp_path: Path) -> None:
    case = Case(tmp_path / "rule.json")
    case.path.write_text(json.dumps({"exit_rule": "patience", "constructor": {}}))
    with pytest.raises(AssertionError, match="cannot read the threshold"):
        lgvit_rule(case, [4, 2], 3)
