"""Running an artefact: one kind of runner for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanvit.data import Preprocess
from leanvit.deploy.artefact import RUNTIMES, Artefact, read_artefact
from leanvit.errors import BadInput, CheckpointError, MissingExtra, Refused, unknown
from leanvit.given import require_path

if TYPE_CHECKING:
    from PIL import Image

Call = Callable[[np.ndarray], np.ndarray]  # what the artefact takes -> (B, classes) float32

_MODULES = {
    "openvino": "leanvit.deploy.openvino",
    "onnx": "leanvit.deploy.onnx",
    "torch": "leanvit.deploy.torch_export",
}
_PACKAGES: dict[str, tuple[str, ...]] = {  # beside what leanvit itself needs
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
}
_PIP = {"openvino": "openvino", "onnx": "'leanvit[onnx]'"}


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

    An artefact that takes pixels runs uint8 (B, H, W, C) as they are, and gets them back from normalised images. An
    artefact of a fixed batch takes any number of images too: they run in pieces, the last one filled up.
    """

    def __init__(self, artefact: Artefact, call: Call, options: Options) -> None:
        self.artefact, self.options = artefact, options
        self.runtime = "torch.export" if artefact.runtime == "torch" else artefact.runtime
        self.batch = artefact.batch
        self.preprocess: Preprocess = artefact.preprocess
        self.labels = self.classes = artefact.labels
        self.num_classes = artefact.num_classes
        self.multi_label = artefact.multi_label
        mixed = "bf16" if artefact.precision == "f32" else f"{artefact.precision}+bf16"
        self.precision = artefact.precision if options.precision == "f32" else mixed
        self._call = call
        self._transform: Any = None

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Logits of images. Raises `BadInput` for another shape or kind of input."""
        x = np.ascontiguousarray(images.detach().cpu().numpy() if isinstance(images, Tensor) else images)
        c, h, w = self.preprocess.input_size
        takes_pixels = self.artefact.input_type == "u8"
        known = {(np.dtype(np.float32), (c, h, w)), *([(np.dtype(np.uint8), (h, w, c))] if takes_pixels else [])}
        if x.ndim != 4 or (x.dtype, x.shape[1:]) not in known or not len(x):
            more = f" or uint8 (batch, {h}, {w}, {c})" if takes_pixels else ""
            raise BadInput(f"images are {x.dtype} {x.shape}; this artefact takes float32 (batch, {c}, {h}, {w}){more}")
        if takes_pixels and x.dtype == np.float32:
            x = pixels_of(x, self.preprocess)
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
        if self.artefact.input_type == "u8":
            frame = self.preprocess.u8_transform()
            return self(np.stack([frame(image) for image in images]))
        return self(self.prepare(images))


def pixels_of(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """The inverse of `Preprocess.normalize`: float32 (B, C, H, W) -> uint8 (B, H, W, C), exact for 8-bit images.

    Raises `BadInput` if the images are not 8-bit pixels, normalised this way.
    """
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    values = (images * std + mean) * 255
    pixels = np.rint(values)
    if not np.abs(values - pixels).max() < 0.1 or pixels.min() < 0 or pixels.max() > 255:
        raise BadInput(
            "this artefact takes 8-bit pixels, and these images are not such pixels normalised as it does: give uint8 "
            "(batch, H, W, C), or export with input_type='float'"
        )
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(0, 2, 3, 1))


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
    if known is None:
        require_path(source, "source")
    artefact = read_artefact(known.path if known else source)  # type: ignore[arg-type]
    if known and known.seal != artefact.seal:
        raise CheckpointError(f"{artefact.path} is not the artefact that was exported: it was replaced since")
    if artefact.runtime == "torch" and not (known or trusted):
        raise Refused(
            f"{artefact.path} is a torch.export archive, and reading one can run code: load the Artefact that export "
            "returned, or say trusted=True if you know where it comes from"
        )
    options = options or Options()
    if artefact.segments is not None:
        from leanvit.deploy.segments import open_segments

        return open_segments(artefact, options)
    return Runner(artefact, open_runtime(artefact.runtime, artefact.path, options), options)


def open_runtime(runtime: str, folder: Path, options: Options) -> Call:
    """Load the files of a runtime."""
    return runtime_module(runtime).open_files(folder, options)


def packages_of(runtime: str) -> tuple[str, ...]:
    """The packages that exporting to a runtime needs beside leanvit's own."""
    return _PACKAGES[runtime]


def require_runtime(runtime: str) -> None:
    """Raise `BadInput` for an unknown runtime (the nearest is named), `MissingExtra` for one that is not installed."""
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    missing = [name for name in packages_of(runtime) if find_spec(name) is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise MissingExtra(
            f"runtime {runtime!r}: {', '.join(missing)} {are} not installed: pip install {_PIP[runtime]}"
        )


def runtime_module(runtime: str) -> Any:
    """The module of a runtime.

    It has `write_files(program, folder)`, `open_files(folder, options)` (those of graphs with several outputs also
    `open_outputs`, and `write_files` takes their names), `INT8` (what int8 is called there) and
    `integer_products(folder)`: (those that run in integers, all), or None where none does.
    """
    return import_module(_MODULES[runtime])
