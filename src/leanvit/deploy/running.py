"""Running an artefact: one kind of runner for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanvit.data import Preprocess
from leanvit.deploy.artefact import Artefact
from leanvit.deploy.runtimes import Call, Options
from leanvit.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image


class Runner:
    """A loaded artefact: float32 normalised images (B, C, H, W) -> logits (B, classes, ...) float32, on the CPU.

    An artefact of several heads gives such a tensor by the name of each head. `task` says what the outputs mean; None:
    one class an image.

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
        self.task = artefact.task
        mixed = "bf16" if artefact.precision == "f32" else f"{artefact.precision}+bf16"
        self.precision = artefact.precision if options.precision == "f32" else mixed
        self._call = call
        self._transform: Any = None

    def __call__(self, images: Tensor | np.ndarray) -> Any:
        """Logits of images, of several heads by name. Raises `BadInput` for another shape or kind of input."""
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
        pieces = [self._piece(x[i : i + step]) for i in range(0, len(x), step)]
        if self.artefact.outputs:
            heads = zip(self.artefact.outputs, zip(*pieces, strict=True), strict=True)
            return {name: torch.from_numpy(np.concatenate(found)) for name, found in heads}
        return torch.from_numpy(np.concatenate(pieces))

    def _piece(self, x: np.ndarray) -> Any:
        missing = (self.batch or len(x)) - len(x)
        filled = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
        found = self._call(filled)
        # copies: runtimes reuse their output memory
        return [np.array(one[: len(x)]) for one in found] if self.artefact.outputs else np.array(found[: len(x)])

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images of any size -> (B, C, H, W) float32, by the preprocessing that came with the artefact."""
        if self._transform is None:
            self._transform = self.preprocess.eval_transform()
        return torch.stack([self._transform(image) for image in images])

    def classify(self, images: Sequence[Image.Image]) -> Any:
        """Logits of PIL images: the same preprocessing as in evaluation, then the network."""
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
