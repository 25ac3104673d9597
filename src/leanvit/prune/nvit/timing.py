"""Latency of a named runtime: the table that predicts it, and the clock that the prediction is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.deploy import export, load_artefact
from leanvit.measure import paired_latency, ratio
from leanvit.prune.nvit.structure import cut, structure_of
from leanvit.prune.nvit.units import Layout
from leanvit.training.world import join_world

if TYPE_CHECKING:
    from leanvit.recipe.learning import Data

RUNTIMES = ("torch", "openvino", "openvino-int8", "onnx", "onnx-int8")


def open_table(path: str | None, model: OpenModel, *, runtime: str, batch: int, folder: Path | None) -> Any:
    """The saved table at `path`, or one measured now on this machine.

    folder: where a table that is being measured keeps its finished entries, and is kept itself: a run that resumes
    must predict as it did.
    """
    from leanvit.deploy.block_latency import measure_table
    from leanvit.measure.latency_table import LatencyTable

    world = join_world()
    if path is not None:
        return LatencyTable.load(path)
    if folder is None:
        return world.from_first(lambda: measure_table(model, runtime=runtime, batch=batch))
    kept = folder / "latency-table.json"
    with world.together():
        if world.first and not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            measured = measure_table(model, runtime=runtime, batch=batch, partial=folder / "latency-table.partial.json")
            measured.save(kept)
            (folder / "latency-table.partial.json").unlink(missing_ok=True)
    return LatencyTable.load(kept)


def measured_ratio(
    model: OpenModel, units: Layout, *, emb_norm: str, runtime: str, batch: int, data: Data
) -> Callable[[Tensor], float]:
    """A function of gates: seconds of the cut model over those of `model` as it is now, both interleaved in one run.

    Of several processes, which all call it, what the first one measured.
    """
    dense = copy.deepcopy(model).eval()
    name, _, rounded = runtime.partition("-")

    def measure(gates: Tensor) -> float:
        lean = cut(copy.deepcopy(dense), structure_of(units, gates, emb_norm=emb_norm)).eval()
        pair = {"dense": dense, "lean": lean}
        pair = {name: _rounded(one, data) for name, one in pair.items()} if rounded else pair
        return join_world().from_first(lambda: timed(pair))

    def timed(pair: dict[str, OpenModel]) -> float:
        device = next(dense.parameters()).device if runtime == "torch" else torch.device("cpu")
        size = data.preprocess.input_size
        with TemporaryDirectory(prefix="leanvit-nvit-") as scratch:
            runners = {key: _runner(one, Path(scratch) / key, name, batch, data) for key, one in pair.items()}
            seen = paired_latency(runners, lambda n: torch.zeros(n, *size, device=device), batch=batch)
        return ratio(seen["lean"], seen["dense"]).median

    return measure


def _runner(model: OpenModel, folder: Path, runtime: str, batch: int, data: Data) -> Any:
    """What runs a model in a runtime: the model itself, or its artefact."""
    if runtime == "torch":
        return model
    export(model, folder, to=runtime, preprocess=data.preprocess, batch=batch)
    return load_artefact(folder)


def _rounded(model: OpenModel, data: Data) -> OpenModel:
    """A copy rounded by the method int8; times do not depend on its ranges, so a few images calibrate it."""
    from leanvit.recipe.compressing import apply
    from leanvit.recipe.registry import make_method

    lean = copy.deepcopy(model)
    apply(lean, make_method("int8", {"images": 8}), replace(data, meter=None))
    return lean
