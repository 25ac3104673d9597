"""The torch runtime: a `torch.export` archive. Reading one can unpickle, so only trusted archives are loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from leanvit.deploy.runtimes import Call, Options
from leanvit.errors import BadInput, CheckpointError

MODEL = "model.pt2"
INT8 = "int8 simulated"  # integers held in floats: the values are int8's, the speed and the products are not


def write_files(program: ExportedProgram, folder: Path) -> None:
    torch.export.save(program, folder / MODEL)


def integer_products(folder: Path) -> None:
    """None: torch multiplies the rounded values in float."""


def open_files(folder: Path, options: Options) -> Call:
    """Load the archive. Raises `BadInput` for options that torch keeps for the whole process."""
    if options.precision != "f32" or options.threads is not None:
        raise BadInput("a torch artefact runs at f32 and with the threads of torch.set_num_threads: leave both options")
    if not zipfile.is_zipfile(folder / MODEL):
        raise CheckpointError(f"{folder / MODEL} is not a torch.export archive")
    module = torch.export.load(folder / MODEL).module()

    @torch.no_grad()
    def call(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return call
