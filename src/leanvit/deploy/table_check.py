"""A latency table held against whole models that it has not seen: random widths in every block, built and timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanvit import knobs
from leanvit.anatomy import OpenModel, OpenViT
from leanvit.data import keyed
from leanvit.deploy.block_graphs import reshaped, torch_threads
from leanvit.deploy.block_grid import Nodes, anchor_of
from leanvit.deploy.block_latency import Bench, Progress, measure_table
from leanvit.measure.latency import ratio
from leanvit.measure.latency_table import BlockShape, LatencyTable

TOGETHER = 4  # models timed interleaved; each holds its weights in memory
TOLERANCE = 0.15

Widths = tuple[int, list[BlockShape]]  # of the residual stream, of the blocks


def latencies(
    model: OpenModel,
    *,
    runtime: str = "torch",
    batch: int = 8,
    grid: Nodes | None = None,
    threads: int | None = None,
    rounds: int = 7,
    check: int = 5,
    out: str | Path | None = None,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure a latency table (`measure_table`) and hold it against `check` held-out models (`check_table`).

    With `out`, finished entries are kept beside that file while measuring, and the table is saved to it.
    """
    knobs.check("check", check, knobs.Index)
    partial = None if out is None else partial_of(Path(out))
    table = measure_table(
        model,
        runtime=runtime,
        batch=batch,
        grid=grid,
        threads=threads,
        rounds=rounds,
        partial=partial,
        progress=progress,
    )
    if out is not None and partial is not None:
        table.save(out)  # before the check: whoever interrupts that has the table
        partial.unlink(missing_ok=True)
    if check:
        table = check_table(table, model, shapes=check, rounds=rounds, log=log)
        if out is not None:
            table.save(out)
    return table


def partial_of(out: Path) -> Path:
    """Where finished entries are kept until the table is whole."""
    return out.with_name(f".{out.name}-entries")


def check_table(
    table: LatencyTable,
    model: OpenModel,
    *,
    shapes: int = 10,
    multiple: int = 8,
    seed: int = 0,
    rounds: int = 7,
    log: Callable[[str], None] | None = None,
) -> LatencyTable:
    """The table with its `check`: predicted and measured seconds of whole models of random widths.

    Each model is the given one with a random embedding width, and random heads, q·k, v and MLP widths in each block,
    anywhere within the table, on multiples of `multiple` (as pruning leaves them; 1: any whole number); steps of
    methods are left out. It is exported to the table's runtime as a whole, and timed interleaved with the table's
    anchor. `error` is predicted over measured, less 1, after both are brought to the same speed of the machine by the
    anchor; `raw_error` is without that. `check` holds the rows, `median_error` and `worst_error` (absolute), `within`
    (the share of models within TOLERANCE), the seed and the multiple.

    Raises:
        BadInput: a count below 1, or a model of which the table knows nothing.
    """
    knobs.check_each(knobs.Count, shapes=shapes, multiple=multiple)
    bench = Bench.of(model, table.runtime, batch=table.batch, threads=table.threads, rounds=rounds, seconds=0.05)
    drawn = [held_out(table, bench.model, seed=seed, number=i, multiple=multiple) for i in range(shapes)]
    predicted = [table.model_seconds(blocks, embed) - table.steps_s for embed, blocks in drawn]
    rows: list[dict[str, Any]] = []
    with torch_threads(bench.spec, table.threads):
        for start in range(0, shapes, TOGETHER):
            some = slice(start, start + TOGETHER)
            rows += _timed(table, bench, drawn[some], predicted[some])
            if log:
                log(f"held-out models: {len(rows)} of {shapes}")
    errors = [abs(row["error"]) for row in rows]
    summary = {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "worst_raw_error": max(abs(row["raw_error"]) for row in rows),
        "within": sum(error <= TOLERANCE for error in errors) / len(errors),
        "tolerance": TOLERANCE,
    }
    return replace(table, check={**summary, "seed": seed, "multiple": multiple, "rows": rows})


def held_out(table: LatencyTable, model: OpenViT, *, seed: int, number: int, multiple: int) -> Widths:
    """Random widths within the table, by (seed, number) alone."""
    random = keyed.numpy(seed, "latency-table", number)
    axes = {**table.mlp.axes, **table.equal.axes}

    def draw(axis: str, step: int = multiple) -> int:
        low, high = axes[axis][0], axes[axis][-1]
        steps = [n for n in range(low, high + 1) if n % step == 0] or [high]
        return int(random.choice(np.array(steps)))

    embed = draw("embed")
    tokens = model.num_prefix_tokens + model.patch_embed.num_patches
    blocks = [BlockShape(tokens, draw("heads", 1), draw("width"), draw("width"), draw("mlp")) for _ in model.blocks]
    return embed, blocks


def _timed(table: LatencyTable, bench: Bench, drawn: list[Widths], predicted: list[float]) -> list[dict[str, Any]]:
    """Rows of some models, timed interleaved with the anchor."""
    calls = {str(i): bench.open_model(reshaped(bench.model, *widths)) for i, widths in enumerate(drawn)}
    timed = bench.time({"anchor": bench.open(anchor_of(nodes_of(table))), **calls})
    rows = []
    for i, (embed, blocks) in enumerate(drawn):
        own = timed[str(i)]
        same_speed = ratio(own, timed["anchor"]).median * table.provenance["anchor_s"]
        rows.append(
            {
                "embed": embed,
                "blocks": [asdict(block) for block in blocks],
                "predicted_s": predicted[i],
                "measured_s": own.median_s,
                "error": predicted[i] / same_speed - 1,
                "raw_error": predicted[i] / own.median_s - 1,
            }
        )
    return rows


def nodes_of(table: LatencyTable) -> Nodes:
    """Where a table was measured."""
    axes = {**table.mlp.axes, **table.equal.axes}
    return Nodes(**{name: axes[name] for name in ("tokens", "embed", "heads", "width", "mlp")})
