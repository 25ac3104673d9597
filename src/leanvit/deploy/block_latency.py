"""Measuring a latency table: the halves of a block at some widths, in the runtime in which the model will run.

Each entry is a half-block, exported as `leanvit.deploy.export` exports models; what the call alone takes is measured
apart and subtracted. Entries are timed a few at a time, interleaved with one constant half-block (the anchor):
what counts is the ratio to it in the same rounds, so a machine that drifts does not bend the table.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from leanvit.anatomy import OpenModel, OpenViT
from leanvit.deploy.block_graphs import (
    Call,
    RuntimeSpec,
    block_shapes,
    copied,
    half_blocks,
    opened,
    require_plain,
    reshaped,
    runtime_spec,
    skeleton,
    torch_threads,
)
from leanvit.deploy.block_grid import Entry, Nodes, anchor_of, entries, product, unequal_pairs
from leanvit.errors import BadInput
from leanvit.files import Sealed, read_sealed, sealed_text, write_atomic
from leanvit.knobs import Count, Positive, Rounds, check
from leanvit.measure.latency import Latency, paired_latency, ratio
from leanvit.measure.latency_table import BlockShape, Grid, LatencyTable
from leanvit.measure.machine import environment

STACK = 1  # half-blocks in an entry; more cost conversions and change no figure
CHUNK = 8  # entries that are timed together, beside the anchor
PARTIAL_KIND, PARTIAL_FORMAT = "leanvit-latency-entries", 1
Progress = Callable[[int, int], None]  # (entries done, entries in all)


def measure_table(
    model: OpenModel,
    *,
    runtime: str = "torch",
    batch: int = 8,
    grid: Nodes | None = None,
    threads: int | None = None,
    rounds: int = 7,
    seconds: float = 0.02,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure the blocks of a model at other widths, on this machine.

    Args:
        model: an opened plain ViT, float; steps of methods in its blocks are timed with it as it is (`steps_s`).
        runtime: "torch", "openvino", "openvino-bf16", "openvino-int8", "onnx" or "onnx-int8".
        batch: images a call.
        grid: where to measure; default: `Nodes.of` the model's own widths.
        threads: of the runtime; None: its own choice.
        rounds: in which the entries of a chunk take turns, at least 3.
        seconds: that one sample of an entry lasts at least.
        partial: a file that keeps finished entries. A later call with the same settings on the same machine goes on
            from there; the file of other settings is replaced. It is the caller's to remove, once the table is kept.
        progress: called with (entries done, entries in all).

    Raises:
        BadInput, MissingExtra, Refused: before any work: an argument, a runtime that is not here, a model of another
            family.
    """
    bench = Bench.of(model, runtime, batch=batch, threads=threads, rounds=rounds, seconds=seconds)
    if grid is not None and not isinstance(grid, Nodes):
        raise BadInput(f"grid is {type(grid).__name__}; accepted: Nodes, or None for the model's own")
    shapes = block_shapes(bench.model)
    nodes = grid or Nodes.of(shapes, bench.model.embed_dim)
    steps = any(True for _ in bench.model.steps())
    if steps:
        nodes.require(shapes, bench.model.embed_dim)
    begun = time.perf_counter()
    taken = Taken.resumed(partial, _settings(bench, nodes))
    with torch_threads(bench.spec, threads):
        _measure(bench, nodes, taken, progress)
        table = _assembled(taken, bench, nodes)
        if steps:
            table = _with_steps(table, bench, taken, nodes, shapes)
    payload = {
        "environment": environment(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "entries": len(taken.relative),
        "spread": statistics.median(taken.spread.values()),
        "anchor": anchor_of(nodes).key,
        "anchor_s": taken.anchor_s,
        "measuring_s": round(time.perf_counter() - begun, 1),
    }
    return replace(table, provenance=payload)


@dataclass(frozen=True)
class Bench:
    """How graphs of one table are built and timed."""

    model: OpenViT
    runtime: str
    spec: RuntimeSpec
    batch: int
    threads: int | None
    rounds: int
    seconds: float

    @classmethod
    def of(
        cls, model: OpenModel, runtime: str, *, batch: int, threads: int | None, rounds: int, seconds: float
    ) -> Bench:
        """Raises as `measure_table` says, before any work."""
        spec = runtime_spec(runtime)
        check("batch", batch, Count)
        check("threads", threads, Count | None)
        check("rounds", rounds, Rounds)
        check("seconds", seconds, Positive)
        return cls(require_plain(model), runtime, spec, batch, threads, rounds, seconds)

    @property
    def stack(self) -> int:
        return min(STACK, len(self.model.blocks))

    def open(self, entry: Entry) -> Call:
        """The graph of an entry, with its own input."""
        if entry.kind == "fixed":
            return self.open_model(reshaped(self.model, entry.embed, []))
        template = skeleton(self.model, 0 if entry.kind == "empty" else self.stack)
        widths = {"embed": entry.embed, "heads": entry.heads or 1, "qk": entry.qk or 1, "v": entry.v or 1}
        runs = half_blocks(template, half=entry.kind, **widths, mlp=entry.mlp or 1)
        return self._fed(runs, runs.model, (entry.tokens, entry.embed))

    def open_model(self, model: OpenViT) -> Call:
        """A whole model, with an input of its own."""
        return self._fed(model, model, model.input_size())

    def _fed(self, runs: Any, model: OpenViT, size: tuple[int, ...]) -> Call:
        like = next(self.model.parameters())
        keyed = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *size, generator=keyed).to(device=like.device, dtype=like.dtype)
        call = opened(runs, model, x, self.spec, self.threads)
        return lambda _: call(x)

    def time(self, calls: dict[str, Call]) -> dict[str, Latency]:
        """All calls, interleaved."""
        like = next(self.model.parameters())
        return paired_latency(
            calls,
            lambda batch: torch.zeros(batch, 1, device=like.device),  # each call has its own input
            batch=self.batch,
            rounds=self.rounds,
            warmup=1,
            min_seconds=self.seconds,
        )


