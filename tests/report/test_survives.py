"""The report survives what lies in a run folder: shown right, or left out and named with the reason."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanvit.measure import Comparison
from leanvit.recipe import Root, create, save
from leanvit.report import page as page_module
from leanvit.report import write_report
from leanvit.runs.commands import Command
from leanvit.runs.evidence import Evidence
from leanvit.runs.token_maps import TokenMaps

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}%{y}[bold]\x1b[31m"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 10**400, -(10**30), 1e308, -1e-320, 0.5, float("nan"), float("inf")),
    *("", "digits", HOSTILE, "x" * 5000, [], {}, [None], [[]], {"a": HOSTILE}, [1e308] * 3, [0.0] * 3, [1e-300] * 3),
)
QUICK = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", autouse=True)
def _without_plotly(module_patch: pytest.MonkeyPatch) -> None:
    """Its five megabytes are the same on every page."""
    module_patch.setattr(page_module, "get_plotlyjs", lambda: "plotly")


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def run(tmp_path: Path, comparison: Comparison, maps: TokenMaps, evidence: Evidence) -> Path:
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 2}
    folder = save(create(Root("vit_tiny_patch16_224", kwargs)), tmp_path / "run", classes=["a", "b"])
    (folder / "measure.json").write_text(comparison.to_json())
    (folder / "measure-2.json").write_text(comparison.to_json())
    (folder / "tokens.json").write_text(maps.to_json())
    evidence.save(folder / "predictions.safetensors")
    (folder / "disagreements.json").write_text(json.dumps({"format": 1, "pictures": {"b": maps.pictures[0].image}}))
    lines = [{"event": "start"}, {"event": "step", "step": 1, "loss": 2.0, "lr": 0.1}]
    lines += [{"event": "epoch", "step": 2, "loss": 1.5, "top1": 0.5}]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = Command(
        "measure", "leanvit measure run", "2026-01-02T03:04:05+00:00", 1.5, {"torch": "2.9"}, "measure.json"
    )
    (folder / "commands.jsonl").write_text(json.dumps(asdict(command)) + "\n")
    return folder


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON tree is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


def mutated(content: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """One place of a JSON tree removed, doubled, renamed, or set to another value."""
    if not path:
        return value
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    if how == "remove":
        holder.pop(key)
    elif how == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == "add" and isinstance(holder, dict):
        holder[HOSTILE] = value
    else:
        holder[key] = value
    return content


def written(run: Path, name: str) -> str:
    """The page; what is left out of it must be named there and in a warning."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        page = write_report([run], run / "page.html", overwrite=True).read_text()
    left_out = [str(one.message) for one in said if "not in the report" in str(one.message)]
    assert ('id="unreadable"' in page) is bool(left_out)
    assert all(name.split(".")[0].split("-")[0] in one or "predictions" in one for one in left_out), left_out
    for markup in ("<script>alert", "<img src=x", "</script><script>a"):
        assert markup not in page
    return page


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        *(("measure-2.json", 24), ("measure.json", 6), ("tokens.json", 10)),
        *(("disagreements.json", 4), ("train.jsonl", 8), ("commands.jsonl", 8)),
    ],
)
def test_a_changed_file_is_shown_or_named(run: Path, name: str, examples: int) -> None:
    good = (run / name).read_text()
    content = [json.loads(line) for line in good.splitlines()] if name.endswith("l") else json.loads(good)
    places = paths(content)

    @settings(max_examples=examples, **QUICK)
    @given(st.sampled_from(places), st.sampled_from(["set", "set", "remove", "double", "add"]), st.sampled_from(VALUES))
    def check(path: tuple[Any, ...], how: str, value: Any) -> None:
        made = mutated(content, path, how, value)
        lines = made if isinstance(made, list) else [made]
        text = "".join(f"{json.dumps(line)}\n" for line in lines) if name.endswith("l") else json.dumps(made)
        (run / name).write_text(text)
        written(run, name)

    check()


@pytest.mark.parametrize("name", ["measure.json", "tokens.json", "disagreements.json", "train.jsonl", "commands.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[" * 50_000, b"null\n", b"[]\n", b'"text"\n', b"{}\n", b"1" * 5000]
)
def test_what_is_no_such_file_is_named(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    page = written(run, name)
    if name == "measure.json":
        assert f"{name}: not a comparison" in page and "4.00×" in page, "the other measurement is shown"


def test_latency_tables_are_no_part_of_a_report(run: Path) -> None:
    (run / "latencies-openvino.json").write_text("{")
    assert "latencies" not in written(run, "latencies-openvino.json")


def test_thousands_of_rows_are_shown(run: Path, comparison: Comparison, make_row) -> None:
    rows = tuple(make_row(f"model {i}", ms=1.0 + i, top1=50.0) for i in range(1000))
    (run / "measure-2.json").write_text(replace(comparison, rows=comparison.rows + rows).to_json())
    assert "model 999" in written(run, "measure-2.json")
