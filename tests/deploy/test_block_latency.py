"""Measuring a latency table: what is built and timed, in which kernels, how it resumes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import leanvit.deploy.block_latency as block_latency
from deploy_models import small, small_int8
from leanvit.anatomy import OpenViT, open_model
from leanvit.deploy import Nodes, block_shapes, check_table, latencies, measure_table
from leanvit.deploy.block_graphs import HalfBlocks, half_blocks, opened, reshaped, rounded, skeleton
from leanvit.deploy.block_grid import Entry, anchor_of, entries
from leanvit.deploy.block_latency import Bench
from leanvit.deploy.openvino import integer_products, write_files
from leanvit.deploy.table_check import held_out, nodes_of, partial_of
from leanvit.deploy.tracing import trace
from leanvit.errors import BadInput, Refused
from leanvit.measure import BlockShape, Latency, LatencyTable
from leanvit.tokens.evit import EViT
from zoo import build

FAST: dict[str, Any] = {"batch": 2, "rounds": 3, "seconds": 1e-4}
FEW = Nodes(tokens=(17,), embed=(32, 64), heads=(1, 2), width=(8, 16, 32), mlp=(1, 256))


def slim(model: OpenViT) -> OpenViT:
    """EViT between attention and MLP of block 0."""
    method = EViT(keep_rate=0.5, blocks=(0,))
    method.shape(model, method.learn(model, None))  # type: ignore[arg-type]
    return model


# --- what is built --------------------------------------------------------------------------------------------------


def test_halves_are_those_of_the_block() -> None:
    """Both halves, one after the other, are the block: nothing of it is left untimed."""
    model = skeleton(small(), 1)
    x, block = torch.randn(2, 17, 64), model.blocks[0]
    halves = HalfBlocks(model, "attention"), HalfBlocks(model, "mlp")
    state = model.start(torch.zeros(2, 3, 32, 32))
    with torch.no_grad():
        between = block.attended(x, state, frozenset())[0]
        assert torch.equal(halves[0](x), between.mean(1))
        assert torch.equal(halves[1](between), block(x, state)[0].mean(1))


def test_half_blocks_have_the_widths_asked_for() -> None:
    model = small()
    made = half_blocks(skeleton(model, 2), half="attention", embed=40, heads=3, qk=5, v=7).model
    assert [tuple(b.attn.qkv.weight.shape) for b in made.blocks] == [(3 * (5 + 5 + 7), 40)] * 2
    assert len(model.blocks) == 2 and model.embed_dim == 64, "the model itself is left alone"


def test_whole_models_are_reshaped_block_by_block() -> None:
    shapes = [BlockShape(17, 1, 8, 24, 100), BlockShape(17, 3, 16, 16, 8, attn_tokens=17)]
    made = reshaped(small(), 48, shapes)
    assert [replace(s, attn_tokens=None) for s in block_shapes(made)] == [replace(s, attn_tokens=None) for s in shapes]
    assert made(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_lengths_are_seen_where_a_step_takes_tokens() -> None:
    shapes = block_shapes(slim(small()))
    assert [(s.attn_tokens, s.tokens) for s in shapes] == [(17, 10), (10, 10)]
    assert Nodes.of(shapes, 64).tokens == (10, 17)


@pytest.mark.e2e
def test_an_int8_half_block_runs_integer_kernels(tmp_path: Path) -> None:
    """All of its products with weights: q, k, v and the projection; fc1 and fc2."""
    for half, products in (("attention", 4), ("mlp", 2)):
        runs = half_blocks(skeleton(small(), 1), half=half, embed=64, heads=2, qk=16, v=32, mlp=128)
        rounded(runs, runs.model, torch.randn(2, 17, 64))
        write_files(trace(runs, (17, 64), 2), tmp_path)
        assert integer_products(tmp_path) == (products, products)


@pytest.mark.parametrize("runtime", ["openvino", "openvino-int8"])
def test_a_runtime_computes_what_torch_computes(runtime: str) -> None:
    """What is timed is the model: a graph that computed something else would have another time."""
    bench = Bench.of(small(), runtime, threads=None, **FAST)
    runs = half_blocks(skeleton(bench.model, 1), half="attention", embed=64, heads=2, qk=16, v=32)
    x = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(0))
    call = opened(runs, runs.model, x, bench.spec, None)
    with torch.no_grad():
        want = runs(x)
    got = torch.from_numpy(call(x))
    assert (got - want).norm() / want.norm() < (0.05 if bench.spec.rounded else 1e-4)


# --- the grid -------------------------------------------------------------------------------------------------------


def test_nodes_cover_the_model_and_what_pruning_leaves() -> None:
    deit = Nodes.of([BlockShape(197, 6, 64, 64, 1536)] * 12, 384)
    assert deit == Nodes((197,), (96, 192, 384), (1, 3, 6), (8, 16, 32, 48, 64), (8, 384, 768, 1152, 1536))
    tiny = Nodes.of([BlockShape(17, 1, 3, 5, 2), BlockShape(12, 2, 4, 4, 7)], 6)
    assert tiny == Nodes((12, 17), (2, 3, 6), (1, 2), (2, 4, 5), (2, 4, 5, 7))
    many = Nodes.of([BlockShape(n, 3, 8, 8, 8) for n in (50, 60, 70, 80, 90)], 16)
    assert many.tokens == (50, 70, 90)


def test_every_entry_is_measured_once() -> None:
    keys = [entry.key for entry in entries(FEW)]
    assert len(set(keys)) == len(keys) and keys[0] == anchor_of(FEW).key == "attention 64 17 2 32 32 0"
    attention, unequal = 2 * 2 * 3, 2 * 2 * 2  # embed x heads x width; heads x pairs x both ways
    assert len(keys) == attention + unequal + 2 * 2 + 2 + 2


# --- the table ------------------------------------------------------------------------------------------------------


class FakeClock:
    """Times from a formula instead of a clock: what the assembly makes of entries can then be told exactly."""

    opened: list[str]

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = []
        self.slowdown = 1.0
        monkeypatch.setattr(Bench, "open", self._open)
        monkeypatch.setattr(Bench, "time", self._time)

    def _open(self, entry: Entry) -> Any:
        self.opened.append(entry.key)
        return lambda _: entry

    def _time(self, calls: dict[str, Any]) -> dict[str, Latency]:
        self.slowdown *= 1.5  # the machine drifts from chunk to chunk
        timed = {name: self.seconds(call(None)) * self.slowdown for name, call in calls.items()}
        return {name: Latency((s,) * 3, 2, 1, 1, "cpu", "run") for name, s in timed.items()}

    @staticmethod
    def seconds(entry: Entry) -> float:
        call = 7.0 + entry.embed
        if entry.kind == "attention":
            unequal = 0 if entry.qk == entry.v else entry.heads * (1 if entry.qk > entry.v else -1)
            return call + entry.heads * (entry.qk + entry.v) * entry.embed + unequal
        return call + (entry.embed * entry.mlp if entry.kind == "mlp" else 0)


def test_the_table_is_the_entries_less_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drifting machine changes the unit (the anchor's median over the chunks), and nothing else."""
    clock = FakeClock(monkeypatch)
    table = measure_table(small(), grid=FEW, **FAST)
    unit = table.provenance["anchor_s"] / clock.seconds(anchor_of(FEW))
    at = {"tokens": 17, "embed": 48, "heads": 2, "mlp": 100}
    assert table.seconds(**at, qk=12, v=12) == pytest.approx(unit * (2 * 24 * 48 + 48 * 100))
    assert table.seconds(**at, qk=16, v=8) == pytest.approx(unit * (2 * 24 * 48 + 2 + 48 * 100))
    assert table.seconds(**at, qk=8, v=16) == pytest.approx(unit * (2 * 24 * 48 - 2 + 48 * 100))
    assert table.fixed.at(embed=48) == pytest.approx(unit * 55)


