"""The names of the files in a run folder, beside those of `leanvit.recipe.store`."""

from __future__ import annotations

import re
from pathlib import Path

from leanvit.recipe.store import JSON_NAME
from leanvit.training.checkpoint import LOG

RUN = (JSON_NAME, "weights-*.safetensors")
COMMANDS = "commands.jsonl"
MEASURED = "measure.json"
TOKENS = "tokens.json"
TRAINING_LOG = LOG
EARLIER_LOG = "train-{}.jsonl"  # of the stages before the last training, from 1 on
TENSORBOARD = "tensorboard"
ARTEFACTS = "artefacts"


def measurement_number(name: str) -> int | None:
    """1 for `measure.json`, 2 for `measure-2.json`; None for another file."""
    found = re.fullmatch(r"measure(?:-(\d+))?\.json", name)
    return int(found[1] or 1) if found else None


def measurement_files(folder: Path) -> list[Path]:
    """`measure.json`, `measure-2.json`, ... in the order they were made."""
    numbered = [(measurement_number(path.name), path) for path in folder.glob("measure*.json")]
    return [path for _, path in sorted((number, path) for number, path in numbered if number is not None)]


def evidence_file(measured: Path) -> Path:
    """`predictions.safetensors` of `measure.json`, `predictions-2.safetensors` of `measure-2.json`."""
    return measured.with_name(measured.stem.replace("measure", "predictions", 1) + ".safetensors")


def pictures_file(measured: Path) -> Path:
    """`disagreements.json` of `measure.json`, and so on."""
    return measured.with_name(measured.stem.replace("measure", "disagreements", 1) + ".json")


def answer_maps_file(measured: Path) -> Path:
    """`maps.json` of `measure.json`, and so on."""
    return measured.with_name(measured.stem.replace("measure", "maps", 1) + ".json")


def latencies_file(runtime: str) -> str:
    """The name of a table of latencies."""
    return f"latencies-{runtime}.json"


def artefact_folder(run: Path, runtime: str) -> Path:
    """Where a run keeps its artefact of a runtime."""
    return run / ARTEFACTS / runtime
