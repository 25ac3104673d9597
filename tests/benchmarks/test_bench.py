"""Results are never mixed with those of other settings; recorded commands still run; results say what they hold."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from leanvit.cards import papers
from leanvit.errors import BadInput

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.json"))
RESULTS = {f.stem: found for f in FILES if "kind" not in (found := json.loads(f.read_text(encoding="utf-8")))}
BY = {  # scripts of results that are not named after them
    "lgvit_stream_deit_small": "lgvit_stream",
    "token_methods_longer": "token_methods",
    "token_methods_search": "token_methods",
    "tokens_deit_small": "tokens_speed",
}


def kept_rows(path: Path, settings: dict[str, Any], **more: Any) -> Any:
    bench = import_module("bench")
    about = bench.About("Digits", "A few.", (bench.Table("rows", ("top1", "params")),))
    return bench.KeptRows(path, about, settings, **more)


def test_rows_come_back_and_are_found_by_their_columns(tmp_path: Path) -> None:
    first = kept_rows(tmp_path / "rows.json", {"images": 5})
    first.add({"method": "evit", "seed": 0, "top1": 90.5})
    again = kept_rows(tmp_path / "rows.json", {"images": 5})
    assert again.get(method="evit", seed=0) == {"method": "evit", "seed": 0, "top1": 90.5}
    assert again.get(method="evit", seed=1) is None


def test_rows_of_other_settings_or_machines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    kept_rows(path, {"images": 5}).add({"seed": 0})
    with pytest.raises(BadInput, match=r"images was 5 and is 6.*--fresh"):
        kept_rows(path, {"images": 6})
    assert kept_rows(path, {"images": 6}, fresh=True).rows == []
    content = json.loads(path.read_text())
    content["environment"]["cpu"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="CPU was another"):
        kept_rows(path, {"images": 5})


def test_a_part_that_has_not_run_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    kept_rows(path, {"accuracy": None}).add({"part": "speed"})
    kept_rows(path, {"accuracy": "digits"}).add({"part": "accuracy"})
    kept = kept_rows(path, {"accuracy": None})
    assert len(kept.rows) == 2 and kept.content["settings"] == {"accuracy": "digits"}


def test_a_result_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    kept = kept_rows(tmp_path / "rows.json", {})
    with pytest.raises(ValueError):
        kept.add({"top1": float("nan")})
    assert not kept.path.exists()


def test_a_result_says_what_its_columns_are(tmp_path: Path) -> None:
    kept_rows(tmp_path / "rows.json", {}).add({"top1": 90.5, "params": 2_000_000})
    found = json.loads((tmp_path / "rows.json").read_text())
    assert list(found)[:4] == ["title", "about", "columns", "tables"]
    assert found["columns"]["top1"] == {"heading": "top1"}, "a key that nobody describes is its own heading"
    assert found["columns"]["params"] == {"heading": "parameters", "unit": "M", "form": ".2f", "scale": 1e-6}
    assert found["tables"] == [{"rows": "rows", "columns": ["top1", "params"]}]


def test_options_take_type_and_meaning_from_their_default(capsys: pytest.CaptureFixture[str]) -> None:
    bench = import_module("bench")
    parser = bench.parser(
        "A benchmark.",
        data=None,
        batch=[8, 1],
        lr=1e-3,
        val_images=None,
        out=Path("a.json"),
        fresh=False,
        controls=bench.Option(True, "leave them out"),
        pairs=bench.Option(["a", "b"], choices=("a", "b"), several=True),
    )
    plain = parser.parse_args([])
    assert (plain.data, plain.batch, plain.controls, plain.pairs) == (None, [8, 1], True, ["a", "b"])
    text = "cifar10 --batch 32 --batch 4 --lr 1 --val-images 5 --out b.json --fresh --no-controls --pairs b"
    given = parser.parse_args(text.split())
    assert (given.data, given.batch, given.lr, given.val_images) == ("cifar10", [32, 4], 1.0, 5)
    assert (given.out, given.fresh, given.controls, given.pairs) == (Path("b.json"), True, False, ["b"])
    assert parser.parse_args([]).batch == [8, 1], "the default is not appended to"
    with pytest.raises(SystemExit):
        parser.parse_args(["--pairs", "c"])
    assert "invalid choice: 'c'" in capsys.readouterr().err


def recorded() -> Iterator[str]:
    """Every command of a benchmark that a committed result or a paper's figures name."""
    for content in RESULTS.values():
        for key in ("command", "commands"):
            payload = content.get(key, [])
            yield from payload.split("; ") if isinstance(payload, str) else payload
        for row in content.get("rows", []):
            yield row.get("command", "")
    for paper in papers().values():
        yield from paper.measured.command.split("; ")


@pytest.mark.parametrize("line", sorted({one for one in recorded() if one.startswith("python benchmarks/")}))
def test_recorded_commands_are_still_understood(line: str) -> None:
    script, *options = shlex.split(line)[1:]
    if "torch_pruning" in script:
        pytest.importorskip("torch_pruning")
    import_module(Path(script).stem).OPTIONS.parse_args(options)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_committed_results_say_of_themselves_what_their_script_says(name: str) -> None:
    if "torch_pruning" in name:
        pytest.importorskip("torch_pruning")
    about = import_module(BY.get(name, name)).ABOUT.to_json(name)
    assert about == {key: RESULTS[name][key] for key in about}, "run the one-off edit again, or the benchmark"