def test_an_interrupted_table_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, file = FakeClock(monkeypatch), tmp_path / "part"
    chunks = iter(range(100))

    def interrupted(self: Bench, calls: dict[str, Any]) -> dict[str, Latency]:
        if next(chunks) == 2:
            raise KeyboardInterrupt
        return clock._time(calls)

    monkeypatch.setattr(Bench, "time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_table(small(), grid=FEW, partial=file, **FAST)
    clock.opened.clear()
    table = measure_table(small(), grid=FEW, partial=file, **FAST)
    left = len(entries(FEW)) - 1 - 2 * block_latency.CHUNK
    assert len(clock.opened) == 1 + left, "the anchor and what was not finished"
    unit = table.provenance["anchor_s"] / clock.seconds(anchor_of(FEW))
    assert table.fixed.at(embed=64) == pytest.approx(unit * 71)


def test_entries_of_other_settings_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, file = FakeClock(monkeypatch), tmp_path / "part"
    measure_table(small(), grid=FEW, partial=file, **FAST)
    clock.opened.clear()
    measure_table(small(), grid=FEW, partial=file, **FAST)
    assert not clock.opened, "all of it is there"
    measure_table(small(), grid=FEW, partial=file, **{**FAST, "batch": 3})
    assert len(clock.opened) == len(entries(FEW))


def test_a_table_of_torch_end_to_end(tmp_path: Path) -> None:
    """Real times of a tiny model: positive, more for more, kept with their provenance and their check."""
    seen: list[tuple[int, int]] = []
    table = latencies(
        small(), batch=2, grid=FEW, rounds=3, check=2, out=tmp_path / "t.json", progress=lambda *n: seen.append(n)
    )
    assert LatencyTable.load(tmp_path / "t.json") == table and not partial_of(tmp_path / "t.json").exists()
    assert nodes_of(table) == FEW and seen[-1] == (len(entries(FEW)) - 1,) * 2
    assert min(table.fixed.values) > 0 and table.mlp.at(tokens=17, embed=64, mlp=256) > 0
    assert table.provenance["environment"]["versions"]["torch"] and table.provenance["entries"] == len(entries(FEW)) - 1
    assert table.check and [len(row["blocks"]) for row in table.check["rows"]] == [2, 2]
    errors = [abs(row["error"]) for row in table.check["rows"]]
    assert table.check["worst_error"] == max(errors) and table.check["tolerance"] == 0.15


def test_held_out_widths_follow_from_the_seed_and_lie_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClock(monkeypatch)
    model = small()
    table = measure_table(model, grid=FEW, **FAST)
    drawn = [held_out(table, model, seed=1, number=i, multiple=8) for i in range(20)]
    assert drawn == [held_out(table, model, seed=1, number=i, multiple=8) for i in range(20)]
    assert len({embed for embed, _ in drawn}) > 2
    for embed, blocks in drawn:
        table.model_seconds(blocks, embed)
        assert embed % 8 == 0 and all(b.qk % 8 == 0 and b.mlp % 8 == 0 for b in blocks)


def test_steps_are_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    monkeypatch.setattr(Bench, "open_model", lambda self, model: lambda _: Entry("mlp", 1000, mlp=1000))
    model = slim(small())
    table = measure_table(model, **FAST)
    unit = table.provenance["anchor_s"] / clock.seconds(anchor_of(nodes_of(table)))
    assert table.model_seconds(block_shapes(model), 64) == pytest.approx(unit * (7 + 1000 + 1000 * 1000))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_models_without_plain_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(1, 1))
    for model, says in (
        (open_model(swin), "OpenSwin"),
        (open_model(build("vit_base_patch16_rpn_224")), "not a plain block"),
        (open_model(build("vit_base_patch16_siglip_224")), "attention pooling"),
        (small_int8(), "give it before int8"),
        (torch.nn.Linear(2, 2), "not Linear"),
    ):
        with pytest.raises(Refused, match=says):
            measure_table(model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"runtime": "openvin"}, "unknown runtime 'openvin': did you mean 'openvino'"),
        ({"runtime": None}, "unknown runtime 'None'"),
        ({"batch": 0}, "batch is 0; accepted: a whole number"),
        ({"threads": 0}, "threads is 0; accepted: a whole number"),
        ({"rounds": 2}, "rounds is 2; accepted"),
        ({"seconds": 0}, "seconds is 0; accepted"),
        ({"grid": {}}, "grid is dict; accepted: Nodes"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        measure_table(small(), **arguments)


def test_nodes_and_counts_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClock(monkeypatch)
    with pytest.raises(BadInput, match=r"Nodes.heads is \(2, 1\); accepted: ascending"):
        Nodes((1,), (1,), (2, 1), (1,), (1,))
    table = measure_table(small(), grid=FEW, **FAST)
    for arguments in ({"shapes": 0}, {"multiple": 0}):
        with pytest.raises(BadInput, match="1 or more"):
            check_table(table, small(), **arguments)
    with pytest.raises(BadInput, match=r"Nodes.tokens covers 17 to 17; the model itself has 10"):
        measure_table(slim(small()), grid=FEW, **FAST)
    with pytest.raises(BadInput, match="check is -1"):
        latencies(small(), check=-1)


def test_the_input_is_never_made_by_the_clock() -> None:
    """Each graph is timed on an input of its own, of the table's batch."""
    bench = Bench.of(small(), "torch", threads=None, **FAST)
    seen: list[Tensor] = []
    bench._fed(lambda x: seen.append(x), bench.model, (5, 6))(torch.zeros(2, 1))  # type: ignore[arg-type, return-value]
    assert seen[0].shape == (2, 5, 6)