class _File(Sealed):
    settings: str
    relative: dict[str, float]
    spread: dict[str, float]
    anchors: list[float]


@dataclass
class Taken:
    """What was measured so far: each entry's time over the anchor's, and the anchor's own seconds chunk by chunk."""

    settings: str
    file: Path | None
    relative: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)  # interquartile range of that ratio over its median
    anchors: list[float] = field(default_factory=list)

    @classmethod
    def resumed(cls, partial: str | Path | None, settings: str) -> Taken:
        """What the file holds, if it was begun with the same settings; else nothing."""
        file = None if partial is None else Path(partial)
        if file is None or not file.is_file():
            return cls(settings, file)
        kept = read_sealed(file, _File, kind=PARTIAL_KIND, newest=PARTIAL_FORMAT, changed="Remove it to begin anew")
        if kept.settings != settings:
            return cls(settings, file)
        return cls(settings, file, kept.relative, kept.spread, kept.anchors)

    @property
    def anchor_s(self) -> float:
        return statistics.median(self.anchors)

    def add(self, timed: dict[str, Latency], anchor: Latency) -> None:
        """One chunk, kept at once."""
        for key, latency in timed.items():
            own = ratio(latency, anchor)
            self.relative[key], self.spread[key] = own.median, (own.q75 - own.q25) / own.median
        self.anchors.append(anchor.median_s)
        if self.file is not None:
            content = {"kind": PARTIAL_KIND, "format": PARTIAL_FORMAT, "settings": self.settings}
            payload = {"relative": self.relative, "spread": self.spread, "anchors": self.anchors}
            write_atomic(self.file, sealed_text({**content, **payload}))


def _settings(bench: Bench, nodes: Nodes) -> str:
    """A fingerprint of all that entries depend on."""
    here = environment()
    machine = {key: here[key] for key in ("cpu", "cores_usable", "omp_num_threads", "versions", "cuda")}
    payload = {
        "machine": {**machine, "threads": here["threads"]},
        "nodes": asdict(nodes),
        "bench": [bench.runtime, bench.batch, bench.threads, bench.rounds, bench.seconds],
        "block": str(bench.model.blocks[0]),
        "input": bench.model.input_size(),
    }
    return sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _measure(bench: Bench, nodes: Nodes, taken: Taken, progress: Progress | None) -> None:
    """Every entry that was not measured yet, a chunk at a time."""
    wanted = entries(nodes)
    left = [entry for entry in wanted[1:] if entry.key not in taken.relative]
    anchor = bench.open(wanted[0]) if left or not taken.anchors else None
    for start in range(0, len(left), CHUNK):
        if progress:
            progress(len(taken.relative), len(wanted) - 1)
        calls = {entry.key: bench.open(entry) for entry in left[start : start + CHUNK]}
        timed = bench.time({"anchor": anchor, **calls})  # type: ignore[dict-item]
        taken.add(timed, timed.pop("anchor"))
    if progress:
        progress(len(taken.relative), len(wanted) - 1)


