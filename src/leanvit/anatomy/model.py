"""What every opened model offers, whatever its family: running, seams, op sets, and what methods and the recipe use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from leanvit.anatomy.declared import declared
from leanvit.anatomy.opened import Opened
from leanvit.anatomy.parts.maps import MapSizes, mixing, taken
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused, is_whole
from leanvit.tasks import Head


class OpenModel(Opened, ABC):
    """A model whose inside can be reached. Made by `leanvit.anatomy.open_model`.

    Children and parameters carry the names that they have in timm. A family gives the seams `start`, `embed`, `run` and
    `classify`, its `blocks`, and what timm's class offers besides. `history` is set by the recipe once methods were
    applied; `classes`, `task` and `preprocess` by a training, a loaded run, or you.
    """

    family: ClassVar[str]
    isotropic: ClassVar[bool] = False  # whether all blocks see tokens of one grid and one width
    hierarchical: ClassVar[bool] = False  # whether blocks lie in stages, between which patches merge and widen
    PLAIN: ClassVar[bool] = False  # see `plain`; not inherited
    tells_classes = True  # whether outputs are logits of classes of images, where no task says otherwise
    num_classes: int
    num_prefix_tokens: int
    grad_checkpointing: bool
    PROBES: ClassVar[tuple[int, ...]] = (1,)  # batch sizes at which opening compares with the original

    def __init__(self, *, attributes: dict[str, Any], source: nn.Module | None) -> None:
        """`attributes`: timm's public ones. `source`: the timm model, for `close_model`."""
        super().__init__()
        for key, value in attributes.items():
            setattr(self, key, value)
        self.classes: tuple[str, ...] = ()  # names of the outputs, in their order; empty where nobody gave them
        self.task: Any = None  # what the outputs mean (`leanvit.tasks.Task`); None: one class an image
        self.preprocess: Any = None  # the `Preprocess` that it was made with; None: from timm's configuration
        self._source = (source,)  # in a tuple, so that the closed model is not a child of the opened one

    @property
    def classifies(self) -> bool:
        """Whether outputs are logits of classes of images, which have names and are matched with those of data."""
        return self.tells_classes and (self.task is None or bool(self.task.label_kind))

    # --- running -----------------------------------------------------------------

    def forward(self, images: Any, **context: Any) -> Any:
        """(B, C, H, W) -> logits (B, classes). `context` are the context fields of `State` (keep_rate, task, ...)."""
        return self.trace(images, **context)[0]

    def trace(self, images: Any, **context: Any) -> tuple[Any, State]:
        """Logits and the final state of one run. In eval mode images leave at the model's exits, where it has some."""
        state = self.start(images, **context)
        x, state = self.embed(images, state)
        if self.exits is not None and not self.training:
            return self.exits.run(self, x, state)
        x, state = self.run(x, state)
        return self.classify(x, state)

    @abstractmethod
    def start(self, images: Any, **context: Any) -> State:
        """The state at the door. Raises `BadInput` if the image does not fit the model."""

    @abstractmethod
    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        """Images to tokens."""

    @abstractmethod
    def run(self, x: Any, state: State, start: int = 0, stop: int | None = None) -> tuple[Any, State]:
        """Blocks `start` to `stop` (exclusive, default: all), like a slice."""

    @abstractmethod
    def classify(self, x: Any, state: State) -> tuple[Any, State]:
        """Tokens after the last block to logits. The seam after the last block."""

    def at(self, task: str) -> nn.Module:
        """A runner of one head by its name, where the task of the model is several (`leanvit.tasks.Heads`): all of the
        model runs, and what comes back is judged by that head's task. Raises `BadInput`."""
        return Head(self, task)

    # --- feature maps ------------------------------------------------------------

    def maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[Any, ...]:
        """Feature maps on the full grid of patches, finest first, each (B, channels, h, w) as `map_sizes` says.

        A model whose blocks all see one grid has a map behind each block, a hierarchical one behind each stage, a
        traced one where timm's `forward_intermediates` has one. Where tokens were reduced, a merged patch gets the
        token that holds it; one that was dropped or fused keeps its value of the block before.

        Args:
            images: (B, C, H, W), of a size that the model takes.
            indices: which maps, as in timm: how many of the last, or a list. None: the last block's, or every stage's.
            norm: put the model's final norm on them, as timm's `forward_intermediates(norm=True)` does: on all of a
                model of one grid, on that of the last stage of others. By default no map is normed.
            context: as in `forward`.

        Raises:
            Refused: the model has none; names the reason, before any work (`map_refusal`).
            BadInput: indices beyond those that there are, or images that do not fit.
        """
        return self.trace_maps(images, indices, norm=norm, **context)[0]

    def trace_maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[tuple[Any, ...], State]:
        """Maps and the state behind the last of them: the seam for a model that is a part of another one.

        Everything goes through `state.ops`, so that quantizers, counting and export see it. A family that has maps
        overrides it, and `_map_levels`.
        """
        raise Refused(f"the model gives no feature maps: {self.map_refusal()}")

    def map_sizes(self, indices: int | Sequence[int] | None = None) -> MapSizes:
        """Channels and strides of the maps of `indices`, without a run. Raises as `maps` does."""
        levels = self._map_levels()
        channels, strides = zip(*(levels[i] for i in self._taken_maps(indices)), strict=True)
        return MapSizes(channels, strides)

    def map_refusal(self) -> str:
        """Why it gives no feature maps, as half a sentence; "" where it does."""
        if self.exits is not None:
            return f"{self.exits.source} lets images leave before its end"
        for block in self.blocks:
            if source := mixing(block):
                return f"{source} mixes its patches in {block.name}, so that no token stands for one any more"
        return "" if self._map_levels() else f"{type(self._source[0] or self).__name__} names no stages"

    def _map_levels(self) -> list[tuple[int, tuple[int, int]]]:
        """(channels, stride in rows and columns) of every map that there is, finest first."""
        return []

    def _taken_maps(self, indices: int | Sequence[int] | None) -> list[int]:
        if reason := self.map_refusal():
            raise Refused(f"the model gives no feature maps: {reason}")
        number = len(self._map_levels())
        return taken(number, indices, default=1 if self.isotropic else number)

    def keep_all_patches(self) -> None:
        """Take patch dropout out (timm's, of the training): for methods whose tokens come of the whole grid."""
        drop = getattr(self, "patch_drop", None)
        if drop is not None and not isinstance(drop, nn.Identity):
            self.add_module("patch_drop", nn.Identity())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of parameter names by layer, from the stem to the head, for `timm.optim`.

        Raises `BadInput` where the class that was opened has none.
        """
        matcher = getattr(self._source[0], "group_matcher", None)
        if matcher is None:
            kind = type(self._source[0] or self).__name__
            raise BadInput(f"{kind} does not state which layers its parameters belong to: leave layer_decay out")
        return matcher(coarse=coarse)

    # --- what methods and the recipe use -----------------------------------------

    def block(self, number: int) -> Any:
        """The block of this number, from 0. Raises `BadInput` for one that the model does not have."""
        depth = len(self.blocks)
        if not is_whole(number, least=0, most=depth - 1):
            accepted = f"0 to {depth - 1}" if depth else "none, the model has no blocks"
            raise BadInput(f"block is {number!r}; accepted: {accepted}")
        return self.blocks[number]

    @property
    def plain(self) -> bool:
        """Whether it is the plain vision transformer: one linear map of patches (or tokens), positions added to them,
        blocks, a norm and a classifier. Blocks may still differ (`Block.plain`)."""
        return declared(type(self), "PLAIN")

    @property
    def windowed(self) -> bool:
        """Whether tokens attend in windows in some of its blocks."""
        return any(attn.windowed for block in self.blocks for attn in block.attentions())

    def width_refusal(self) -> str:
        """Why the width of the stream of tokens cannot be changed, as half a sentence; "" where it can."""
        return "it is no stream of tokens of one width"

    def width_of(self, block: int) -> int:
        """Channels of the tokens that leave a block."""
        return int(self.block(block).attn.proj.out_features)

    def classified_tokens(self) -> tuple[int, ...]:
        """Places in the sequence of the tokens that the classifier reads; none where it reads all of them."""
        return ()

    @property
    def reduces_tokens(self) -> bool:
        return any(block.reduces_tokens for block in self.blocks)

    @property
    def positional(self) -> bool:
        """Whether a score term reads token positions: steps must then report the positions of the tokens they keep."""
        terms = (term for block in self.blocks for attn in block.attentions() for term in attn.terms)
        return any(getattr(term, "positional", False) for term in terms)

    @property
    def reads_positions(self) -> bool:
        """Whether its attention reads where in the grid tokens are (rotary positions, relative biases, windows)."""
        return self.positional

    def traits(self) -> frozenset[str]:
        """What this model offers to the next method (see `recipe/compat.py`)."""
        replaced = any(block.source for block in self.blocks)
        has = {
            "class_token": getattr(self, "cls_token", None) is not None
            and not any(block.drops_prefix for block in self.blocks),
            "full_grid": not self.reduces_tokens,
            "float": self.float_weights,
            "whole_weights": self.whole_weights,
            "static_tokens": True,
            "token_blocks": len(self.blocks) > 0 and not replaced and self.exits is None,
            "places": not any(step.blends for step in self.steps()),
            "maps": not self.map_refusal(),
            "free_attention": len(self.blocks) > 0 and not self.reads_positions,
        }
        return frozenset(name for name, true in has.items() if true)

    @torch.no_grad()
    def patch_tokens(self) -> list[int]:
        """Patch tokens (fused and merged ones too) in each block's MLP, run on one image of the model's own size."""
        with self.whole_depth():
            _, state = self.trace(self._blank())
        return list(state.patch_tokens)

    def grid(self) -> tuple[int, int]:
        """Patch tokens (rows, columns) that enter the first block, of an image of the model's own size.

        Of a model without one, those of the small image of `probe_size`.
        """
        return self.start(self._blank(self.probe_size())).grid

    def patches(self) -> int:
        """Patch tokens that enter the first block, of one image of the model's own size."""
        return math.prod(self.start(self._blank()).grid)

    def _blank(self, size: tuple[int, int, int] | None = None) -> torch.Tensor:
        """One image of zeros, (1, C, H, W); of the model's own size where none is given."""
        like = next(self.parameters())
        return torch.zeros(1, *(size or self.input_size()), device=like.device, dtype=like.dtype)

    @abstractmethod
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) that the model was built for. Raises `BadInput` if it has no size of its own."""

    def probe_size(self) -> tuple[int, int, int]:
        """(C, H, W) of an image that the model takes: its own size, or a small one where it has none."""
        return self.input_size()
