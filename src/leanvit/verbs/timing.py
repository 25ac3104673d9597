"""`latencies`: what the blocks of a model take at other widths, measured on this machine for one runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanvit import knobs
from leanvit.deploy import latencies as measure_latencies
from leanvit.deploy.block_graphs import require_plain, runtime_spec
from leanvit.deploy.block_latency import Progress
from leanvit.deploy.table_check import partial_of
from leanvit.measure import LatencyTable
from leanvit.runs.folders import RUNS, new_file
from leanvit.runs.layout import latencies_file
from leanvit.verbs.exporting import Batch
from leanvit.verbs.models import Log, load_model, silent


@dataclass(frozen=True)
class Timed:
    """A latency table on disk."""

    file: Path
    table: LatencyTable

    def to_json(self) -> dict[str, Any]:
        return {"file": str(self.file), "fingerprint": self.table.fingerprint, "table": self.table.to_json()}


def latencies(
    run: str | Path,
    *,
    runtime: str = "torch",
    batch: int = 8,
    threads: int | None = None,
    rounds: int = 7,
    check: int = 5,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    log: Log = silent,
    progress: Progress | None = None,
) -> Timed:
    """Measure a latency table of a run folder or timm name, and hold it against whole models that it has not seen.

    Args:
        runtime: of `leanvit.deploy.block_graphs.RUNTIME_SPECS`.
        batch: images a call. `threads`: of the runtime; None: its own choice.
        rounds: in which what is timed takes turns.
        check: held-out models of random widths; 0: none.
        out: file; default: `latencies-RUNTIME.json` in the run folder, or `runs/NAME-latencies-RUNTIME.json`.
            Finished entries are kept beside it: the same call after an interruption goes on from there.
        progress: called with (entries done, entries in all).

    Raises:
        BadInput, MissingExtra, Refused: before any work.
    """
    runtime_spec(runtime)
    knobs.check("--batch", batch, Batch)
    knobs.check("--rounds", rounds, knobs.Rounds)
    knobs.check("--check", check, knobs.Index)
    knobs.check("--threads", threads, knobs.Count | None)
    one = load_model(run, model_args=model_args, pretrained=pretrained, weights=weights, log=log)
    require_plain(one.model)
    name = latencies_file(runtime)
    default = one.home / name if one.home else RUNS / f"{one.base}-{name}"
    file = new_file(out, default, overwrite=overwrite)
    file.parent.mkdir(parents=True, exist_ok=True)
    if partial_of(file).exists():
        log(f"{file} was begun before: going on")
    table = measure_latencies(
        one.model,
        runtime=runtime,
        batch=batch,
        threads=threads,
        rounds=rounds,
        check=check,
        out=file,
        log=log,
        progress=progress,
    )
    return Timed(file, table)
