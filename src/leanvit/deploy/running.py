"""Running an artefact: one kind of runner for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanvit.data import Preprocess
from leanvit.deploy.artefact import Artefact, read_artefact
from leanvit.errors import BadInput, CheckpointError, Refused

if TYPE_CHECKING:
    from PIL import Image

Call = Callable[[np.ndarray], np.ndarray]  # (B, C, H, W) float32 -> (B, classes) float32

_MODULES = {
    "openvino": "leanvit.deploy.openvino",
    "onnx": "leanvit.deploy.onnx",
    "torch": "leanvit.deploy.torch_export",
}


@dataclass(frozen=True)
class Options:
    """How a runtime executes. Every choice that moves a figure is explicit, and recorded in the runner."""

    precision: str = "f32"  # of what is not int8: "f32", or "bf16" (OpenVINO, where the CPU has it)
    hint: str = "latency"  # OpenVINO: "latency" or "throughput"
    threads: int | None = None  # None: the runtime's choice

    def __post_init__(self) -> None:
        for name, accepted in (("precision", ("f32", "bf16")), ("hint", ("latency", "throughput"))):
            if getattr(self, name) not in accepted:
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(map(repr, accepted))}")
        if self.threads is not None and (isinstance(self.threads, bool) or self.threads < 1):
            raise BadInput(f"threads is {self.threads!r}; accepted: None, or 1 and more")


class Runner:
    """A loaded artefact: float32 normalised images (B, C, H, W) -> logits (B, classes) float32, on the CPU.

    An artefact of a fixed batch takes any number of images too: they run in pieces, the last one filled up.
    """

    def __init__(self, artefact: Artefact, call: Call, options: Options) -> None:
        self.artefact, self.options = artefact, options
        self.runtime, self.batch = artefact.runtime, artefact.batch
        self.preprocess: Preprocess = artefact.preprocess
        self.labels = artefact.labels
        mixed = f"{artefact.precision}+bf16" if artefact.precision == "int8" else "bf16"
        self.precision = artefact.precision if options.precision == "f32" else mixed
        self._call = call
        self._transform: Any = None

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Logits of normalised images. Raises `BadInput` for another shape or kind of input."""
        x = np.ascontiguousarray(images.detach().cpu().numpy() if isinstance(images, Tensor) else images)
        size = self.preprocess.input_size
        if x.ndim != 4 or x.shape[1:] != size or x.dtype != np.float32 or not len(x):
            raise BadInput(
                f"images are {x.dtype} {x.shape}; this artefact takes float32 (batch, {size[0]}, {size[1]}, {size[2]})"
            )
        step = self.batch or len(x)
        return torch.from_numpy(np.concatenate([self._piece(x[i : i + step]) for i in range(0, len(x), step)]))

    def _piece(self, x: np.ndarray) -> np.ndarray:
        missing = (self.batch or len(x)) - len(x)
        filled = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
        return np.array(self._call(filled)[: len(x)])  # a copy: runtimes reuse their output memory

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images of any size -> (B, C, H, W) float32, by the preprocessing that came with the artefact."""
        if self._transform is None:
            self._transform = self.preprocess.eval_transform()
        return torch.stack([self._transform(image) for image in images])

    def classify(self, images: Sequence[Image.Image]) -> Tensor:
        """Logits (B, classes) of PIL images: the same preprocessing as in evaluation, then the network."""
        if not len(images):
            raise BadInput("images is empty; accepted: one PIL image or more")
        return self(self.prepare(images))


def load_artefact(source: str | Path | Artefact, *, options: Options | None = None, trusted: bool = False) -> Runner:
    """Load an artefact, verified first.

    Args:
        source: its folder; or the `Artefact` that `export` returned, which must still match what is on disk.
        options: precision, hint, threads.
        trusted: load a torch archive although nothing proves where it comes from. Reading one can run code
            (`torch.export.load` unpickles parts of it); the other runtimes only parse.

    Raises:
        BadInput: there is no artefact, or an option that the runtime lacks.
        CheckpointError: it is truncated, changed, foreign, from a newer leanvit, or not what `source` says.
        Refused: a torch archive from a path without `trusted`.
    """
    known = source if isinstance(source, Artefact) else None
    artefact = read_artefact(known.path if known else source)  # type: ignore[arg-type]
    if known and known.seal != artefact.seal:
        raise CheckpointError(f"{artefact.path} is not the artefact that was exported: it was replaced since")
    if artefact.runtime == "torch" and not (known or trusted):
        raise Refused(
            f"{artefact.path} is a torch.export archive, and reading one can run code: load the Artefact that export "
            "returned, or say trusted=True if you know where it comes from"
        )
    options = options or Options()
    return Runner(artefact, open_runtime(artefact.runtime, artefact.path, options), options)


def open_runtime(runtime: str, folder: Path, options: Options) -> Call:
    """Load the files of a runtime."""
    return runtime_module(runtime).open_files(folder, options)


def runtime_module(runtime: str) -> Any:
    """The module of a runtime: `write_files(program, folder)` and `open_files(folder, options)`."""
    return import_module(_MODULES[runtime])
