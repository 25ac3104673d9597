"""The blocks that make semantic tokens, put in the place of a model's own: cross attention with their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from leanvit.anatomy import State
from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.parts.blocks import Block, apply_norm, layer_scale
from leanvit.anatomy.parts.cross import CrossAttention
from leanvit.errors import BadInput, Refused
from leanvit.tokens.stvit.semantic import adaptive_max, adaptive_mean, owners

IMAGE = "stvit"  # key of the image tokens that wait in `State.extra`
Pool = Callable[[Tensor, int], Tensor]  # (B, h, w, C) and tokens a side -> (B, tokens, C)
_PARTS = ("norm1", "norm2", "mlp", "ls1", "ls2", "drop_path1", "drop_path2")


class Generation(Block):
    """A block whose queries are semantic tokens and whose keys are those and image tokens (section 3.1)."""

    source: ClassVar[str] = "stvit"
    reduces_tokens: ClassVar[bool] = True  # type: ignore[assignment]
    attn: CrossAttention

    def met(self, tokens: Any, keys: Any, state: State, *, shortcut: bool = True) -> tuple[Any, State]:
        """Semantic tokens (B, S, C) after they attended to `keys` (B, M, C), one norm for both."""
        ops, at = state.ops, self.name
        branch, tokens = ops.clone(f"{at}.clone1", tokens)
        branch = apply_norm(ops, f"{at}.norm1", self.norm1, branch)
        keys = apply_norm(ops, f"{at}.norm1_keys", self.norm1, keys)
        branch, state = self.attn.across(branch, keys, state)
        branch = layer_scale(ops, f"{at}.ls1", self.ls1, branch, self._parameters.get("gamma_1"))
        if not shortcut:
            return branch, state
        return ops.add(f"{at}.add1", tokens, ops.drop(self.drop_path1, branch)), state


class PoolsWindows(Block):
    """A block that begins with fewer tokens: those of each window of the full grid are pooled to a few."""

    source: ClassVar[str] = "stvit"
    reduces_tokens: ClassVar[bool] = True  # type: ignore[assignment]

    def __init__(self, *, window: tuple[int, int], samples: int, prefix: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.window, self.samples = window, samples
        self.drops_prefix = prefix == "drop"

    def pooled(self, x: Any, state: State, op: Callable[..., Any], pool: Pool) -> tuple[Any, State]:
        """Kept prefix tokens and those that `op` makes with `pool`; and the state after the image tokens gave way."""
        ops, at, first = state.ops, self.name, state.num_prefix
        self._check(ops.shape(x)[1], state)
        windows, semantic = cuts(state.grid, self.window, self.samples)
        image = ops.rearrange(f"{at}.image", x, lambda t: t[:, first:])
        cut = ops.rearrange(f"{at}.partition", image, windows.partition)
        few = op(f"{at}.pool", cut, lambda t: pool(t.unflatten(1, self.window), self.samples))
        tokens = ops.rearrange(f"{at}.reverse", few, semantic.reverse)
        state = self._tracked(state, ops.shape(x)[0], tokens)
        if first and not self.drops_prefix:
            tokens = ops.cat(f"{at}.prefix", [ops.rearrange(f"{at}.front", x, lambda t: t[:, :first]), tokens])
        return tokens, state

    def _check(self, tokens: int, state: State) -> None:
        if tokens != state.num_prefix + state.num_patches:
            raise Refused(
                f"{self.name} pools windows of the full grid of {state.grid[0]}x{state.grid[1]} tokens; "
                f"{tokens - state.num_prefix} are left"
            )
        if any(side % size for side, size in zip(state.grid, self.window, strict=True)):
            raise BadInput(
                f"images have {state.grid[0]}x{state.grid[1]} patches, which windows of {self.window[0]}x"
                f"{self.window[1]} ({self.name}) do not divide"
            )

    def _tracked(self, state: State, batch: int, tokens: Any) -> State:
        """The state after the image tokens gave way: a patch belongs to the token whose cell it is in."""
        prefix = 0 if self.drops_prefix else state.num_prefix
        if state.trace:
            own = owners(state.grid, self.window, self.samples, device=tokens.device) + prefix
            state = state.with_(owner=own.expand(batch, -1)).tapped(f"{self.name}.owner", own)
        return state.with_(num_prefix=prefix, positions=None, size=None)


class PooledGeneration(PoolsWindows, Generation):
    """The first: windows of image tokens are max-pooled, and what is pooled attends to the image tokens."""

    def __init__(self, *, shortcut: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.shortcut = shortcut

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, first = state.ops, state.num_prefix
        tokens, state = self.pooled(x, state, ops.pick, adaptive_max)
        image = x if self.drops_prefix else ops.rearrange(f"{self.name}.waiting", x, lambda t: t[:, first:])
        tokens, state = self.met(tokens, x, state, shortcut=self.shortcut)
        return tokens, state.with_(extra={**state.extra, IMAGE: image})


class AveragedBlock(PoolsWindows):
    """The control: windows are averaged, and what comes out goes through the model's own block."""

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        tokens, state = self.pooled(x, state, state.ops.mix, adaptive_mean)
        return super().attended(tokens, state, needs)


