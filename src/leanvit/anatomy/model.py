"""What every opened model offers, whatever its family: running, seams, op sets, and what methods and the recipe use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from leanvit.anatomy.declared import declared
from leanvit.anatomy.opened import Opened
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, is_whole


class OpenModel(Opened, ABC):
    """A model whose inside can be reached. Made by `leanvit.anatomy.open_model`.

    Children and parameters carry the names that they have in timm. A family gives the seams `start`, `embed`, `run` and
    `classify`, its `blocks`, and what timm's class offers besides. `history` is set by the recipe once methods were
    applied; `classes`, `multi_label` and `preprocess` by a training, a loaded run, or you.
    """

    family: ClassVar[str]
    isotropic: ClassVar[bool] = False  # whether all blocks see tokens of one grid and one width
    hierarchical: ClassVar[bool] = False  # whether blocks lie in stages, between which patches merge and widen
    PLAIN: ClassVar[bool] = False  # see `plain`; not inherited
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
        self.multi_label = False  # whether each output is a question by itself (sigmoid), not one of all (softmax)
        self.preprocess: Any = None  # the `Preprocess` that it was made with; None: from timm's configuration
        self._source = (source,)  # in a tuple, so that the closed model is not a child of the opened one

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
            raise BadInput(f"{type(self._source[0]).__name__} does not state which layers its parameters belong to")
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
            "static_tokens": True,
            "token_blocks": len(self.blocks) > 0 and not replaced and self.exits is None,
            "places": not any(step.blends for step in self.steps()),
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
