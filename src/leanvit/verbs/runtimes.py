"""The runtimes in which `measure` can run a model, and why one may not run here."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanvit.deploy import Artefact, Options, export, load_artefact, read_artefact, require_runtime
from leanvit.errors import LeanvitError, MissingExtra, Refused, unknown
from leanvit.measure.runners import precision_of
from leanvit.runs.layout import artefact_folder
from leanvit.verbs.models import Loaded, Log, as_runner

# name -> (backend of leanvit.deploy, precision of what is not int8); no backend: torch runs the model itself
_RUNTIME_SPECS: dict[str, tuple[str | None, str]] = {
    "torch": (None, "f32"),
    "torch.compile": (None, "f32"),
    "torch.export": ("torch", "f32"),
    "openvino": ("openvino", "f32"),
    "openvino-bf16": ("openvino", "bf16"),
    "onnx": ("onnx", "f32"),
}
RUNTIMES = tuple(_RUNTIME_SPECS)


def require(runtime: str) -> None:
    """Raise unless this runtime can run here.

    Raises:
        BadInput: no such runtime; the nearest is named.
        MissingExtra: a package is missing; the pip command is named.
        Refused: the processor lacks what it is about.
    """
    if runtime not in _RUNTIME_SPECS:
        raise unknown("runtime", runtime, RUNTIMES)
    backend, precision = _RUNTIME_SPECS[runtime]
    if backend is not None:
        require_runtime(backend)
    if precision == "bf16":
        from leanvit.deploy.openvino import bf16_runs

        if not bf16_runs():
            raise Refused(f"{runtime}: this processor does not multiply bf16")


def backend_of(runtime: str) -> str | None:
    """The backend of `leanvit.deploy` that a runtime needs; None where torch runs the model itself."""
    return _RUNTIME_SPECS[runtime][0]


class Compiled:
    """A model under `torch.compile`, for exactly one batch size, compiled and run once.

    Raises `Refused` if the compiler cannot follow the model, or is not installed (it needs a C++ compiler).
    """

    runtime = "torch.compile"

    def __init__(self, one: Loaded, batch: int) -> None:
        self.batch, self.preprocess, self.precision = batch, one.preprocess, precision_of(one.model)
        self.classes, self.num_classes, self.task = one.model.classes, one.model.num_classes, one.task
        self._run = torch.compile(one.model, dynamic=False)
        try:
            self(torch.zeros(batch, *one.preprocess.input_size))
        except Exception as error:  # the compiler raises many kinds, its C++ compiler among them
            reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])  # who failed, and of what
            raise Refused(f"torch.compile: {reason}") from error

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(images)


@dataclass
class Opener:
    """Opens models in runtimes, exporting each model at most once to each backend; what it exported goes with it."""

    batch: int
    log: Log
    _stack: ExitStack = field(default_factory=ExitStack)
    _artefacts: dict[tuple[int, str], Artefact] = field(default_factory=dict)

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def open(self, one: Loaded, runtime: str) -> tuple[Any, Path | None]:
        """(runner, the file or folder that holds it) of a model in a runtime. Raises `Refused`."""
        backend, precision = _RUNTIME_SPECS[runtime]
        if backend is not None:
            artefact = self._artefact(one, backend)
            runner: Any = load_artefact(artefact, options=Options(precision=precision))
            if runtime.startswith(f"{runner.runtime}-"):  # a runtime's variant is a runtime of its own: openvino-bf16
                runner.runtime = runtime
            return runner, artefact.path
        weights = next(one.folder.glob("weights-*.safetensors"), None) if one.folder else None
        if runtime == "torch.compile":
            self.log(f"{one.name}: compiling, batch {self.batch}")
            return Compiled(one, self.batch), weights
        return as_runner(one.model, one.preprocess), weights

    def _artefact(self, one: Loaded, backend: str) -> Artefact:
        """The run's own artefact, or one that lasts as long as the measurement."""
        key = (id(one), backend)
        if key not in self._artefacts:
            self._artefacts[key] = _kept(one, backend, self.batch) or self._made(one, backend)
        return self._artefacts[key]

    def _made(self, one: Loaded, backend: str) -> Artefact:
        batch = self.batch if one.model.exits is None or self.batch == 1 else None  # who stays is fewer than a batch
        self.log(f"{one.name}: exporting to {backend} for this alone, batch {batch or 'any'}")
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="leanvit-")))
        return export(one.model, folder / backend, to=backend, preprocess=one.preprocess, batch=batch)


def _kept(one: Loaded, backend: str, batch: int) -> Artefact | None:
    """The artefact in the run folder, if it can be timed at this batch.

    Not an archive, which could run code, and not one that takes pixels: its time would hold the way back to them.
    """
    path = artefact_folder(one.folder, backend) if one.folder is not None else None
    if path is None or not path.exists() or backend == "torch":
        return None
    artefact = read_artefact(path)
    return artefact if artefact.input_type == "float" and artefact.batch in (None, batch) else None


def reasons_against(runtimes: tuple[str, ...]) -> dict[str, str]:
    """Runtimes that cannot run here, each with the reason in words."""
    found = {}
    for runtime in runtimes:
        try:
            require(runtime)
        except (MissingExtra, Refused) as error:
            found[runtime] = str(error)
    return found


def first_line(error: LeanvitError) -> str:
    return str(error).splitlines()[0]
