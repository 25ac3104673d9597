"""The latency table as a value: what it predicts, what it refuses, and its file."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.files import sealed_text
from leanvit.measure import BlockShape, LatencyTable
from leanvit.measure.latency_table import FORMAT, KIND, Grid

AXES = {"tokens": (10, 20), "embed": (16, 32), "heads": (1, 2, 4), "width": (1, 8, 16)}


def grid(axes: dict[str, tuple[int, ...]], value) -> Grid:
    return Grid(
        axes, tuple(float(value(**dict(zip(axes, at, strict=True)))) for at in itertools.product(*axes.values()))
    )


def attention(tokens: int, embed: int, heads: int, width: float) -> float:
    return heads * width * (4 * embed + 2 * tokens) + 5 * tokens * embed


def mlp(tokens: int, embed: int, mlp: int) -> float:
    return tokens * embed * (1 + 2 * mlp)


@pytest.fixture
def table() -> LatencyTable:
    """A machine whose times are multilinear: interpolation must be exact everywhere."""
    pick = {"tokens": AXES["tokens"], "heads": AXES["heads"], "total": (12, 24)}
    return LatencyTable(
        runtime="torch",
        precision="f32",
        batch=2,
        threads=None,
        model="made up",
        equal=grid(AXES, attention),
        wider_qk=grid(pick, lambda tokens, heads, total: tokens * heads + total),
        wider_v=grid(pick, lambda tokens, heads, total: -heads),
        mlp=grid({"tokens": (10, 20), "embed": (16, 32), "mlp": (1, 64)}, mlp),
        fixed=grid({"embed": (16, 32)}, lambda embed: 3 * embed),
        provenance={"date": "today"},
    )


AT = {"tokens": 13, "embed": 20, "heads": 3, "qk": 5, "v": 5, "mlp": 40}


def test_nodes_are_exact_and_between_them_it_is_linear(table: LatencyTable) -> None:
    node = {"tokens": 20, "embed": 32, "heads": 2, "qk": 8, "v": 8, "mlp": 64}
    assert table.seconds(**node) == attention(20, 32, 2, 8) + mlp(20, 32, 64)
    assert table.seconds(**AT) == pytest.approx(attention(13, 20, 3, 5) + mlp(13, 20, 40))


def test_unequal_widths_take_the_other_kernel(table: LatencyTable) -> None:
    rest = mlp(13, 20, 40)
    mean = attention(13, 20, 3, 8)  # of 6 and 10
    assert table.seconds(**{**AT, "qk": 10, "v": 6}) == pytest.approx(mean + 13 * 3 + 16 + rest)
    assert table.seconds(**{**AT, "qk": 6, "v": 10}) == pytest.approx(mean - 3 + rest)
    low = attention(13, 20, 3, 1.5) + 13 * 3 + 12 + rest  # below the nodes of qk + v: as at the lowest
    assert table.seconds(**{**AT, "qk": 2, "v": 1}) == pytest.approx(low)


def test_a_step_in_the_block_gives_each_half_its_own_length(table: LatencyTable) -> None:
    apart = table.seconds(**AT, attn_tokens=20)
    assert apart == pytest.approx(attention(20, 20, 3, 5) + mlp(13, 20, 40))


def test_a_model_is_its_blocks_and_what_is_outside(table: LatencyTable) -> None:
    shapes = [BlockShape(tokens=13, heads=3, qk=5, v=5, mlp=40), {"tokens": 20, "heads": 1, "qk": 8, "v": 8, "mlp": 1}]
    other = table.seconds(tokens=20, embed=20, heads=1, qk=8, v=8, mlp=1)
    assert table.model_seconds(shapes, 20) == pytest.approx(table.seconds(**AT) + other + 60)
    assert replace(table, steps_s=2.0).model_seconds(shapes, 20) == pytest.approx(table.model_seconds(shapes, 20) + 2)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("tokens", 21, "tokens is 21, .* accepted: 10 to 20"),
        ("embed", 15, "embed is 15, .* accepted: 16 to 32"),
        ("heads", 0, "heads is 0, .* accepted: 1 to 4"),
        ("qk", 17, "qk is 17, .* accepted: 1 to 16"),
        ("v", float("nan"), "v is nan, .* accepted: 1 to 16"),
        ("mlp", 65, "mlp is 65, .* accepted: 1 to 64"),
    ],
)
def test_outside_the_table_is_refused_by_name(table: LatencyTable, name: str, value: int, says: str) -> None:
    with pytest.raises(BadInput, match=f"^{says}"):
        table.seconds(**{**AT, name: value})
    assert table.covers(**AT) and not table.covers(**{**AT, name: value})


def test_the_file_gives_the_table_back(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_the_fingerprint_is_of_the_predictions(table: LatencyTable) -> None:
    assert replace(table, provenance={}, check={"worst_error": 0.1}).fingerprint == table.fingerprint
    assert replace(table, steps_s=1.0).fingerprint != table.fingerprint


def test_damaged_files_are_named(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(BadInput, match="no latency table at"):
        LatencyTable.load(path)
    table.save(path)
    whole = path.read_text()
    for content, says in (
        (whole[:200], "not valid JSON"),
        ("{}", "not a leanvit latency table"),
        (whole.replace('"batch": 2', '"batch": 4'), "changed after it was written"),
        (whole.replace(f'"format": {FORMAT}', '"format": 99'), "update leanvit"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=says):
            LatencyTable.load(path)


def test_a_file_of_other_content_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    def edited(edit) -> Path:
        content = table.to_json()
        edit(content)
        path = tmp_path / "edited.json"
        path.write_bytes(sealed_text({"kind": KIND, "format": FORMAT, "table": content}))
        return path

    for edit, says in (
        (lambda t: t["mlp"]["values"].pop(), "mlp: a grid of .* finite values"),
        (lambda t: t["fixed"]["axes"].update(embed=[32, 16]), "fixed: nodes of embed .* ascending"),
        (lambda t: t["equal"]["axes"].pop("heads"), "equal has the axes"),
        (lambda t: t.update(batsh=1), "unknown key 'table.batsh'"),
    ):
        with pytest.raises(CheckpointError, match=says):
            LatencyTable.load(edited(edit))
    with pytest.raises(CheckpointError, match="runtime"):
        LatencyTable.from_json({k: v for k, v in table.to_json().items() if k != "runtime"})