class CentredGeneration(Generation):
    """The second: semantic tokens, each with its global centre, attend to semantic and image tokens."""

    centres: nn.Parameter | None

    def __init__(self, *, tokens: int, use_global: bool, keeps_image: bool = False, **parts: Any) -> None:
        """`tokens`: semantic tokens of the grid that the model is built for. `keeps_image`: for a recovery later."""
        super().__init__(**parts)
        self.keeps_image = keeps_image
        like = self.attn.proj.weight
        centres = nn.Parameter(like.new_zeros(1, tokens, like.shape[0])) if use_global else None
        self.register_parameter("centres", centres)

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        image, after = waiting(self.name, state)
        keys = ops.cat(f"{at}.keys", [x, image])
        return self.met(self._centred(x, state), keys, state if self.keeps_image else after)

    def _centred(self, x: Any, state: State) -> Any:
        if self.centres is None:
            return x
        ops, at, first = state.ops, self.name, state.num_prefix
        tokens = ops.shape(x)[1] - first
        if tokens != self.centres.shape[1]:
            raise BadInput(
                f"{self.name} has {self.centres.shape[1]} global centres, the image gives {tokens} semantic tokens: "
                "give images of the model's own size, or use_global=false"
            )
        centres = ops.param(f"{at}.centres", self.centres, x)
        if not first:
            return ops.add(f"{at}.centre", x, centres)
        front = ops.rearrange(f"{at}.front", x, lambda t: t[:, :first])
        rest = ops.rearrange(f"{at}.rest", x, lambda t: t[:, first:])
        return ops.cat(f"{at}.centred", [front, ops.add(f"{at}.centre", rest, centres)])


def waiting(name: str, state: State) -> tuple[Any, State]:
    """The image tokens that an earlier block left in the state, and the state without them."""
    if IMAGE not in state.extra:
        raise BadInput(f"{name} needs the image tokens that a generation block before it leaves in the state")
    rest = {key: value for key, value in state.extra.items() if key != IMAGE}
    return state.extra[IMAGE], state.with_(extra=rest)


def cuts(grid: tuple[int, int], window: tuple[int, int], samples: int) -> tuple[Windows, Windows]:
    """How the grid of patches and that of semantic tokens are cut into the same windows."""
    windows = Windows(grid, window)
    down, across = windows.counts
    return windows, Windows((down * samples, across * samples), (samples, samples))


def children(block: Block) -> dict[str, Any]:
    """All of a block for one in its place, but its attention."""
    gammas = {key: p for key, p in block._parameters.items() if key.startswith("gamma")}
    return {"name": block.name, "gammas": gammas, **{key: getattr(block, key) for key in _PARTS}}