class _Seconds:
    """Seconds of half-blocks, from the entries of a table."""

    def __init__(self, taken: Taken, bench: Bench, nodes: Nodes) -> None:
        self.relative = {anchor_of(nodes).key: 1.0, **taken.relative}
        self.anchor_s, self.stack, self.embed = taken.anchor_s, bench.stack, nodes.embed[-1]

    def total(self, entry: Entry) -> float:
        """Of an entry's graph, the call included."""
        return self.relative[entry.key] * self.anchor_s

    def half(self, entry: Entry) -> float:
        """Of one half-block: those of the call alone are taken off."""
        return max(self.total(entry) - self.total(Entry("empty", entry.embed, entry.tokens)), 0.0) / self.stack

    def attention(self, tokens: int, embed: int, heads: int, qk: int, v: int) -> float:
        return self.half(Entry("attention", embed, tokens, heads, qk, v))

    def unequal(self, tokens: int, heads: int, qk: int, v: int) -> float:
        """What unequal widths add to the mean of both equal ones."""
        alike = sum(self.attention(tokens, self.embed, heads, width, width) for width in (qk, v)) / 2
        return self.attention(tokens, self.embed, heads, qk, v) - alike


def _assembled(taken: Taken, bench: Bench, nodes: Nodes) -> LatencyTable:
    """The grids of a table from its entries."""
    seconds = _Seconds(taken, bench, nodes)
    pairs = unequal_pairs(nodes.width) or [(nodes.width[0],) * 2]  # of a single width: nothing to add
    totals = {**_axes(nodes, "tokens", "heads"), "total": tuple(sum(pair) for pair in pairs)}
    at_pairs = [(n, h, *pair) for n, h in product(nodes, "tokens", "heads") for pair in pairs]
    at_width = product(nodes, "tokens", "embed", "heads", "width")
    at_mlp = product(nodes, "tokens", "embed", "mlp")
    return LatencyTable(
        runtime=bench.runtime,
        precision=bench.spec.precision,
        batch=bench.batch,
        threads=bench.threads,
        model=_described(bench.model),
        equal=Grid(
            _axes(nodes, "tokens", "embed", "heads", "width"),
            tuple(seconds.attention(n, e, h, d, d) for n, e, h, d in at_width),
        ),
        wider_qk=Grid(totals, tuple(seconds.unequal(n, h, wide, narrow) for n, h, wide, narrow in at_pairs)),
        wider_v=Grid(totals, tuple(seconds.unequal(n, h, narrow, wide) for n, h, wide, narrow in at_pairs)),
        mlp=Grid(
            _axes(nodes, "tokens", "embed", "mlp"),
            tuple(seconds.half(Entry("mlp", e, n, mlp=m)) for n, e, m in at_mlp),
        ),
        fixed=Grid(_axes(nodes, "embed"), tuple(seconds.total(Entry("fixed", e)) for e in nodes.embed)),
    )


def _axes(nodes: Nodes, *names: str) -> dict[str, tuple[int, ...]]:
    return {name: getattr(nodes, name) for name in names}


def _described(model: OpenViT) -> str:
    root = model.history.root.name if model.history else "plain ViT"
    height, width = model.input_size()[1:]
    return f"{root}, {len(model.blocks)} blocks of width {model.embed_dim}, {height}x{width}"


def _with_steps(
    table: LatencyTable, bench: Bench, taken: Taken, nodes: Nodes, shapes: list[BlockShape]
) -> LatencyTable:
    """What the model takes beyond its blocks is the price of its token steps."""
    whole = copied(bench.model)
    timed = bench.time({"anchor": bench.open(anchor_of(nodes)), "model": bench.open_model(whole)})
    measured = ratio(timed["model"], timed["anchor"]).median * taken.anchor_s
    return replace(table, steps_s=max(measured - table.model_seconds(shapes, bench.model.embed_dim), 0.0))
