"""What networks of stages share whose maps are (B, H, W, C): the stage, and what timm needs of such a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from leanvit.errors import BadInput
from leanvit.models.sizes import of_size

POOLS = ("avg", "")


class Stage(nn.Module):
    """What makes the map smaller and wider (nothing before the first stage), then blocks of one width."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.downsample(x)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class Staged(nn.Module):
    """Base of such models.

    A subclass has its stages under the name `LEVELS`, `norm`, `head`, `head_drop`, `head_hidden_size`, `num_classes`,
    `global_pool`, a row of `feature_info` for each stage, `accepts` and `stemmed`.
    """

    LEVELS: ClassVar[str]
    output_fmt: ClassVar[str] = "NHWC"  # timm's word for how maps lie
    feature_info: list[dict[str, Any]]
    norm: Any
    head: nn.Module
    head_drop: nn.Module
    head_hidden_size: int

    def stemmed(self, x: Tensor) -> Tensor:
        """Images to the map that enters the first stage."""
        raise NotImplementedError

    def accepts(self) -> tuple[int, tuple[int, int] | None, str]:
        """Keyword arguments of `of_size` for this model's images."""
        raise NotImplementedError

    def sized(self, x: Tensor) -> Tensor:
        """The images. Raises `BadInput` for a size that the model does not take."""
        return of_size(x, *self.accepts())

    def ended(self, x: Tensor) -> Tensor:
        """The last stage's map as `forward_features` gives it: normed."""
        out: Tensor = self.norm(x)
        return out

    @property
    def levels(self) -> nn.Sequential:
        return self.get_submodule(self.LEVELS)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes). Raises `BadInput` for a size that the model does not take."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The map of the last stage, (B, h, w, C)."""
        return self.ended(self.levels(self.stemmed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, dropout, classifier; `pre_logits`: without the classifier."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps at the end of some stages, with the final one before them unless `intermediates_only` (timm's contract).

        norm: of the last stage's map, by the model's norm. output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: 'NCHW', 'NHWC'")
        x = self.stemmed(x)
        take, last = feature_take_indices(len(self.levels), indices)
        stages = list(self.levels)[: last + 1] if stop_early else list(self.levels)
        maps = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                y = self.norm(x) if norm and i == len(self.feature_info) - 1 else x
                maps.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return maps
        return (self.ended(x) if len(stages) == len(self.levels) else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of these stages do not need; returns the stages, counted from 0."""
        take, last = feature_take_indices(len(self.levels), indices)
        setattr(self, self.LEVELS, self.levels[: last + 1])
        if prune_norm or last + 1 < len(self.feature_info):
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with random weights, where the model is; 0 classes: none."""
        if global_pool is not None:
            check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.levels:
            stage.grad_checkpointing = enable  # type: ignore[assignment]


def check_lengths(**lists: Sequence[Any]) -> None:
    """Raise `BadInput` unless each list has one value a stage."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise BadInput(f"{said}; accepted: one value a stage in each")


def check_pool(global_pool: Any) -> None:
    """Raise `BadInput` for another pooling than the mean or none."""
    if global_pool not in POOLS:
        raise BadInput(f"global_pool is {global_pool!r}; accepted: 'avg', or '' for the map itself")
